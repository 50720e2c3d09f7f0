# SPDX-License-Identifier: GPL-3.0-or-later
"""A transition of a process: opened, carried on by the threads themselves, finished.

All its state is in the process: the header's note says which rows it moves from where to where and
how far it is, so any later run can go on from there or turn it round. The stores and their order
come from generation_table.py; when they may be done is decided by observe.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from .elf_object import auxiliary_vector
from .errors import Refused
from .generation_table import (
    RegionMove,
    Source,
    Transition,
    allocate,
    finish_held,
    finish_rows,
    start,
)
from .live_process import LiveProcess
from .live_region import LiveRegion
from .plan import AT_HWCAP2, HWCAP2_FSGSBASE, stub_calls_known
from .region_header import (
    Generation,
    NewCode,
    PatchNote,
    RowUse,
    SourceNote,
    TransitionNote,
)
from .rows import used_rows
from .self_check_stub import MODES, Counters, Descriptor
from .thread_stack import Stacks

SCAN_CAP = 256 << 10


def target_generation(
    live: LiveRegion, number: int, row: int, patches: Sequence[PatchNote]
) -> Generation:
    """The generation in which ``patches`` are in force, oldest first: the last one wins a slot."""
    code: dict[int, NewCode] = {}
    for note in patches:
        loaded = next(item for item in live.header.loaded if item.digest == note.digest)
        code.update({item.slot: item for item in loaded.code})
    return Generation(number, row, tuple(patches), tuple(code[slot] for slot in sorted(code)))


def note_transition(
    process: LiveProcess,
    live: LiveRegion,
    kind: str,
    patches: Sequence[PatchNote],
    policy: str,
    timeout: int,
) -> None:
    """Note a transition to ``patches`` in the header, phase ``arm``: nothing depends on it yet.

    From an open transition (a revert of it), its target row is the source.
    """
    header = live.header
    number = max(process.generation, *(g.number for g in header.generations)) + 1
    earlier = header.transition
    if earlier is None:
        sources: tuple[tuple[tuple[int, ...], int, bool], ...] = (
            (used_rows(process), header.generation, True),
        )
    else:
        settled: list[int] = []
        for source in earlier.sources:
            settled += source.rows
            if source.held_row is not None:
                settled.append(source.held_row)
        sources = (
            (tuple(sorted(settled)), header.generation, False),
            ((earlier.target_row,), earlier.target_generation, True),
        )
    target_row, held = allocate(process.free_rows(), sum(moved for _, _, moved in sources))
    remaining = list(held)
    notes = tuple(
        SourceNote(rows, generation, remaining.pop(0) if moved else None)
        for rows, generation, moved in sources
    )
    target = target_generation(live, number, target_row, patches)
    needed = {header.generation, *(note.generation for note in notes)}
    kept = tuple(g for g in header.generations if g.number in needed)
    live.write_header(
        replace(
            header,
            generations=(*kept, target),
            transition=TransitionNote(
                kind=kind,
                source_generation=header.generation,
                target_generation=number,
                sources=notes,
                target_row=target_row,
                policy=policy,
                started=int(time.time()),
                timeout=timeout,
                phase="arm",
            ),
        )
    )


def current_note(live: LiveRegion) -> TransitionNote:
    """The open transition's note."""
    note = live.header.transition
    if note is None:
        raise AssertionError("no transition is open")
    return note


def moving_patches(live: LiveRegion) -> dict[str, str]:
    """Digest -> id of the patches that some thread may have, and another not.

    A revert of an open transition has threads in three generations; the first and the last of them
    are alike.
    """
    note = current_note(live)
    numbers = {note.target_generation, *(source.generation for source in note.sources)}
    sides = [
        {patch.digest: patch.id for patch in live.generation(number).patches}
        for number in sorted(numbers)
    ]
    everywhere = set(sides[0]).intersection(*sides)
    return {
        digest: patch_id
        for side in sides
        for digest, patch_id in side.items()
        if digest not in everywhere
    }


def set_phase(live: LiveRegion, phase: str) -> None:
    """Note how far the transition is. Rows count as used before a thread can enter them."""
    note = current_note(live)
    rows = {use.row: use for use in live.header.rows}
    if phase != "arm":
        for source in note.sources:
            for row in source.rows:
                rows[row] = RowUse(row, source.generation, "generation")
            if source.held_row is not None:
                rows[source.held_row] = RowUse(source.held_row, source.generation, "held")
        rows[note.target_row] = RowUse(note.target_row, note.target_generation, "generation")
    live.note(
        transition=replace(note, phase=phase),
        rows=tuple(rows[row] for row in sorted(rows)),
    )


def _modes(process: LiveProcess, live: LiveRegion) -> dict[int, int]:
    """How the check routine may migrate a thread at each entry.

    Where a filter that cannot be read might answer its system calls, it makes none: each thread
    goes to the held row, from where the backend moves it.
    """
    silent = not stub_calls_known(process)
    return {
        live.region.cell_index(slot.index): MODES["never" if silent else slot.migrate]
        for slot in live.header.slots
    }


def moved_slots(live: LiveRegion, source: int) -> list[int]:
    """The slots whose code differs between a source generation and the target."""
    note = current_note(live)
    old = live.code(live.generation(source))
    new = live.code(live.generation(note.target_generation))
    return [slot for slot in sorted(new) if old[slot] != new[slot]]


def old_intervals(live: LiveRegion, source: int) -> list[tuple[int, int]]:
    """Closed intervals of the code that a thread of ``source`` must have left."""
    generation = live.generation(source)
    return [
        piece.interval
        for slot in moved_slots(live, source)
        for piece in live.pieces(generation, slot)
        if piece.interval[0] <= piece.interval[1]
    ]


def _descriptor(
    process: LiveProcess, live: LiveRegion, source: SourceNote, stacks: Stacks
) -> bytes:
    note = current_note(live)
    held = source.held_row
    if held is None:
        raise AssertionError("a source without a held row needs no descriptor")
    region = live.region
    hardware = auxiliary_vector(process.target.pid).get(AT_HWCAP2, 0)
    main = stacks.main
    descriptor = Descriptor(
        target_row=note.target_row,
        held_row=held,
        fsgsbase=bool(hardware & HWCAP2_FSGSBASE),
        scan_cap=SCAN_CAP,
        ranges=(
            *old_intervals(live, source.generation),
            *live.pending_intervals(),
            *((address, address) for address in sorted(stacks.signal_returns)),
        ),
        modes=_modes(process, live),
        text=(*live.image.text, (region.text, region.end)),
        main_tcb=main.tcb if main else 0,
        main_low=main.low if main else 0,
        main_high=main.high if main else 0,
        stackblock=stacks.stackblock,
        stacks=stacks.listed,
    )
    at = region.descriptor(held)
    limit = region.layout.descriptor_size
    try:
        return descriptor.encode(at, region.layout.cells, limit)
    except Refused:
        if not stacks.listed:
            raise
    # Bounds of single threads are a help where glibc's own could not be found; without them those
    # threads go to the held row and are moved from outside.
    return replace(descriptor, stacks=()).encode(at, region.layout.cells, limit)


def _idle_descriptor(live: LiveRegion, note: TransitionNote, held: int) -> bytes:
    """For a region that the transition leaves alone: no range, so nothing is ever old."""
    descriptor = Descriptor(note.target_row, held, False, SCAN_CAP, ())
    layout = live.region.layout
    return descriptor.encode(live.region.descriptor(held), layout.cells, layout.descriptor_size)


def table_transition(process: LiveProcess, live: LiveRegion, stacks: Stacks | None) -> Transition:
    """The transition over all regions, for generation_table.py.

    ``stacks`` is needed to open one; to finish it, the descriptors are as they lie in memory.
    """
    note = current_note(live)
    moves = []
    for region in process.regions:
        own = region is live
        current = region.code(region.generation())
        descriptors: list[bytes | None] = []
        for source in note.sources:
            if source.held_row is None:
                descriptors.append(None)
            elif stacks is None:
                descriptors.append(b"")
            elif own:
                descriptors.append(_descriptor(process, live, source, stacks))
            else:
                descriptors.append(_idle_descriptor(region, note, source.held_row))
        moves.append(
            RegionMove(
                region.region,
                region.code(region.generation(note.target_generation)) if own else current,
                tuple(
                    region.code(region.generation(source.generation)) if own else current
                    for source in note.sources
                ),
                tuple(descriptors),
            )
        )
    return Transition(
        tuple(Source(source.rows, source.held_row) for source in note.sources),
        note.target_row,
        tuple(moves),
    )


def open_transition(process: LiveProcess, live: LiveRegion, stacks: Stacks) -> None:
    """The source rows come to lead to the self-check; observing may begin when this returns."""
    table = table_transition(process, live, stacks)
    set_phase(live, "start")
    live.carry_out(start(table))
    set_phase(live, "open")


def finish_source_rows(process: LiveProcess, live: LiveRegion) -> None:
    """Once every task was seen quiescent or in the target row."""
    set_phase(live, "finish_rows")
    live.carry_out(finish_rows(table_transition(process, live, None)))


def complete(process: LiveProcess, live: LiveRegion) -> None:
    """Once no task is in a held row or in stub text: the held rows follow, the transition ends."""
    set_phase(live, "finish_held")
    live.carry_out(finish_held(table_transition(process, live, None)))
    settle(live)


def settle(live: LiveRegion) -> None:
    """Note that every row leads to the target generation's code."""
    note = current_note(live)
    target = live.generation(note.target_generation)
    live.note(
        generation=target.number,
        generations=(target,),
        transition=None,
        rows=tuple(RowUse(use.row, target.number, "generation") for use in live.header.rows),
    )


def abandon(live: LiveRegion) -> None:
    """Take back the note of a transition that was never opened."""
    header = live.header
    live.note(transition=None, generations=(live.generation(header.generation),))


def counters(live: LiveRegion) -> Counters:
    """What the check routine counted in the open transition, over all its sources."""
    total = [0] * len(Counters.__dataclass_fields__)
    for source in current_note(live).sources:
        if source.held_row is None:
            continue
        block = live.memory.read(live.region.descriptor(source.held_row), 256)
        counted = Counters.decode(block)
        total = [
            one + getattr(counted, name) for one, name in zip(total, Counters.__dataclass_fields__)
        ]
    return Counters(*total)
