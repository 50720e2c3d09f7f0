# SPDX-License-Identifier: GPL-3.0-or-later
"""The relocation types that a patch ELF may have, one tiny class each.

Source: System V ABI, AMD64 supplement, table 4.9 (S symbol, A addend, P place, G offset of the GOT
entry, GOT its base). What is not in RELOCATIONS is refused; nothing is ever guessed or skipped.
"""

from __future__ import annotations

from typing import Protocol

from .errors import Refused


class Operands(Protocol):
    """What a relocation asks of the linker, for its own symbol."""

    @property
    def symbol_name(self) -> str:
        """For messages."""

    @property
    def place(self) -> int:
        """The field's run-time address (P)."""

    @property
    def addend(self) -> int:
        """The relocation's addend (A)."""

    def address(self) -> int:
        """The symbol's run-time address (S)."""

    def near_address(self) -> int:
        """S for a 32-bit distance: the symbol itself, or a stub that leads to a far function."""

    def got_slot(self) -> int:
        """Address of an 8-byte slot that holds S (G + GOT)."""

    def tls_offset(self) -> int:
        """The symbol's offset from the thread pointer (negative, as of ABI variant II)."""

    def tls_slot(self) -> int:
        """Address of an 8-byte slot that holds the offset from the thread pointer."""


class Relocation:
    """A type: its number, the field's width in bytes, and how its value is computed."""

    number: int
    width: int
    signed = True

    @classmethod
    def value(cls, operands: Operands) -> int:
        """The field's value, before it is checked to fit."""
        raise AssertionError(cls.__name__)

    @classmethod
    def encode(cls, operands: Operands) -> bytes:
        """The field's bytes. Raises Refused ``symbol_out_of_reach`` when the value does not fit."""
        value = cls.value(operands)
        bits = 8 * cls.width
        if cls.width == 8:
            return (value & (1 << 64) - 1).to_bytes(8, "little")
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise Refused(
                "symbol_out_of_reach",
                f"{operands.symbol_name!r} is {value:#x} bytes from the place at "
                f"{operands.place:#x} that refers to it by {cls.__name__}; at most +-2 GiB fit; "
                "rebuild the patch with -fPIC so that it goes through a slot",
                symbol=operands.symbol_name,
                type=cls.number,
            )
        return value.to_bytes(cls.width, "little", signed=True)


class R_X86_64_64(Relocation):
    """S + A"""

    number, width = 1, 8

    @classmethod
    def value(cls, operands: Operands) -> int:
        return operands.address() + operands.addend


class R_X86_64_PC32(Relocation):
    """S + A - P"""

    number, width = 2, 4

    @classmethod
    def value(cls, operands: Operands) -> int:
        return operands.near_address() + operands.addend - operands.place


class R_X86_64_PLT32(R_X86_64_PC32):
    """L + A - P, L the stub's address where one is needed, else S"""

    number = 4


class R_X86_64_GOTPCREL(Relocation):
    """G + GOT + A - P"""

    number, width = 9, 4

    @classmethod
    def value(cls, operands: Operands) -> int:
        return operands.got_slot() + operands.addend - operands.place


class R_X86_64_GOTPCRELX(R_X86_64_GOTPCREL):
    """As GOTPCREL; a linker may relax the instruction, we do not."""

    number = 41


class R_X86_64_REX_GOTPCRELX(R_X86_64_GOTPCREL):
    number = 42


class R_X86_64_GOTTPOFF(Relocation):
    """G + GOT + A - P, the slot holding the offset from the thread pointer"""

    number, width = 22, 4

    @classmethod
    def value(cls, operands: Operands) -> int:
        return operands.tls_slot() + operands.addend - operands.place


class R_X86_64_TPOFF32(Relocation):
    """The symbol's offset from the thread pointer, + A"""

    number, width = 23, 4

    @classmethod
    def value(cls, operands: Operands) -> int:
        return operands.tls_offset() + operands.addend


class R_X86_64_PC64(Relocation):
    """S + A - P"""

    number, width = 24, 8

    @classmethod
    def value(cls, operands: Operands) -> int:
        return operands.address() + operands.addend - operands.place


RELOCATIONS: dict[int, type[Relocation]] = {
    kind.number: kind
    for kind in (
        R_X86_64_64,
        R_X86_64_PC32,
        R_X86_64_PLT32,
        R_X86_64_GOTPCREL,
        R_X86_64_GOTTPOFF,
        R_X86_64_TPOFF32,
        R_X86_64_PC64,
        R_X86_64_GOTPCRELX,
        R_X86_64_REX_GOTPCRELX,
    )
}

# Named in refusals, so that the reader knows which compiler flag made them.
_UNSUPPORTED_NAMES = {
    10: "R_X86_64_32",
    11: "R_X86_64_32S",
    19: "R_X86_64_TLSGD",
    20: "R_X86_64_TLSLD",
    21: "R_X86_64_DTPOFF32",
    25: "R_X86_64_GOTOFF64",
    26: "R_X86_64_GOTPC32",
    27: "R_X86_64_GOT64",
    31: "R_X86_64_PLTOFF64",
    34: "R_X86_64_GOTPC32_TLSDESC",
    35: "R_X86_64_TLSDESC_CALL",
}


def relocation_name(number: int) -> str:
    """The ABI's name of a type, or the number."""
    if number in RELOCATIONS:
        return RELOCATIONS[number].__name__
    return _UNSUPPORTED_NAMES.get(number, str(number))
