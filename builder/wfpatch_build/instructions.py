# SPDX-License-Identifier: GPL-3.0-or-later
"""x86-64 instructions as the builder looks at them: a thin layer over iced-x86.

Addresses are link-time virtual addresses, sizes are in bytes.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register

BRANCHES = frozenset(
    (
        FlowControl.UNCONDITIONAL_BRANCH,
        FlowControl.CONDITIONAL_BRANCH,
        FlowControl.XBEGIN_XABORT_XEND,
    )
)
# After these, control does not reach the next byte. EXCEPTION is ud2 and its kin; int3 is an
# INTERRUPT to iced, but compilers emit it only where nothing may run on.
ENDS_FLOW = frozenset(
    (
        FlowControl.UNCONDITIONAL_BRANCH,
        FlowControl.INDIRECT_BRANCH,
        FlowControl.RETURN,
        FlowControl.EXCEPTION,
    )
)
NEAR_BRANCH_KINDS = frozenset((OpKind.NEAR_BRANCH64, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH16))
PADDING_MNEMONICS = frozenset((Mnemonic.NOP, Mnemonic.INT3))


def decode(data: bytes, address: int) -> Iterator[Instruction]:
    """Decode ``data`` as if loaded at ``address``, one instruction after the other.

    An undecodable byte appears as an instruction with code ``Code.INVALID``.
    """
    return iter(Decoder(64, data, ip=address))


def decode_one(data: bytes, address: int) -> Instruction:
    """The first instruction of ``data``."""
    return Decoder(64, data, ip=address).decode()


def last_instruction(data: bytes, address: int) -> Instruction | None:
    """The last instruction of ``data``, or None when it is empty."""
    kept = collections.deque(decode(data, address), maxlen=1)
    return kept[0] if kept else None


def is_valid(instruction: Instruction) -> bool:
    """Whether the bytes were an instruction at all."""
    return bool(instruction.code != Code.INVALID)


def is_call(instruction: Instruction) -> bool:
    """Whether it pushes a return address: a direct or indirect near call (a system call, which
    iced's flow control counts among the calls, does not)."""
    return bool(instruction.is_call_near or instruction.is_call_near_indirect)


def ends_flow(instruction: Instruction) -> bool:
    """Whether control never continues with the byte behind it (jmp, ret, ud2, int3, hlt)."""
    return instruction.flow_control in ENDS_FLOW or instruction.mnemonic in (
        Mnemonic.INT3,
        Mnemonic.HLT,
    )


def is_padding(instruction: Instruction) -> bool:
    """Whether assemblers and compilers use it to fill up to an alignment."""
    if instruction.mnemonic in PADDING_MNEMONICS:
        return True
    # gas also fills with `xchg %ax,%ax` (decoded as NOP) and, rarely, `lea 0(%rsi),%rsi`.
    return bool(
        instruction.mnemonic == Mnemonic.LEA
        and instruction.op0_register == instruction.memory_base
        and instruction.memory_index == Register.NONE
        and instruction.memory_displacement == 0
    )


def near_target(instruction: Instruction) -> int | None:
    """Target address of a direct jump, conditional jump, loop, xbegin or call; else None."""
    if instruction.op_count and instruction.op0_kind in NEAR_BRANCH_KINDS:
        return int(instruction.near_branch_target)
    return None


def jump_target(instruction: Instruction) -> int | None:
    """Target address of a direct jump of any kind that is not a call; else None."""
    return None if instruction.flow_control == FlowControl.CALL else near_target(instruction)


def rip_target(instruction: Instruction) -> int | None:
    """The address a RIP-relative memory operand names, or None."""
    if instruction.is_ip_rel_memory_operand:
        return int(instruction.ip_rel_memory_address)
    return None


def is_indirect_jump(instruction: Instruction) -> bool:
    """``jmp *reg`` or ``jmp *mem``."""
    return bool(instruction.flow_control == FlowControl.INDIRECT_BRANCH)
