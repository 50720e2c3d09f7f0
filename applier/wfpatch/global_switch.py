# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy ``global``, the classic method: all threads stopped and checked at once, then
switched, or let go and tried again.

Killed in the middle of the stores, an applier must leave every thread consistent in itself: each
row is therefore written in one piece, so that a thread finds its row all old or all new.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .backend import Visit
from .errors import Failed
from .events import nobody, threads_facts
from .live_process import LiveProcess
from .live_region import LiveRegion
from .observe import all_pending, names_of
from .outcome import Outcome
from .region import CELLS_PER_PAGE, SLOTS_PER_PAGE
from .report import Straggler
from .thread_stack import Threads, words_inside_thread
from .transition import current_note, old_intervals, set_phase, settle

HOLD_TIMEOUT = 2.0
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.2


def _row_blocks(
    live: LiveRegion, code: dict[int, int], rows: Sequence[int]
) -> list[tuple[int, bytes]]:
    """(address, bytes) of the whole run of slots, for each row and page of both tables."""
    region = live.region
    blocks = []
    for row in rows:
        for cell in (region.dispatch_cell, region.plain_cell):
            for page in range(region.layout.table_pages):
                first = page * SLOTS_PER_PAGE
                slots = [slot for slot in code if first <= slot < first + SLOTS_PER_PAGE]
                if not slots:
                    continue
                words = [code.get(slot, 0) for slot in range(first, max(slots) + 1)]
                if len(words) > CELLS_PER_PAGE:
                    raise AssertionError("a row's page has outgrown its place")
                data = b"".join(word.to_bytes(8, "little") for word in words)
                blocks.append((cell(row, first), data))
    return blocks


def switch_globally(process: LiveProcess, live: LiveRegion, deadline: float) -> Outcome:
    """Find a moment at which no thread has a frame of the code to leave, and switch all rows.

    Gives up at ``deadline`` with the threads that were in the way at the last attempt; the process
    is as before then, and a later run may try again.
    """
    note = current_note(live)
    if note.phase == "arm":
        set_phase(live, "open")
    note = current_note(live)
    rows = sorted(
        {note.target_row}
        | {row for source in note.sources for row in source.rows}
        | {source.held_row for source in note.sources if source.held_row is not None}
    )
    code = live.code(live.generation(note.target_generation))
    blocks = _row_blocks(live, code, rows)
    descriptors = [live.region.descriptor_cell(row) for row in rows]
    intervals = [
        interval
        for source in note.sources
        if source.held_row is not None
        for interval in old_intervals(live, source.generation)
    ] + all_pending(process)
    names = names_of(live)
    threads = Threads(process)
    pause = FIRST_PAUSE
    while True:
        stragglers: tuple[Straggler, ...] = ()
        try:
            with process.session.hold_all("global", HOLD_TIMEOUT) as stopped:
                stragglers = _in_the_way(threads, stopped, intervals, names)
                if not stragglers:
                    for address, data in blocks:
                        process.session.memory.write(address, data)
                    for cell in descriptors:
                        process.session.memory.write_u64(cell, 0)
                    total = len(stopped)
        except Failed as error:
            if error.reason != "hold_timeout":
                raise
            stragglers = (Straggler(process.target.pid, process.target.comm, None, error.message),)
        if not stragglers:
            settle(live)
            return Outcome(True, (), total, total)
        if process.tell is not nobody:
            process.tell("threads", **threads_facts(0, len(process.session.tasks()), stragglers))
        if time.monotonic() + pause >= deadline:
            return Outcome(False, stragglers)
        # Nothing wakes us when a thread leaves the old code.
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 1.5)


def _in_the_way(
    threads: Threads,
    stopped: Sequence[Visit],
    intervals: Sequence[tuple[int, int]],
    names: dict[tuple[int, int], str],
) -> tuple[Straggler, ...]:
    for visit in stopped:
        thread = threads.stopped(visit)
        tid = visit.tid
        if thread is None:
            return (Straggler(tid, threads.comm(tid), None, "has no stack that could be read"),)
        hits = words_inside_thread(thread, intervals)
        if thread.own_stack and not hits:
            continue
        frames = threads.unwind(thread, visit)
        if frames is None:
            return (Straggler(tid, threads.comm(tid), None, "its stack cannot be unwound"),)
        for address in frames:
            for low, high in intervals:
                if low <= address <= high:
                    name = names.get((low, high))
                    return (
                        Straggler(tid, threads.comm(tid), name, f"is in old code ({address:#x})"),
                    )
    return ()
