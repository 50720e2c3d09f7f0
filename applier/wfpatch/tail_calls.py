# SPDX-License-Identifier: GPL-3.0-or-later
"""How a slot may migrate, by the tail edges into its function.

A thread asleep in f that then jumps to replaced g leaves no frame of f: g's entry must not move it
on f's behalf. The patch ELF says this for the code as shipped (``migrate``). New code becomes old
code in its turn, on a revert or under the next patch, and its tail edges count then.
"""

from __future__ import annotations

from .patch_elf import ObjectSymbol, PatchElf, PatchRelocation, PatchSection

_STRICTNESS = ("always", "after_direct_call", "never")
_JMP = 0xE9
_JCC = range(0x80, 0x90)  # after 0f


def strictest(*modes: str) -> str:
    """The mode under which the fewest threads migrate."""
    return max(modes, key=_STRICTNESS.index)


def _is_jump(section: PatchSection, relocation: PatchRelocation) -> bool:
    """Whether the relocated field is the distance of a jmp or jcc (a byte before that looks like
    one is taken for it: that errs on the side of caution)."""
    data, at = section.data, relocation.offset
    if at >= 1 and data[at - 1] == _JMP:
        return True
    return at >= 2 and data[at - 2] == 0x0F and data[at - 1] in _JCC


def new_tail_edges(patch: PatchElf) -> dict[int, set[int]]:
    """Jumps of new code to replaced functions: link-time address -> those it jumps to.

    The direct ones are plain in the relocations, the indirect ones are what the builder says. A
    jump from code of the patch that is no replaced function's own section counts for all.
    """
    by_address = {function.address for function in patch.functions}
    by_name: dict[str, set[int]] = {}
    for function in patch.functions:
        by_name.setdefault(function.name, set()).add(function.address)
    owners: dict[int, list[int]] = {}
    for function in patch.functions:
        owners.setdefault(function.entry.section, []).append(function.address)
    edges: dict[int, set[int]] = {
        function.address: set().union(*(by_name[name] for name in function.new_tail_edges))
        for function in patch.functions
    }
    for index, section in patch.sections.items():
        if not section.executable:
            continue
        for relocation in section.relocations:
            owner = patch.symbols[relocation.symbol].owner
            if not isinstance(owner, ObjectSymbol) or owner.address not in by_address:
                continue
            if _is_jump(section, relocation):
                for caller in owners.get(index, sorted(by_address)):
                    edges[caller].add(owner.address)
    return edges


def _reaches(edges: dict[int, set[int]], start: int, goal: int) -> bool:
    seen: set[int] = set()
    todo = list(edges.get(start, ()))
    while todo:
        at = todo.pop()
        if at == goal:
            return True
        if at not in seen:
            seen.add(at)
            todo.extend(edges.get(at, ()))
    return False


def modes(patch: PatchElf) -> dict[int, str]:
    """Link-time entry address -> the mode for every transition from or to the patch's code."""
    edges = new_tail_edges(patch)
    reached = {target for targets in edges.values() for target in targets}
    result = {}
    for function in patch.functions:
        address = function.address
        mode = function.migrate
        if address in reached:
            circle = _reaches(edges, address, address)
            mode = strictest(mode, "never" if circle else "after_direct_call")
        result[address] = mode
    return result
