# SPDX-License-Identifier: GPL-3.0-or-later
"""The code of a linked object, decoded piece by piece as its FDEs bound it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from iced_x86 import Instruction

from wfpatch_build.instructions import decode, is_padding
from wfpatch_build.object_file import ObjectFile


@dataclass(frozen=True)
class StockPiece:
    """The instructions of one piece of code, fill left out, and the number of each by address."""

    address: int
    size: int
    code: bytes
    instructions: tuple[Instruction, ...]
    numbers: dict[int, int]

    def bytes_of(self, instruction: Instruction) -> bytes:
        start = instruction.ip - self.address
        return self.code[start : start + instruction.len]


class StockCode:
    """Decodes each piece once."""

    def __init__(self, image: ObjectFile) -> None:
        self.image = image

    @functools.cache  # noqa: B019 - lives as long as its image
    def piece(self, address: int, size: int) -> StockPiece:
        code = self.image.read(address, size)
        found = tuple(i for i in decode(code, address) if not is_padding(i))
        return StockPiece(address, size, code, found, {i.ip: n for n, i in enumerate(found)})

    def piece_at(self, address: int) -> StockPiece | None:
        """The piece whose inside holds ``address``, or None where no FDE describes it."""
        bounds = self.image.piece_at(address)
        return None if bounds is None else self.piece(*bounds)
