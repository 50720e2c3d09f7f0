# SPDX-License-Identifier: GPL-3.0-or-later
"""An ELF file's program headers and build-id, from its first page in a file or in memory.

Source: System V ABI (gABI 4.1, chapters 4 and 5); the build-id is the NT_GNU_BUILD_ID note.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

PAGE = 4096
PT_LOAD, PT_DYNAMIC, PT_NOTE, PT_TLS, PT_GNU_EH_FRAME = 1, 2, 4, 7, 0x6474E550
PF_X, PF_W, PF_R = 1, 2, 4
ET_EXEC, ET_DYN = 2, 3
EM_X86_64 = 62
NT_GNU_BUILD_ID = 3

_MAX_SEGMENTS = 128
_MAX_NOTES = 65536
_MAX_BUILD_ID = 64


@dataclass(frozen=True)
class Segment:
    """A program header. ``address`` is the link-time virtual address."""

    type: int
    flags: int
    offset: int
    address: int
    file_size: int
    size: int
    alignment: int


@dataclass(frozen=True)
class ElfHeader:
    """What the loader reads of an object: its type and segments."""

    type: int
    segments: tuple[Segment, ...]

    def of_type(self, kind: int) -> tuple[Segment, ...]:
        """The segments of one type."""
        return tuple(segment for segment in self.segments if segment.type == kind)

    @property
    def first_address(self) -> int:
        """The link-time address at which file offset 0 lies; 0 where it is not loaded."""
        for segment in self.of_type(PT_LOAD):
            if segment.offset < PAGE:
                return segment.address - segment.offset
        return 0

    @property
    def extent(self) -> tuple[int, int]:
        """Lowest and highest link-time address of the loaded segments, whole pages."""
        loads = self.of_type(PT_LOAD)
        low = min(segment.address for segment in loads) & -PAGE
        high = max(segment.address + segment.size for segment in loads)
        return low, high + PAGE - 1 & -PAGE


def parse_header(page: bytes) -> ElfHeader | None:
    """The header of a 64-bit x86-64 object from its first bytes; None for anything else.

    Damaged or hostile program headers (overlapping, unordered, wrapping) give None as well.
    """
    if len(page) < 64 or page[:7] != b"\x7fELF\x02\x01\x01":
        return None
    kind, machine = struct.unpack_from("<HH", page, 16)
    (table,) = struct.unpack_from("<Q", page, 32)
    entry, count = struct.unpack_from("<HH", page, 54)
    if kind not in (ET_EXEC, ET_DYN) or machine != EM_X86_64 or entry != 56:
        return None
    if not 0 < count <= _MAX_SEGMENTS or table > len(page) or count * 56 > len(page) - table:
        return None
    segments = []
    previous_end = 0
    for index in range(count):
        segment = Segment(*(struct.unpack_from("<IIQQ8xQQQ", page, table + 56 * index)))
        if segment.address >> 47 or segment.size >> 40 or segment.file_size > segment.size:
            # of what is not loaded only the address and size matter, and they must be sane
            return None
        if segment.type == PT_LOAD:
            if segment.address < previous_end or segment.offset >> 47:
                return None
            previous_end = segment.address + segment.size
        segments.append(segment)
    header = ElfHeader(kind, tuple(segments))
    return header if header.of_type(PT_LOAD) else None


def build_id(header: ElfHeader, read: Callable[[Segment], bytes]) -> str:
    """The build-id in lower-case hexadecimal, "" without one.

    ``read`` gives the contents of a note segment, b"" where they cannot be had.
    """
    for segment in header.of_type(PT_NOTE):
        if segment.file_size > _MAX_NOTES:
            continue
        found = _build_id_note(read(segment), 8 if segment.alignment == 8 else 4)
        if found:
            return found
    return ""


def _build_id_note(notes: bytes, alignment: int) -> str:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name = position + 12
        start = name + name_size + alignment - 1 & -alignment
        if name_size > len(notes) or size > len(notes) or start + size > len(notes):
            break
        if kind == NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
            return notes[start : start + size].hex() if 0 < size <= _MAX_BUILD_ID else ""
        position = start + size + alignment - 1 & -alignment
    return ""
