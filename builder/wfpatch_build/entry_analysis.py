# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host must know about the entries of replaced functions, computed at build time.

Pure functions over an ObjectFile and function bounds; the results are the members of one entry of
``functions`` in the patch ELF's metadata (docs/patch-elf.md). Nothing here reads .symtab.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wfpatch_build.control_flow import ControlFlow, control_flow
from wfpatch_build.displacement import JUMP_LENGTH, first_instruction, hold_template
from wfpatch_build.instructions import is_call, last_instruction
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.padding import gaps, reachable_padding

ANYWHERE = "*"  # in tail_edges: an indirect jump that leaves the function


@dataclass(frozen=True)
class Piece:
    """A part of a function that the compiler placed elsewhere: ``kind`` is cold or part."""

    kind: str
    address: int
    size: int


@dataclass(frozen=True)
class OldFunction:
    """A function of the stock object that a patch replaces."""

    name: str
    address: int
    size: int
    pieces: tuple[Piece, ...] = ()
    file: str | None = None

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(start, size) of the main piece and then of all others."""
        return ((self.address, self.size), *((p.address, p.size) for p in self.pieces))


class EntryAnalysis:
    """Answers about one object's code. Whole-object indices are made once, on first use.

    ``functions`` are the known functions with their pieces, as far as symbols tell; code that
    only an FDE describes counts as a function of one piece.
    """

    def __init__(self, image: ObjectFile, functions: Iterable[OldFunction] = ()) -> None:
        self.image = image
        self._owner: dict[int, OldFunction] = {}
        for function in functions:
            for start, _ in function.bounds:
                self._owner.setdefault(start, function)
        for start, size in image.pieces:
            self._owner.setdefault(start, OldFunction(f"{start:#x}", start, size))
        self._flows: dict[tuple[tuple[int, int], ...], ControlFlow] = {}

    def flow(self, function: OldFunction) -> ControlFlow:
        found = self._flows.get(function.bounds)
        if found is None:
            found = self._flows[function.bounds] = control_flow(self.image, function.bounds)
        return found

    @functools.cached_property
    def _functions(self) -> tuple[OldFunction, ...]:
        unique = {function.bounds: function for function in self._owner.values()}
        return tuple(unique.values())

    @functools.cached_property
    def branch_targets(self) -> frozenset[int]:
        """Every entry and every target of a jump or call in the whole object."""
        targets = set(self._owner)
        for function in self._functions:
            flow = self.flow(function)
            targets |= flow.inside | flow.leaving | flow.calls
        return frozenset(targets)

    @functools.cached_property
    def addresses_taken(self) -> frozenset[int]:
        """Code addresses that an indirect jump may reach: stored, loaded, or exported ones."""
        taken = set(self.image.relative.values())
        taken |= {s.address for s in self.image.dynsym if s.section is not None}
        for function in self._functions:
            taken |= self.flow(function).addresses
        return frozenset(taken)

    @functools.cached_property
    def _gaps(self) -> list[tuple[int, int]]:
        return [
            run
            for run in gaps(self.image)
            if not any(run[0] <= t < run[0] + run[1] for t in self._targets_near(run))
        ]

    def _targets_near(self, run: tuple[int, int]) -> list[int]:
        return [a for a in range(run[0], run[0] + run[1]) if a in self.branch_targets]

    # -- one function -------------------------------------------------------------------------

    def ends_in_call(self, start: int, size: int) -> bool:
        """Whether the piece's last instruction is a call, so that its return address is its end."""
        last = last_instruction(self.image.read(start, size), start)
        return last is not None and is_call(last)

    def inner_entries(self, function: OldFunction) -> list[int]:
        """Offsets 1..4 of the entry at which some code of the object begins or is jumped to."""
        return [o for o in range(1, JUMP_LENGTH) if function.address + o in self.branch_targets]

    def padding(self, function: OldFunction, taken: Collection[int] = ()) -> tuple[int, int] | None:
        """(address, size) of never-executed fill in reach of a `jmp rel8` at the entry."""
        return reachable_padding(self._gaps, function.address, taken)

    def entry(self, function: OldFunction, taken: Collection[int] = ()) -> dict[str, Any]:
        """The metadata members that concern the entry. Raises displacement.NotRelocatable."""
        data = self.image.read(function.address, function.size)
        first = first_instruction(data, function.address)
        hold = hold_template(data, function.address, self.branch_targets)
        # One byte has no room for `jmp rel8`, five or more need none.
        run = self.padding(function, taken) if 2 <= first.length < JUMP_LENGTH else None
        return {
            "ends_in_call": self.ends_in_call(function.address, function.size),
            "displaced": first.displaced_json(),
            "hold": None if hold is None else hold.hold_json(),
            "padding": None if run is None else {"address": run[0], "size": run[1]},
            "inner_entries": self.inner_entries(function),
        }

    # -- a set of functions -------------------------------------------------------------------

    def tail_edges(self, replaced: Sequence[OldFunction]) -> dict[int, list[str]]:
        """Entry address of each replaced function -> where its old code may jump to.

        An edge leads to the name of a replaced function, or to ANYWHERE. A jump to code that is not
        replaced is followed through that code's own tail jumps, since it leaves no frame either.
        """
        entries = {function.address: function.name for function in replaced}
        return {function.address: self._edges_of(function, entries) for function in replaced}

    def _edges_of(self, function: OldFunction, entries: Mapping[int, str]) -> list[str]:
        edges: set[str] = set()
        if function.address in self.flow(function).inside:
            edges.add(function.name)  # a loop whose head is the entry itself
        seen: set[int] = set()
        pending = [function]
        while pending:
            flow = self.flow(pending.pop())
            if flow.leaves_anywhere:
                edges.add(ANYWHERE)
            for target in flow.leaving | self._through_slots(flow):
                target = self._resolve_plt(target)
                if target in entries:
                    edges.add(entries[target])
                    continue
                owner = self._owner_at(target)
                if owner is None or owner.address in seen or owner.address == function.address:
                    continue
                seen.add(owner.address)
                if owner.address not in entries:
                    pending.append(owner)
        return sorted(edges)

    def _owner_at(self, address: int) -> OldFunction | None:
        piece = self.image.piece_at(address)
        return self._owner.get(address) or (None if piece is None else self._owner.get(piece[0]))

    @functools.cached_property
    def _exported(self) -> dict[str, int]:
        return {s.name: s.address for s in self.image.dynsym if s.section is not None}

    def _resolve_plt(self, address: int) -> int:
        """A PLT entry that may resolve to this very object counts as that function's entry."""
        name = self.image.plt.get(address)
        return address if name is None else self._exported.get(name, address)

    @functools.cached_property
    def _slot_targets(self) -> dict[int, int]:
        targets = dict(self.image.relative)
        for name, slots in self.image.got_slots.items():
            if name in self._exported:
                targets.update(dict.fromkeys(slots, self._exported[name]))
        return targets

    def _through_slots(self, flow: ControlFlow) -> set[int]:
        return {self._slot_targets[slot] for slot in flow.slots if slot in self._slot_targets}

    def migrate_modes(
        self, replaced: Sequence[OldFunction], edges: Mapping[int, Sequence[str]]
    ) -> dict[int, str]:
        """Entry address -> ``always``, ``after_direct_call`` or ``never`` (MECHANISM: tail calls).

        A thread that reaches an entry by a tail jump from old code has no frame to show for it. A
        direct call of this very function in front of [rsp] disproves that, unless the function
        can reach itself by tail jumps: then even that call may be an old one's.
        """
        by_name: dict[str, set[int]] = {}
        for function in replaced:
            by_name.setdefault(function.name, set()).add(function.address)
        taken = {f.address for f in replaced if f.address in self.addresses_taken}
        graph = {
            address: set().union(*(taken if n == ANYWHERE else by_name[n] for n in names))
            for address, names in edges.items()
        }
        reached = set().union(*graph.values()) if graph else set()
        modes = {}
        for address in graph:
            if address in _closure(graph, address):
                modes[address] = "never"
            else:
                modes[address] = "after_direct_call" if address in reached else "always"
        return modes


def _closure(graph: Mapping[int, set[int]], start: int) -> set[int]:
    """Everything that can be reached from ``start`` by one edge or more."""
    seen: set[int] = set()
    pending = list(graph[start])
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += graph.get(node, ())
    return seen


def describe_functions(
    analysis: EntryAnalysis, replaced: Sequence[OldFunction]
) -> list[dict[str, Any]]:
    """The entry-related metadata of all replaced functions of one patch, in the given order."""
    edges = analysis.tail_edges(replaced)
    modes = analysis.migrate_modes(replaced, edges)
    taken: set[int] = set()
    described = []
    for function in replaced:
        members = analysis.entry(function, taken)
        if members["padding"] is not None:
            taken.add(members["padding"]["address"])
        described.append(
            {
                "name": function.name,
                "file": function.file,
                "address": function.address,
                "size": function.size,
                "pieces": [
                    {
                        "kind": piece.kind,
                        "address": piece.address,
                        "size": piece.size,
                        "ends_in_call": analysis.ends_in_call(piece.address, piece.size),
                    }
                    for piece in function.pieces
                ],
                **members,
                "tail_edges": edges[function.address],
                "migrate": modes[function.address],
            }
        )
    return described
