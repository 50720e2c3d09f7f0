# SPDX-License-Identifier: GPL-3.0-or-later
"""Where control can go from a function's pieces: inside, to a known place outside, or anywhere.

The pieces of a function are its main body and what the compiler split off (`.cold`). Switch tables
are told from indirect tail calls by the code GCC and LLVM make for them:

    lea table(%rip),%rB ; movslq (%rB,%rI,4),%rX ; add %rB,%rX ; jmp *%rX

(an indirect tail call never adds a table's base), and computed gotos by their table of addresses.
Everything else indirect counts as leaving the function for an unknown place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from iced_x86 import Instruction, Mnemonic, OpKind, Register, RegisterInfo

from wfpatch_build.instructions import decode, is_call, is_indirect_jump, jump_target, rip_target
from wfpatch_build.object_file import ObjectFile

_LOOK_BACK = 64  # instructions between a table's load and its jump, schedule included
_LONGEST_TABLE = 4096


@dataclass
class ControlFlow:
    """What the code of one function does with control.

    ``inside``: branch targets within the pieces, switch tables included. ``leaving``: targets of
    direct jumps out of the pieces. ``leaves_anywhere``: an indirect jump that is no switch.
    ``calls``: targets of direct calls. ``tables``: addresses of the switch tables found.
    ``addresses``: what RIP-relative operands that are not branches name.
    """

    inside: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    leaves_anywhere: bool = False
    calls: set[int] = field(default_factory=set)
    tables: set[int] = field(default_factory=set)
    addresses: set[int] = field(default_factory=set)
    slots: set[int] = field(default_factory=set)  # GOT slots that are jumped through


def control_flow(image: ObjectFile, pieces: Sequence[tuple[int, int]]) -> ControlFlow:
    """Analyse the (start, size) pieces of one function of ``image``."""
    flow = ControlFlow()
    inside = [range(start, start + size) for start, size in pieces]
    indirect: list[tuple[int, list[Instruction]]] = []
    for start, size in pieces:
        instructions = list(decode(image.read(start, size), start))
        for index, instruction in enumerate(instructions):
            target = jump_target(instruction)
            if target is not None:
                (flow.inside if any(target in r for r in inside) else flow.leaving).add(target)
            elif is_indirect_jump(instruction):
                indirect.append((index, instructions))
            elif is_call(instruction) and instruction.op0_kind == OpKind.NEAR_BRANCH64:
                flow.calls.add(instruction.near_branch_target)
            memory = rip_target(instruction)
            if memory is not None:
                flow.addresses.add(memory)
    for index, instructions in indirect:
        _indirect_jump(image, flow, inside, instructions, index)
    return flow


def _indirect_jump(
    image: ObjectFile,
    flow: ControlFlow,
    inside: Sequence[range],
    instructions: Sequence[Instruction],
    index: int,
) -> None:
    jump = instructions[index]
    slot = rip_target(jump)
    if slot is not None:  # jmp *name@GOTPCREL(%rip): a tail call of an import
        flow.slots.add(slot)
        return
    before = instructions[:index]
    if jump.op0_kind == OpKind.REGISTER:
        register = _full(jump.op0_register)
        if _is_switch(before[-_LOOK_BACK:], register):
            for table in sorted(flow.addresses):
                targets = _offset_table(image, table, inside)
                if targets:
                    flow.tables.add(table)
                    flow.inside |= targets
            return
        load = next((i for i in reversed(before) if _destination(i) == register), None)
        if load is not None and load.mnemonic == Mnemonic.MOV and load.op1_kind == OpKind.MEMORY:
            jump = load
    if OpKind.MEMORY in (jump.op0_kind, jump.op1_kind):
        targets = _computed_goto(image, before, jump, inside)
        if targets:
            flow.inside |= targets
            return
    flow.leaves_anywhere = True


def is_switch_jump(instructions: Sequence[Instruction], index: int) -> bool:
    """Whether a jump through a register is a switch: table base + 32-bit table entry."""
    register = _full(instructions[index].op0_register)
    return _is_switch(instructions[max(0, index - _LOOK_BACK) : index], register)


def _computed_goto(
    image: ObjectFile, before: Sequence[Instruction], load: Instruction, inside: Sequence[range]
) -> set[int]:
    """Targets of a jump through ``load``'s operand when that lies in a table of own addresses."""
    registers = [r for r in (load.memory_base, load.memory_index) if int(r) != int(Register.NONE)]
    for full in map(_full, registers):
        writer = next((i for i in reversed(before) if _destination(i) == full), None)
        if writer is not None and writer.mnemonic == Mnemonic.LEA:
            table = rip_target(writer)
            if table is not None:
                return _address_table(image, table, inside)
    return set()


def _full(register: int) -> int:
    return int(RegisterInfo(register).full_register)  # type: ignore[arg-type]


def _is_switch(before: Sequence[Instruction], wanted: int) -> bool:
    """Whether the register jumped through was computed as table base + 32-bit table entry."""
    for position in range(len(before) - 1, -1, -1):
        instruction = before[position]
        if _destination(instruction) != wanted:
            continue
        if instruction.op1_kind != OpKind.REGISTER:
            return False
        if instruction.mnemonic == Mnemonic.MOV:
            wanted = _full(instruction.op1_register)
        elif instruction.mnemonic == Mnemonic.ADD:
            # Base and entry may stand on either side of the addition.
            either = (wanted, _full(instruction.op1_register))
            return any(_is_entry(before[:position], register) for register in either)
        else:
            return False
    return False


def _destination(instruction: Instruction) -> int | None:
    """The register that an instruction writes, as far as address computations go."""
    if instruction.mnemonic == Mnemonic.CDQE:
        return int(Register.RAX)
    if instruction.op_count == 0 or instruction.op0_kind != OpKind.REGISTER:
        return None
    if instruction.mnemonic in (Mnemonic.CMP, Mnemonic.TEST, Mnemonic.PUSH):
        return None
    return _full(instruction.op0_register)


def _is_entry(before: Sequence[Instruction], register: int) -> bool:
    """Whether ``register`` was last loaded with a sign-extended 32-bit word of memory."""
    extended = False
    for instruction in reversed(before):
        if _destination(instruction) != register:
            continue
        if instruction.mnemonic == Mnemonic.CDQE:
            extended = True
            continue
        if instruction.op_count < 2 or instruction.op1_kind != OpKind.MEMORY:
            return False
        loads = instruction.mnemonic == Mnemonic.MOVSXD
        return loads or (extended and instruction.mnemonic == Mnemonic.MOV)
    return False


def _offset_table(image: ObjectFile, table: int, inside: Iterable[range]) -> set[int]:
    """Targets of a table of 32-bit offsets from its own start; empty when it is no such table."""
    section = image.section_at(table)
    if section is None or section.executable or table % 4:
        return set()
    targets: set[int] = set()
    raw = image.read(table, min(4 * _LONGEST_TABLE, section.address + section.size - table))
    for at in range(0, len(raw) - 3, 4):
        target = table + int.from_bytes(raw[at : at + 4], "little", signed=True)
        if not any(target in r for r in inside):
            break
        targets.add(target)
    return targets


def _address_table(image: ObjectFile, table: int, inside: Iterable[range]) -> set[int]:
    """Targets of a table of relocated 64-bit addresses inside the function."""
    targets: set[int] = set()
    for number in range(_LONGEST_TABLE):
        target = image.relative.get(table + 8 * number)
        if target is None or not any(target in r for r in inside):
            break
        targets.add(target)
    return targets
