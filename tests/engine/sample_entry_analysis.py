# SPDX-License-Identifier: GPL-3.0-or-later
"""What the patch ELF says about a replaced function's machine code, worked out from its bytes.

The engine's tests need it without the builder: small, and only as clever as code from
``gcc -O2`` needs. Addresses are link-time virtual addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register

Json = Any

_NEAR = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
_NO_FALL_THROUGH = (
    FlowControl.UNCONDITIONAL_BRANCH,
    FlowControl.INDIRECT_BRANCH,
    FlowControl.RETURN,
    FlowControl.EXCEPTION,
)


def is_call(instruction: Instruction) -> bool:
    """Whether an instruction pushes a return address (iced's flow control counts syscall too)."""
    return bool(instruction.is_call_near or instruction.is_call_near_indirect)


@dataclass(frozen=True)
class Piece:
    """One stretch of a function's code."""

    address: int
    code: bytes

    @property
    def end(self) -> int:
        return self.address + len(self.code)

    def instructions(self) -> list[Instruction]:
        return list(Decoder(64, self.code, ip=self.address))


def branch_target(instruction: Instruction) -> int | None:
    """The target of a direct branch or call, None for every other instruction."""
    if instruction.op_count and instruction.op_kind(0) in _NEAR:
        return int(instruction.near_branch_target)
    return None


@dataclass(frozen=True)
class Relocated:
    code: bytes
    fixups: tuple[dict[str, int], ...]


def relocate(piece: Piece, instruction: Instruction) -> Relocated:
    """The instruction in a form that may stand anywhere within +-2 GiB of its operands."""
    start = instruction.ip - piece.address
    raw = piece.code[start : start + instruction.len]
    target = branch_target(instruction)
    if target is not None:
        flow = instruction.flow_control
        if flow == FlowControl.CALL:
            head = b"\xe8"
        elif flow == FlowControl.UNCONDITIONAL_BRANCH:
            head = b"\xe9"
        elif instruction.mnemonic in (
            Mnemonic.JRCXZ,
            Mnemonic.JECXZ,
            Mnemonic.LOOP,
            Mnemonic.LOOPE,
            Mnemonic.LOOPNE,
        ):
            # these have a rel8 form only: over a jump that skips the far jump
            head = raw[:-1] + b"\x02\xeb\x05\xe9"
        else:
            condition = raw[-2] if instruction.len < 6 else raw[-5]
            head = bytes((0x0F, 0x80 | condition & 0x0F))
        fixup = {"offset": len(head), "addend": -4, "target": target}
        return Relocated(head + bytes(4), (fixup,))
    if instruction.is_ip_rel_memory_operand:
        decoder = Decoder(64, raw, ip=instruction.ip)
        offset = decoder.get_constant_offsets(decoder.decode()).displacement_offset
        code = raw[:offset] + bytes(4) + raw[offset + 4 :]
        fixup = {
            "offset": offset,
            "addend": offset - len(raw),
            "target": int(instruction.ip_rel_memory_address),
        }
        return Relocated(code, (fixup,))
    return Relocated(raw, ())


def displaced(main: Piece) -> Json:
    """The ``displaced`` object: the first instruction, relocated."""
    first = main.instructions()[0]
    moved = relocate(main, first)
    return {
        "length": first.len,
        "code": moved.code.hex(),
        "fixups": list(moved.fixups),
        "falls_through": first.flow_control not in _NO_FALL_THROUGH,
        "is_call": is_call(first),
        "frame": {"cfa_offset": 8},
    }


def hold(main: Piece, pieces: Sequence[Piece]) -> Json:
    """The ``hold`` object: at least five bytes of whole instructions, or None where impossible."""
    instructions = main.instructions()
    code, fixups, boundaries, length = b"", [], [], 0
    falls_through = True
    for instruction in instructions:
        if length >= 5:
            break
        if not falls_through or is_call(instruction):
            return None
        boundaries.append([length, len(code)])
        moved = relocate(main, instruction)
        fixups += [dict(f, offset=f["offset"] + len(code)) for f in moved.fixups]
        code += moved.code
        length += instruction.len
        falls_through = instruction.flow_control not in _NO_FALL_THROUGH
    if length < 5:
        return None
    inside = range(main.address + 1, main.address + length)
    for piece in (main, *pieces):
        if any(branch_target(i) in inside for i in piece.instructions()):
            return None
    return {
        "length": length,
        "code": code.hex(),
        "fixups": fixups,
        "boundaries": boundaries,
        "falls_through": falls_through,
    }


def ends_in_call(piece: Piece) -> bool:
    return is_call(piece.instructions()[-1])


def padding(
    main: Piece, read: Callable[[int, int], bytes], entries: Sequence[tuple[int, int]]
) -> Json:
    """A never-executed gap of >= 5 bytes in ``jmp rel8`` reach of the entry, or None.

    ``entries`` are (address, size) of every function, sorted. A gap counts when all of it is
    nop or int3, and the function before it ends in an instruction that never falls through.
    """
    lowest, highest = main.address + 2 - 128, main.address + 2 + 127
    for index, (address, size) in enumerate(entries[:-1]):
        following = entries[index + 1][0]
        start = address + max(size, 5)  # arming by one byte reads five bytes of a short function
        if size == 0 or following - start < 5 or not lowest <= start <= highest:
            continue
        fill = list(Decoder(64, read(start, following - start), ip=start))
        if any(i.mnemonic not in (Mnemonic.NOP, Mnemonic.INT3) for i in fill):
            continue
        last = Piece(address, read(address, size)).instructions()[-1]
        if last.flow_control in _NO_FALL_THROUGH:
            return {"address": start, "size": following - start}
    return None


def inner_entries(main: Piece, pieces: Sequence[Piece], entries: Sequence[int]) -> list[int]:
    """The offsets 1..4 at which another function begins or to which a branch goes."""
    near = range(main.address + 1, main.address + 5)
    found = {entry for entry in entries if entry in near}
    for piece in (main, *pieces):
        for instruction in piece.instructions():
            target = branch_target(instruction)
            if target is not None and target in near:
                found.add(target)
    return sorted(address - main.address for address in found)


def _through_jump_table(before: Sequence[Instruction], jump: Instruction) -> bool:
    """Whether an indirect jump is a switch: ``movslq (t,i,4),r; add t,r; jmp *r``."""
    if jump.op_kind(0) != OpKind.REGISTER:
        # without PIC: jmp *table(,index,8)
        return bool(jump.memory_index != Register.NONE and jump.memory_index_scale == 8)
    register = jump.op_register(0)
    added = loaded = False
    for instruction in reversed(before[-8:]):
        if instruction.op_count and instruction.op_kind(0) == OpKind.REGISTER:
            if instruction.op_register(0) == register and instruction.mnemonic == Mnemonic.ADD:
                added = True
            if instruction.mnemonic == Mnemonic.MOVSXD and instruction.memory_index_scale == 4:
                loaded = True
    return added and loaded


def tail_edges(own: Sequence[Piece], replaced: Mapping[int, str]) -> list[str]:
    """Names of replaced functions that the old code jumps to; ``*`` for an unknown jump.

    A jump to the own entry, be it a loop or a self tail call, is an edge: the armed entry sees it.
    """
    edges: set[str] = set()
    for piece in own:
        instructions = piece.instructions()
        for index, instruction in enumerate(instructions):
            flow = instruction.flow_control
            if flow in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH):
                target = branch_target(instruction)
                assert target is not None
                if target in replaced:
                    edges.add(replaced[target])
            elif flow == FlowControl.INDIRECT_BRANCH and not _through_jump_table(
                instructions[:index], instruction
            ):
                edges.add("*")
    return sorted(edges)


def migrate_rules(edges: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """``always``, ``after_direct_call`` or ``never`` for each replaced function."""
    reach: dict[str, set[str]] = {
        name: set(edges) if "*" in targets else set(targets) & set(edges)
        for name, targets in edges.items()
    }
    for _ in edges:
        for targets in reach.values():
            for target in list(targets):
                targets |= reach[target]
    rules = {}
    for name in edges:
        if name in reach[name]:
            rules[name] = "never"
        elif any(name in targets for targets in reach.values()):
            rules[name] = "after_direct_call"
        else:
            rules[name] = "always"
    return rules
