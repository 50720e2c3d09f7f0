# SPDX-License-Identifier: GPL-3.0-or-later
"""The generation tables: which stores make, open and finish a transition, and in which order.

Pure planning: the result is a list of steps that the engine carries out one by one. The order is
what keeps a thread that reads the tables at any moment consistent:

- a row is complete in the tables of every region before any thread can enter it;
- a descriptor is complete before a row points to it, and a row points to it before one of its
  dispatch cells leads to a thunk;
- on finish a row's dispatch cells take the new code before its plain cells, and its descriptor
  pointer goes last (a thread in the thunk that finds none runs the plain cell);
- older rows are finished before the held rows.

All stores are of 8 bytes, aligned: misaligned ones tear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from .errors import Failed, Refused
from .region import Region


@dataclass(frozen=True)
class Store:
    """One aligned 8-byte store."""

    address: int
    value: int

    def __post_init__(self) -> None:
        if self.address % 8:
            raise AssertionError(f"a misaligned store to {self.address:#x} would tear")


@dataclass(frozen=True)
class Block:
    """Bytes that no thread reads yet."""

    address: int
    data: bytes


Step = Union[Store, Block]

Code = Mapping[int, int]
"""slot -> address of plain code, for every slot that the region has given out."""


@dataclass(frozen=True)
class Source:
    """Rows of one generation that a transition leaves behind.

    ``rows`` are theirs, ``held_row`` a free row for threads that may not migrate yet; None where no
    function differs from the target.
    """

    rows: tuple[int, ...]
    held_row: int | None


@dataclass(frozen=True)
class RegionMove:
    """What a transition means to one region.

    ``target`` is the code of the target generation; ``sources`` the code of each source, in the
    order of the transition's sources; ``descriptors`` the encoded descriptor of each source, None
    where it has no held row.
    """

    region: Region
    target: Code
    sources: tuple[Code, ...]
    descriptors: tuple[bytes | None, ...]


@dataclass(frozen=True)
class Transition:
    """A transition over all regions of a process: sources, oldest first, and the target row."""

    sources: tuple[Source, ...]
    target_row: int
    moves: tuple[RegionMove, ...]


def initialise(region: Region) -> list[Step]:
    """The row numbers of a fresh region; every other cell is zero until a slot is given out."""
    return [Store(region.row_cell(row), row) for row in range(region.layout.rows)]


def open_slot(
    region: Region, slot: int, entry: int, continuation: int, code: Mapping[int, int] | None = None
) -> list[Step]:
    """Give out a slot: it leads to the old continuation in every row, before its entry is armed.

    ``code`` (row -> address) are rows in which the function has other code.
    """
    steps: list[Step] = [Store(region.entry_cell(slot), entry)]
    for row in range(region.layout.rows):
        value = (code or {}).get(row, continuation)
        steps.append(Store(region.plain_cell(row, slot), value))
        steps.append(Store(region.dispatch_cell(row, slot), value))
    return steps


def _differing(source: Code, target: Code) -> list[int]:
    if source.keys() != target.keys():
        raise Failed(
            "applier_failed",
            "the generations of a transition do not cover the same slots: "
            f"{sorted(source.keys() ^ target.keys())[:8]}",
        )
    return [slot for slot in sorted(target) if source[slot] != target[slot]]


def differing(transition: Transition, source: int) -> list[list[int]]:
    """The slots of each region whose code differs between a source and the target."""
    return [_differing(move.sources[source], move.target) for move in transition.moves]


def _fill(region: Region, row: int, code: Code, thunks: Iterable[int] = ()) -> list[Step]:
    """Complete a row that no thread can read yet."""
    behind = set(thunks)
    steps: list[Step] = []
    for slot in sorted(code):
        steps.append(Store(region.plain_cell(row, slot), code[slot]))
        value = region.thunk(slot) if slot in behind else code[slot]
        steps.append(Store(region.dispatch_cell(row, slot), value))
    steps.append(Store(region.row_cell(row), row))
    return steps


def _check(transition: Transition) -> None:
    used: list[int] = [transition.target_row]
    for source in transition.sources:
        used += source.rows
        if source.held_row is not None:
            used.append(source.held_row)
    rows = {move.region.layout.rows for move in transition.moves}
    if len(set(used)) != len(used):
        raise Failed("applier_failed", f"a transition uses a row twice: {used}")
    if len(rows) != 1 or not all(0 <= row < min(rows) for row in used):
        raise Refused("generation_exhausted", f"rows {used} are not all in tables of {rows} rows")
    for index, source in enumerate(transition.sources):
        moved = any(differing(transition, index))
        if moved and source.held_row is None:
            raise Failed("applier_failed", f"rows {source.rows} have code to leave but no held row")
        for move in transition.moves:
            if (source.held_row is None) != (move.descriptors[index] is None):
                raise Failed("applier_failed", f"rows {source.rows}: held row without descriptor")


def start(transition: Transition) -> list[Step]:
    """Open a transition: the target row, the held rows, then the source rows' thunks.

    Until the last step is done no observation counts. Source rows whose code does not differ from
    the target's stay as they are: they are the target generation already.
    """
    _check(transition)
    steps: list[Step] = []
    for move in transition.moves:
        row = transition.target_row
        steps += _fill(move.region, row, move.target)
        steps.append(Store(move.region.descriptor_cell(row), 0))
    for index, source in enumerate(transition.sources):
        if source.held_row is None:
            continue
        for move in transition.moves:
            descriptor = move.descriptors[index]
            if descriptor is None:
                continue
            at = move.region.descriptor(source.held_row)
            steps.append(Block(at, descriptor))
            steps.append(Store(move.region.descriptor_cell(source.held_row), at))
            code = move.sources[index]
            thunks = _differing(code, move.target)
            steps += _fill(move.region, source.held_row, code, thunks)
    for source in transition.sources:
        if source.held_row is None:
            continue
        for move in transition.moves:
            at = move.region.descriptor(source.held_row)
            steps += [Store(move.region.descriptor_cell(row), at) for row in source.rows]
    for index, source in enumerate(transition.sources):
        if source.held_row is None:
            # A row of an older transition may still lead to its thunks; its plain code is the
            # target's.
            steps += _finish(transition, index, source.rows)
            continue
        for move in transition.moves:
            slots = _differing(move.sources[index], move.target)
            for row in source.rows:
                steps += [
                    Store(move.region.dispatch_cell(row, slot), move.region.thunk(slot))
                    for slot in slots
                ]
    return steps


def _finish(transition: Transition, index: int, rows: Sequence[int]) -> list[Step]:
    """Rows take the target's code, each at one store: that of its descriptor.

    As long as the row has one, its slots lead to the check, and nobody reads its plain cells; from
    then on they are what the slots behind the check mean, and the slots may follow one by one. Were
    a slot stored first, a thread could run new code in the row, come to a slot that still leads to
    the check, decline because of a stale word, and run old code within the new. In a process forked
    at that moment there is nobody to store the rest, ever.
    """
    steps: list[Step] = []
    for row in rows:
        for move in transition.moves:
            steps += [
                Store(move.region.plain_cell(row, slot), move.target[slot])
                for slot in sorted(move.target)
            ]
        steps += [Store(move.region.descriptor_cell(row), 0) for move in transition.moves]
        for move in transition.moves:
            steps += [
                Store(move.region.dispatch_cell(row, slot), move.target[slot])
                for slot in sorted(move.target)
            ]
    return steps


def finish_rows(transition: Transition) -> list[Step]:
    """The source rows take the target's code, oldest first.

    To be done once every task was seen, after the last step of start(), in the target row or
    quiescent in a source row, with no address of stub text in its registers or on its stack.
    """
    _check(transition)
    steps: list[Step] = []
    for index, source in enumerate(transition.sources):
        steps += _finish(transition, index, source.rows)
    return steps


def finish_held(transition: Transition) -> list[Step]:
    """The held rows take the target's code.

    To be done once every task was seen, after the last step of finish_rows(), outside the held rows
    and outside stub text: a thread that was in the check routine while the source rows were
    finished may still have entered a held row.
    """
    _check(transition)
    steps: list[Step] = []
    for index, source in enumerate(transition.sources):
        if source.held_row is not None:
            steps += _finish(transition, index, (source.held_row,))
    return steps


def switch_all(transition: Transition) -> list[Step]:
    """The policy ``global``: while all tasks are held and quiescent, every row takes the target's
    code. Needs no thunk, descriptor or held row."""
    steps: list[Step] = []
    for move in transition.moves:
        steps += _fill(move.region, transition.target_row, move.target)
    for index, source in enumerate(transition.sources):
        rows = source.rows + ((source.held_row,) if source.held_row is not None else ())
        steps += _finish(transition, index, rows)
    return steps


def allocate(free_rows: Sequence[int], distinct_sources: int) -> tuple[int, tuple[int, ...]]:
    """(target row, one held row for each source whose code differs), lowest free rows first.

    Raises Refused("generation_exhausted") when recycling is needed first.
    """
    needed = 1 + distinct_sources
    rows = sorted(free_rows)
    if len(rows) < needed:
        raise Refused(
            "generation_exhausted",
            f"the transition needs {needed} rows, {len(rows)} are free; rows are recycled once "
            "every task's GS base was read",
            needed=needed,
            free=len(rows),
        )
    return rows[0], tuple(rows[1:needed])


def recycle(rows: int, in_use: Iterable[int], keep: Iterable[int]) -> tuple[int, ...]:
    """The rows that are free after a visit of every task.

    ``in_use`` are the rows read from the tasks' GS bases, all seen outside stub text; ``keep``
    those that a record needs (the current generation's row, the rows of an open transition). Row 0
    is never free: a GS base of 0 is what a thread has that nobody moved.
    """
    kept = {0, *in_use, *keep}
    return tuple(row for row in range(rows) if row not in kept)
