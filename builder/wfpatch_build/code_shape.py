# SPDX-License-Identifier: GPL-3.0-or-later
"""Shapes: what remains of code when all that linking decides is taken out.

Equal shapes are necessary for a match, never enough: they serve to find the few pieces of stock
code that are worth a comparison. One token per instruction, fill left out. Left out too are the
targets of branches that leave the function, PC-relative displacements, and the difference between
the two forms that a linker may give a GOT access (x86-64 psABI, B.2).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from iced_x86 import Instruction, Mnemonic, OpKind, Register

from wfpatch_build.compiled_object import CompiledSymbol
from wfpatch_build.instructions import near_target, rip_target
from wfpatch_build.normal_form import NormalForms
from wfpatch_build.references import PC_RELATIVE, R_TPOFF32, THREAD_LOCAL
from wfpatch_build.stock_code import StockCode, StockPiece

ANYTHING: Hashable = "anything"  # an instruction that the linker may have rewritten
Shape = tuple[Hashable, ...]

_CALL, _JUMP, _LOAD = "call", "jump", "load"


def compiled_shape(forms: NormalForms, symbol: CompiledSymbol) -> Shape:
    """The shape of a compiled function."""
    section = forms.obj.sections[symbol.section]
    numbers = forms.numbering(symbol.section)
    first = numbers.get(symbol.value, 0)
    tokens = []
    for instruction in forms.body(symbol):
        raw = section.data[instruction.ip : instruction.ip + instruction.len]
        kinds = {
            section.relocation_at[o].type
            for o in range(instruction.ip, instruction.ip + instruction.len)
            if o in section.relocation_at
        }
        if _rewritten(instruction, kinds):
            tokens.append(ANYTHING)
        else:
            number = None
            target = near_target(instruction)
            if not kinds and target is not None and _inside(symbol, target):
                number = numbers.get(target, -1) - first
            tokens.append(_token(instruction, raw, number))
    return tuple(tokens)


def _rewritten(instruction: Instruction, kinds: set[int]) -> bool:
    """Whether relocations of these types may make another instruction of it."""
    if R_TPOFF32 in kinds:
        return not _through_fs(instruction)
    return bool(kinds & THREAD_LOCAL or kinds - PC_RELATIVE)


def _through_fs(instruction: Instruction) -> bool:
    return int(instruction.segment_prefix) == int(Register.FS)


def stock_shape(piece: StockPiece) -> Shape:
    """The shape of a piece of stock code."""
    return tuple(
        _token(i, piece.bytes_of(i), piece.numbers.get(near_target(i) or -1))
        for i in piece.instructions
    )


def _inside(symbol: CompiledSymbol, target: int) -> bool:
    return symbol.value <= target < symbol.value + symbol.size


def _token(instruction: Instruction, raw: bytes, number: int | None) -> Hashable:
    """``number``: that of the instruction in the same piece to which it branches, if any."""
    if instruction.mnemonic == Mnemonic.CALL and not _through_register(instruction):
        return _CALL
    if near_target(instruction) is not None:
        # A jump to the own entry may be a tail call through the symbol.
        return (
            _JUMP if instruction.mnemonic == Mnemonic.JMP else instruction.mnemonic,
            number or 0,
        )
    if rip_target(instruction) is not None:
        if instruction.mnemonic == Mnemonic.JMP:
            return (_JUMP, 0)
        if instruction.mnemonic in (Mnemonic.MOV, Mnemonic.LEA) and (
            instruction.op0_kind == OpKind.REGISTER
        ):
            return (_LOAD, instruction.op0_register)
        return (instruction.mnemonic, _without_displacement(instruction, raw))
    if _through_fs(instruction):
        return (instruction.mnemonic, _without_displacement(instruction, raw))
    return raw


def _through_register(instruction: Instruction) -> bool:
    """Whether a call's target is neither in it nor at a PC-relative place."""
    return near_target(instruction) is None and rip_target(instruction) is None


def _without_displacement(instruction: Instruction, raw: bytes) -> bytes:
    displacement = (instruction.memory_displacement & 0xFFFFFFFF).to_bytes(4, "little")
    if rip_target(instruction) is not None:
        beyond = instruction.memory_displacement - instruction.next_ip
        displacement = (beyond & 0xFFFFFFFF).to_bytes(4, "little")
    at = raw.rfind(displacement)
    return raw if at < 0 else raw[:at] + bytes(4) + raw[at + 4 :]


class ShapeIndex:
    """The pieces of a stock image by shape."""

    def __init__(self, code: StockCode, pieces: Iterable[tuple[int, int]]) -> None:
        self._by_shape: dict[Shape, list[StockPiece]] = {}
        self._by_length: dict[int, list[tuple[Shape, StockPiece]]] = {}
        for address, size in pieces:
            piece = code.piece(address, size)
            shape = stock_shape(piece)
            self._by_shape.setdefault(shape, []).append(piece)
            self._by_length.setdefault(len(shape), []).append((shape, piece))

    def alike(self, shape: Shape) -> Sequence[StockPiece]:
        """The pieces whose shape is ``shape``, which may hold ANYTHING."""
        if ANYTHING not in shape:
            return self._by_shape.get(shape, ())
        return [
            piece
            for other, piece in self._by_length.get(len(shape), ())
            if all(mine in (ANYTHING, theirs) for mine, theirs in zip(shape, other, strict=True))
        ]
