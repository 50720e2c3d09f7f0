# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows that threads may be in, and how they become free again.

A row is reused only after every task's GS base was read, and every task was seen outside of stub
text: a thread in the check routine may still enter the row that it read from its descriptor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .backend import Survey, Visit
from .errors import Failed, Refused
from .live_process import LiveProcess
from .region_header import RowUse
from .thread_stack import Thread, Threads, words_inside_thread

ROW_SIZE = 4096
#: Two rows for the transition (target and held), two for its revert.
ROWS_NEEDED = 4
#: How long no further task may come out of stub text, and how long all of it may take: on a busy
#: host a single stop takes as long as the task waits for a processor (50 to 250 ms measured).
TIMEOUT = 5.0
LONGEST = 60.0


def row_of(process: LiveProcess, gs_base: int, tid: int) -> int:
    """The row that a GS base selects; raises gs_in_use for any other value."""
    rows = max((region.region.layout.rows for region in process.regions), default=1)
    row, rest = divmod(gs_base, ROW_SIZE)
    if rest or row >= rows:
        raise Refused(
            "gs_in_use",
            f"thread {tid} of process {process.target.pid} has GS base {gs_base:#x}, which is no "
            "row of the generation table: the program uses GS itself",
            tid=tid,
            gs_base=gs_base,
        )
    return row


def recycle(process: LiveProcess) -> None:
    """Move every task to row 0, and so free all other rows; one short stop of each task.

    Only while no transition is open: all rows lead to the same code then, so the move changes
    nothing. A task whose stack holds a stale word of stub text is cleared by unwinding: after its
    first stop, which fills the unwinder's cache, and within the next. Raises generation_exhausted
    when a task stays in stub text.
    """
    session = process.session
    intervals = [interval for region in process.regions for interval in region.pending_intervals()]
    threads = Threads(process)
    seen = _surveyed(process, threads, intervals)
    suspected: set[tuple[int, int]] = set()
    begun = progress = time.monotonic()
    while True:
        missing = [task for task in session.tasks() if (task.tid, task.start_time) not in seen]
        if not missing:
            break
        for task in missing:
            key = (task.tid, task.start_time)
            try:
                with session.visit(task.tid, "recycle") as stopped:
                    row_of(process, stopped.registers.gs_base, task.tid)
                    thread = threads.stopped(stopped)
                    clear = thread is not None and (
                        not words_inside_thread(thread, intervals)
                        or (
                            (key in suspected or not stopped.stopped)
                            and _outside(threads, thread, stopped, intervals)
                        )
                    )
                    if clear and thread is not None and stopped.registers.gs_base:
                        grounds = None if stopped.stopped else threads.grounds(thread)
                        stopped.set_gs_base(0, grounds)
            except Failed as error:
                if error.reason == "thread_gone":
                    continue
                if error.reason != "thread_unstoppable":
                    raise
                continue
            if not clear:
                if thread is not None:
                    threads.unwind(thread)
                suspected.add(key)
                continue
            seen.add(key)
            progress = time.monotonic()
        if time.monotonic() > min(progress + TIMEOUT, begun + LONGEST):
            raise Refused(
                "generation_exhausted",
                f"rows of process {process.target.pid} cannot be reused: "
                f"{len(missing)} thread(s) could not be seen outside of stub text; try again later",
            )
    for region in process.regions:
        region.note(rows=(RowUse(0, region.header.generation, "generation"),))


def _outside(
    threads: Threads, thread: Thread, stopped: Visit, intervals: Sequence[tuple[int, int]]
) -> bool:
    frames = threads.unwind(thread, stopped)
    return frames is not None and not any(
        low <= address <= high for address in frames for low, high in intervals
    )


def _surveyed(
    process: LiveProcess, threads: Threads, intervals: Sequence[tuple[int, int]]
) -> set[tuple[int, int]]:
    """The tasks that the backend moved to row 0 all at once; none where it cannot."""
    rows = frozenset(range(max(region.region.layout.rows for region in process.regions)))
    wanted = Survey(
        pending=intervals,
        stacks=threads.own_stacks(),
        left_rows=rows,
        from_rows=rows - {0},
        target=0,
        seconds=TIMEOUT / 2,
    )
    moved = set()
    for seen in process.session.survey(wanted) or ():
        if seen.gs_base is not None:
            row_of(process, seen.gs_base, seen.tid)
        if seen.clear:
            moved.add((seen.tid, seen.start_time))
    return moved


def ensure_free(process: LiveProcess) -> None:
    """Recycle where a transition and its revert would run out of rows."""
    if process.regions and len(process.free_rows()) < ROWS_NEEDED:
        recycle(process)


def used_rows(process: LiveProcess) -> tuple[int, ...]:
    """The rows that some thread may be in."""
    used = {use.row for region in process.regions for use in region.header.rows}
    return tuple(sorted(used | {0}))
