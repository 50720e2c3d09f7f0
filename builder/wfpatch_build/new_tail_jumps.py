# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replaced functions the new code may reach by an indirect jump, which leaves no frame.

New code is old code in its turn, on a revert. Its direct jumps to replaced functions are plain in
its relocations, where the host sees them; what an indirect jump reaches is said here: every
replaced function whose address is taken, by the stock object or by new code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from iced_x86 import Instruction, OpKind

from wfpatch_build.compiled_object import SHF_EXECINSTR
from wfpatch_build.control_flow import is_switch_jump
from wfpatch_build.elf_writer import OutRelocation, OutSection, OutSymbol
from wfpatch_build.instructions import decode, is_indirect_jump
from wfpatch_build.references import THROUGH_GOT

_JMP, _CALL, _TWO_BYTE = 0xE9, 0xE8, 0x0F
_JCC = range(0x80, 0x90)


def leaves_indirectly(section: OutSection, imports: Collection[str]) -> bool:
    """Whether the code has an indirect jump that is no switch over its own code.

    A jump through the GOT slot of an import goes to another object's code, which counts as a call
    of it. ``imports`` are the keys of undefined symbols that are such.
    """
    relocations = {relocation.offset: relocation for relocation in section.relocations}
    instructions = list(decode(section.data, 0))
    for index, instruction in enumerate(instructions):
        if not is_indirect_jump(instruction):
            continue
        if instruction.is_ip_rel_memory_operand:
            relocation = _within(relocations, instruction)
            if (
                relocation is not None
                and relocation.type in THROUGH_GOT
                and relocation.symbol in imports
            ):
                continue
            return True
        if instruction.op0_kind == OpKind.REGISTER and is_switch_jump(instructions, index):
            continue
        return True
    return False


def _within(
    relocations: Mapping[int, OutRelocation], instruction: Instruction
) -> OutRelocation | None:
    for at in range(instruction.ip, instruction.ip + instruction.len):
        if at in relocations:
            return relocations[at]
    return None


def addresses_taken(sections: Iterable[OutSection], addresses: Mapping[str, int]) -> set[int]:
    """Those of ``addresses`` (symbol key -> entry address) that new code or data takes.

    A reference counts as taken unless it is the distance of a direct call or jump.
    """
    taken = set()
    for section in sections:
        for relocation in section.relocations:
            address = addresses.get(relocation.symbol)
            if address is not None and not _is_branch(section, relocation):
                taken.add(address)
    return taken


def _is_branch(section: OutSection, relocation: OutRelocation) -> bool:
    data, at = section.data, relocation.offset
    if not section.flags & SHF_EXECINSTR or at < 1:
        return False
    if data[at - 1] in (_JMP, _CALL):
        return True
    return at >= 2 and data[at - 2] == _TWO_BYTE and data[at - 1] in _JCC


def new_tail_edges(
    sections: Iterable[OutSection],
    entries: Mapping[int, OutSymbol],
    names: Mapping[int, str],
    owners: Mapping[str, Mapping[str, object]],
    stock_taken: Collection[int],
) -> dict[int, list[str]]:
    """Entry address of each replaced function -> the replaced functions that its new code may
    reach by an indirect jump.

    ``entries`` are the new entries, ``names`` the replaced functions' by address, ``owners`` those
    of the undefined symbols by name, ``stock_taken`` the addresses that the stock object takes. An
    indirect jump in code that is no replaced function's own counts for all.
    """
    code = [section for section in sections if section.flags & SHF_EXECINSTR]
    imports = {f"undefined:{name}" for name, owner in owners.items() if owner["owner"] == "import"}
    known = {
        f"undefined:{name}": address
        for name, owner in owners.items()
        if owner["owner"] == "object"
        and isinstance(address := owner["address"], int)
        and address in names
    }
    taken = addresses_taken(sections, known) | (set(stock_taken) & set(names))
    reached = sorted({names[address] for address in taken})
    by_section: dict[int, list[int]] = {}
    for address, entry in entries.items():
        by_section.setdefault(id(entry.section), []).append(address)
    edges: dict[int, list[str]] = {address: [] for address in names}
    for section in code:
        if leaves_indirectly(section, imports):
            for address in by_section.get(id(section), sorted(names)):
                edges[address] = reached
    return edges
