# SPDX-License-Identifier: GPL-3.0-or-later
"""Run-pre matching on the host: the code in the running process must be the code that the patch was
built against, byte by byte, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable

from .elf_object import ObjectImage
from .errors import Refused
from .memory import ProcessMemory
from .patch_elf import OldPiece, PatchElf
from .region_header import Slot


def without_arming(data: bytes, address: int, slots: Iterable[Slot]) -> bytes:
    """``data``, read at ``address``, with what our own arming wrote there taken back."""
    out = bytearray(data)
    for slot in slots:
        for write in slot.writes:
            low, high = write.address - address, write.address - address + len(write.after)
            if high <= 0 or low >= len(out):
                continue
            for index in range(max(low, 0), min(high, len(out))):
                if out[index] == write.after[index - low]:
                    out[index] = write.before[index - low]
    return bytes(out)


def _first_difference(piece: OldPiece, found: bytes) -> int | None:
    for index, (old, mask) in enumerate(zip(piece.old, piece.mask)):
        if (old ^ found[index]) & mask:
            return index
    return None


def require_old_code(
    memory: ProcessMemory, image: ObjectImage, patch: PatchElf, slots: Iterable[Slot]
) -> None:
    """Compare every piece of every replaced function; raises Refused("old_code_mismatch")."""
    known = tuple(slots)
    for function in patch.functions:
        for piece in function.all_pieces():
            at = image.address(piece.address)
            found = without_arming(memory.read(at, piece.size), at, known)
            offset = _first_difference(piece, found)
            if offset is not None:
                raise Refused(
                    "old_code_mismatch",
                    f"{function.name} ({piece.kind}) at {at:#x}: byte {offset} is "
                    f"{found[offset]:#04x}, the patch was built against {piece.old[offset]:#04x}; "
                    "another tool may have changed the code, or the build-id lies",
                    function=function.name,
                    offset=offset,
                    address=at + offset,
                )
