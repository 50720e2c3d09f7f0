# SPDX-License-Identifier: GPL-3.0-or-later
"""The FDE list of an object: where each piece of code begins and how long it is.

A stripped binary keeps .eh_frame, so this is its table of functions. Format: LSB Core 5.0,
10.6.1 (.eh_frame), and the DW_EH_PE_* pointer encodings of 10.5.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_PE_OMIT = 0xFF
_FORMATS = {
    0x00: "<Q",  # absptr
    0x02: "<H",
    0x03: "<I",
    0x04: "<Q",
    0x0A: "<h",
    0x0B: "<i",
    0x0C: "<q",
}


class MalformedUnwindTable(Exception):
    """The .eh_frame section breaks its own format."""


@dataclass(frozen=True, order=True)
class Fde:
    """One piece of code, ``[start, start + size)``, and the CIE and FDE that describe it.

    ``instructions`` are the FDE's own call-frame instructions; ``offset`` its place in .eh_frame.
    """

    start: int
    size: int
    offset: int
    cie_offset: int
    has_lsda: bool


@dataclass(frozen=True)
class _Cie:
    encoding: int
    has_augmentation_data: bool
    has_lsda: bool


def read_fdes(section: bytes, address: int) -> list[Fde]:
    """All FDEs of an .eh_frame section loaded at ``address``, sorted by start.

    Raises MalformedUnwindTable.
    """
    cies: dict[int, _Cie] = {}
    found: list[Fde] = []
    at = 0
    while at + 4 <= len(section):
        length = struct.unpack_from("<I", section, at)[0]
        body = at + 4
        if length == 0:  # terminator; crtend.o puts one at the very end
            at = body
            continue
        if length == 0xFFFFFFFF:
            length = struct.unpack_from("<Q", section, body)[0]
            body += 8
        end = body + length
        if end > len(section):
            raise MalformedUnwindTable(f"entry at offset {at:#x} is longer than the section")
        cie_delta = struct.unpack_from("<I", section, body)[0]
        if cie_delta == 0:
            cies[at] = _read_cie(section, body + 4)
        else:
            cie_offset = body - cie_delta
            cie = cies.get(cie_offset)
            if cie is None:
                raise MalformedUnwindTable(f"FDE at offset {at:#x} names no CIE")
            start, size = _read_range(section, body + 4, address, cie.encoding)
            found.append(Fde(start, size, at, cie_offset, cie.has_lsda))
        at = end
    return sorted(found)


def _read_cie(section: bytes, at: int) -> _Cie:
    end = section.index(b"\0", at + 1)
    augmentation = section[at + 1 : end].decode("ascii", "replace")
    at = end + 1
    if augmentation.startswith("eh"):
        at += 8
    _, at = _uleb(section, at)  # code alignment
    _, at = _uleb(section, at)  # data alignment (signed, same length)
    _, at = _uleb(section, at)  # return address column
    encoding = 0
    if augmentation.startswith("z"):
        _, at = _uleb(section, at)
        for letter in augmentation[1:]:
            if letter == "R":
                encoding = section[at]
                at += 1
            elif letter == "L":
                at += 1
            elif letter == "P":
                form = section[at] & 0x0F
                at += 1 + struct.calcsize(_FORMATS[form])
            elif letter not in "SB":
                break
    return _Cie(encoding, augmentation.startswith("z"), "L" in augmentation)


def _read_range(section: bytes, at: int, address: int, encoding: int) -> tuple[int, int]:
    if encoding == _PE_OMIT or encoding & 0x70 not in (0x00, 0x10):
        raise MalformedUnwindTable(f"unsupported pointer encoding {encoding:#x}")
    form = _FORMATS.get(encoding & 0x0F)
    if form is None:
        raise MalformedUnwindTable(f"unsupported pointer format {encoding:#x}")
    start = struct.unpack_from(form, section, at)[0]
    if encoding & 0x70 == 0x10:  # pcrel
        start += address + at
    size_at = at + struct.calcsize(form)
    size = struct.unpack_from(form.upper() if form != "<Q" else form, section, size_at)[0]
    return start & 0xFFFFFFFFFFFFFFFF, size


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at
