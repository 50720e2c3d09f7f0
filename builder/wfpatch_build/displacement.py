# SPDX-License-Identifier: GPL-3.0-or-later
"""Position-independent copies ("templates") of a function's first instructions.

The applier places such a copy in its region as the *old continuation* of an armed function. It does
not decode instructions, so all that depends on the place is given as 32-bit PC-relative fixups:
at ``code[offset]`` goes ``runtime(target) + addend - address_of(code[offset])``.
Encodings: Intel SDM vol. 2, opcodes E8, E9, 0F 8x, E0..E3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic

from wfpatch_build.instructions import ends_flow, is_call, is_valid, near_target, rip_target

JUMP_LENGTH = 5  # e9 rel32: what the armed entry holds
ENTRY_CFA_OFFSET = 8  # at a function's entry the CFA is rsp + 8 (System V ABI, 3.2.2)

_COUNTED_JUMPS = frozenset(
    (Mnemonic.LOOP, Mnemonic.LOOPE, Mnemonic.LOOPNE, Mnemonic.JRCXZ, Mnemonic.JECXZ)
)


class NotRelocatable(Exception):
    """An instruction has no copy that works elsewhere; the text says which and why."""


@dataclass(frozen=True)
class Fixup:
    """``code[offset:offset+4]`` = runtime(target) + addend - address_of(code[offset])."""

    offset: int
    addend: int
    target: int

    def to_json(self) -> dict[str, int]:
        return {"offset": self.offset, "addend": self.addend, "target": self.target}


@dataclass(frozen=True)
class Template:
    """A copy of the first ``length`` bytes of a function, whole instructions."""

    length: int
    code: bytes
    fixups: tuple[Fixup, ...]
    falls_through: bool
    is_call: bool
    boundaries: tuple[tuple[int, int], ...]

    def displaced_json(self) -> dict[str, Any]:
        """As the ``displaced`` member of the patch ELF's metadata."""
        return {
            "length": self.length,
            "code": self.code.hex(),
            "fixups": [fixup.to_json() for fixup in self.fixups],
            "falls_through": self.falls_through,
            "is_call": self.is_call,
            "frame": {"cfa_offset": ENTRY_CFA_OFFSET},
        }

    def hold_json(self) -> dict[str, Any]:
        """As the ``hold`` member of the patch ELF's metadata."""
        return {
            "length": self.length,
            "code": self.code.hex(),
            "fixups": [fixup.to_json() for fixup in self.fixups],
            "boundaries": [list(pair) for pair in self.boundaries],
            "falls_through": self.falls_through,
        }


def relocated(instruction: Instruction, raw: bytes) -> tuple[bytes, tuple[Fixup, ...]]:
    """Copy of one instruction that works at any address within +-2 GiB of its targets.

    ``raw`` are the instruction's bytes. Short branches become long ones; fixup offsets count from
    the copy's first byte. Raises NotRelocatable.
    """
    if not is_valid(instruction):
        raise NotRelocatable(f"bytes {raw.hex()} at {instruction.ip:#x} are no instruction")
    target = near_target(instruction)
    if target is not None:
        return _relocated_branch(instruction, target)
    memory = rip_target(instruction)
    if memory is None:
        return raw, ()
    decoder = Decoder(64, raw, ip=instruction.ip)
    # Valid only for what this very decoder decoded last.
    offsets = decoder.get_constant_offsets(decoder.decode())
    if offsets.displacement_size != 4:
        raise NotRelocatable(
            f"RIP-relative operand at {instruction.ip:#x} has no 32-bit displacement"
        )
    at = offsets.displacement_offset
    blank = raw[:at] + bytes(4) + raw[at + 4 :]
    # The CPU adds the displacement to the end of the instruction, an immediate included.
    return blank, (Fixup(at, at - len(raw), memory),)


def _relocated_branch(instruction: Instruction, target: int) -> tuple[bytes, tuple[Fixup, ...]]:
    flow = instruction.flow_control
    if flow == FlowControl.UNCONDITIONAL_BRANCH:
        return b"\xe9" + bytes(4), (Fixup(1, -4, target),)
    if flow == FlowControl.CALL:
        return b"\xe8" + bytes(4), (Fixup(1, -4, target),)
    if instruction.mnemonic in _COUNTED_JUMPS:
        opcode = {
            Mnemonic.LOOPNE: b"\xe0",
            Mnemonic.LOOPE: b"\xe1",
            Mnemonic.LOOP: b"\xe2",
            Mnemonic.JRCXZ: b"\xe3",
            Mnemonic.JECXZ: b"\x67\xe3",
        }[instruction.mnemonic]
        # taken: over the short jump, to the long one; not taken: over both.
        return opcode + b"\x02\xeb\x05\xe9" + bytes(4), (Fixup(len(opcode) + 4, -4, target),)
    if flow == FlowControl.CONDITIONAL_BRANCH:
        # iced's ConditionCode numbers 1..16 are o, no, b, ... in the order of opcodes 0F 80..8F.
        condition = int(instruction.condition_code) - 1
        return bytes((0x0F, 0x80 + condition)) + bytes(4), (Fixup(2, -4, target),)
    raise NotRelocatable(f"branch at {instruction.ip:#x} ({instruction}) has no long form")


def first_instruction(data: bytes, address: int) -> Template:
    """Template of the first instruction of ``data`` at ``address``. Raises NotRelocatable."""
    return whole_instructions(data, address, 1)


def whole_instructions(data: bytes, address: int, at_least: int) -> Template:
    """Template of as many whole instructions as are needed to cover ``at_least`` bytes.

    Raises NotRelocatable when ``data`` ends first or an instruction cannot be copied.
    """
    code = b""
    fixups: list[Fixup] = []
    boundaries: list[tuple[int, int]] = []
    length = 0
    last: Instruction | None = None
    calls = False
    for instruction in Decoder(64, data, ip=address):
        boundaries.append((length, len(code)))
        piece, its_fixups = relocated(instruction, data[length : length + instruction.len])
        fixups += [Fixup(f.offset + len(code), f.addend, f.target) for f in its_fixups]
        code += piece
        length += instruction.len
        calls = calls or is_call(instruction)
        last = instruction
        if length >= at_least:
            break
    if last is None or length < at_least:
        raise NotRelocatable(f"fewer than {at_least} bytes of code at {address:#x}")
    return Template(length, code, tuple(fixups), not ends_flow(last), calls, tuple(boundaries))


def hold_template(data: bytes, address: int, branch_targets: Iterable[int]) -> Template | None:
    """What is displaced when ``jmp rel32`` is written while all threads are held.

    ``data`` is the function's main piece; ``branch_targets`` are all known branch targets and
    entries of the object. None when the function is too short, when something jumps between the
    displaced instructions, or when one of them is a call (its return address would lie inside).
    """
    try:
        template = whole_instructions(data, address, JUMP_LENGTH)
    except NotRelocatable:
        return None
    if template.is_call:
        return None
    inside = range(address + 1, address + template.length)
    if any(target in inside for target in branch_targets):
        return None
    return template
