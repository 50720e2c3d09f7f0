# SPDX-License-Identifier: GPL-3.0-or-later
"""DWARF expressions as they occur in call frame information (DWARF 4, section 2.5).

They come from the process's memory, so everything is bounded; what cannot be computed is an error,
never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_MASK = (1 << 64) - 1
_MAX_STEPS = 1000
_MAX_DEPTH = 64


class CannotUnwind(Exception):
    """A frame's caller cannot be told; the text says why."""


class Reader:
    """Reads little-endian values from bytes in order; raises CannotUnwind at their end."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def __bool__(self) -> bool:
        return self.position < len(self.data)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise CannotUnwind("call frame information ends too early")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def unsigned(self, size: int) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def signed(self, size: int) -> int:
        """A signed integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little", signed=True)

    def uleb(self) -> int:
        """An unsigned LEB128 (DWARF 4, 7.6) of at most ten bytes."""
        value = shift = 0
        while True:
            byte = self.unsigned(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise CannotUnwind("a LEB128 number does not end")

    def sleb(self) -> int:
        """A signed LEB128 of at most ten bytes."""
        value = shift = 0
        while True:
            byte = self.unsigned(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if byte & 0x40 else value
            if shift > 63:
                raise CannotUnwind("a LEB128 number does not end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# DW_OP numbers: 7.7.1
_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda a, b: a & b,
    0x1C: lambda a, b: a - b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << b if b < 64 else 0,
    0x25: lambda a, b: a >> b if b < 64 else 0,
    0x26: lambda a, b: _signed(a) >> min(b, 63),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: int(a == b),
    0x2A: lambda a, b: int(_signed(a) >= _signed(b)),
    0x2B: lambda a, b: int(_signed(a) > _signed(b)),
    0x2C: lambda a, b: int(_signed(a) <= _signed(b)),
    0x2D: lambda a, b: int(_signed(a) < _signed(b)),
    0x2E: lambda a, b: int(a != b),
}
_UNARY: dict[int, Callable[[int], int]] = {
    0x19: lambda a: abs(_signed(a)),
    0x1F: lambda a: -a,
    0x20: lambda a: ~a,
}
_CONSTANTS: dict[int, Callable[[Reader], int]] = {
    0x03: lambda r: r.unsigned(8),
    0x08: lambda r: r.unsigned(1),
    0x09: lambda r: r.signed(1),
    0x0A: lambda r: r.unsigned(2),
    0x0B: lambda r: r.signed(2),
    0x0C: lambda r: r.unsigned(4),
    0x0D: lambda r: r.signed(4),
    0x0E: lambda r: r.unsigned(8),
    0x0F: lambda r: r.signed(8),
    0x10: lambda r: r.uleb(),
    0x11: lambda r: r.sleb(),
}


def evaluate(
    code: bytes,
    register: Callable[[int], int],
    read: Callable[[int, int], bytes],
    stack: Sequence[int] = (),
) -> int:
    """The value of an expression; ``stack`` is what it begins with.

    ``register`` gives a DWARF register of the frame, ``read`` the process's memory; both raise
    CannotUnwind for what is not known.
    """
    values = list(stack)
    reader = Reader(code)

    def pop(index: int = -1) -> int:
        if not -len(values) <= index < len(values):
            raise CannotUnwind("a DWARF expression takes more than it has")
        return values.pop(index)

    for _ in range(_MAX_STEPS):
        if not reader:
            return pop() & _MASK
        if len(values) > _MAX_DEPTH:
            raise CannotUnwind("a DWARF expression's stack overflows")
        op = reader.unsigned(1)
        if op in _CONSTANTS:
            values.append(_CONSTANTS[op](reader) & _MASK)
        elif op in _BINARY:
            second, first = pop(), pop()
            values.append(_BINARY[op](first, second) & _MASK)
        elif op in _UNARY:
            values.append(_UNARY[op](pop()) & _MASK)
        elif 0x30 <= op <= 0x4F:  # DW_OP_lit0..31
            values.append(op - 0x30)
        elif 0x70 <= op <= 0x8F:  # DW_OP_breg0..31
            values.append(register(op - 0x70) + reader.sleb() & _MASK)
        elif op == 0x92:  # DW_OP_bregx
            number = reader.uleb()
            values.append(register(number) + reader.sleb() & _MASK)
        elif op == 0x06:  # DW_OP_deref
            values.append(int.from_bytes(read(pop(), 8), "little"))
        elif op == 0x94:  # DW_OP_deref_size
            size = reader.unsigned(1)
            if not 1 <= size <= 8:
                raise CannotUnwind("a DWARF expression reads a word of odd size")
            values.append(int.from_bytes(read(pop(), size), "little"))
        elif op == 0x23:  # DW_OP_plus_uconst
            values.append(pop() + reader.uleb() & _MASK)
        elif op in (0x12, 0x14, 0x15):  # dup, over, pick
            depth = {0x12: 0, 0x14: 1}.get(op, -1)
            depth = reader.unsigned(1) if depth < 0 else depth
            if depth >= len(values):
                raise CannotUnwind("a DWARF expression takes more than it has")
            values.append(values[-1 - depth])
        elif op == 0x13:  # drop
            pop()
        elif op == 0x16:  # swap
            values.append(pop(-2))
        elif op == 0x17:  # rot
            values.insert(max(len(values) - 3, 0), pop())
        elif op in (0x2F, 0x28):  # skip, bra
            distance = reader.signed(2)
            if op == 0x2F or pop():
                reader.position += distance
                if not 0 <= reader.position <= len(code):
                    raise CannotUnwind("a DWARF expression jumps out of itself")
        elif op != 0x96:  # nop
            raise CannotUnwind(f"DWARF operation {op:#x} does not occur in frame information")
    raise CannotUnwind("a DWARF expression does not end")
