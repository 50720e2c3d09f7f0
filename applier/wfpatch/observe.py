# SPDX-License-Identifier: GPL-3.0-or-later
"""Observing: which tasks were seen quiescent since the last slot became a self-check.

A task is done when it is in the target row, or was seen, at one moment, without a frame of the old
code and outside of stub text: from then on it can only migrate or go to the held row. Sleepers are
read without stopping them; runners, and those a scan cannot clear, by one short stop each. What was
copied in a stop is evaluated after it: the moment of the stop is what counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from .backend import Survey, Surveyed, Visit
from .errors import Failed
from .live_process import LiveProcess
from .live_region import LiveRegion
from .report import Straggler
from .rows import row_of
from .tasks import Look, Task
from .thread_stack import Thread, Threads, words_inside_thread
from .transition import counters, current_note, moved_slots, old_intervals

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.05
#: A thread is stopped again after this long at the earliest, then twice as long, and so on. A
#: timeout that a thread sleeps with starts anew after a stop, so sleepers are left alone for longer
#: than runners, and one that has not run since its last stop is not stopped at all.
FIRST_REVISIT = 0.005
LONGEST_REVISIT = 0.02
LONGEST_REVISIT_ASLEEP = 1.0

#: How long all threads at once are looked at before those that are left are looked at singly.
SURVEY_SECONDS = 0.1

Key = tuple[int, int]
Intervals = Sequence[tuple[int, int]]


@dataclass
class Sight:
    """What is known about one task."""

    task: Task
    done: bool = False
    stamp: tuple[int, ...] | None = None
    reason: str = "was not seen yet"
    function: str | None = None
    visits: int = 0
    not_before: float = 0.0
    unseen: bool = False
    visited_at: tuple[int, ...] | None = None

    def due(self, seen: Look) -> bool:
        """Whether the task may be stopped now; counts the visit if so."""
        now = time.monotonic()
        if now < self.not_before or (not seen.running and seen.stamp == self.visited_at):
            return False
        longest = LONGEST_REVISIT if seen.running else LONGEST_REVISIT_ASLEEP
        self.visits += 1
        self.not_before = now + min(longest, FIRST_REVISIT * 2 ** min(self.visits, 10))
        self.visited_at = None if seen.running else seen.stamp
        return True


@dataclass
class Observer:
    """Watches the tasks of a process until all are done with what ``old`` says.

    ``old`` are intervals of old code, ``pending`` of stub text; ``names`` tells in which function
    an address lies; ``left_rows`` are the target row and the held rows: a task there no longer
    reads the rows that are to be finished.
    """

    process: LiveProcess
    threads: Threads
    old: Intervals
    pending: Intervals
    names: dict[tuple[int, int], str]
    left_rows: frozenset[int]
    sights: dict[Key, Sight] = field(default_factory=dict)

    def sweep(self) -> bool:
        """Look at every task that is not done; whether all are, those born meanwhile included."""
        while True:
            tasks = self.process.session.tasks()
            news = [task for task in tasks if (task.tid, task.start_time) not in self.sights]
            alive = {(task.tid, task.start_time) for task in tasks}
            for key in [key for key in self.sights if key not in alive]:
                del self.sights[key]
            for task in news:
                self.sights[(task.tid, task.start_time)] = Sight(task)
            self._survey()
            waiting = [sight for sight in self.sights.values() if not sight.done]
            if not waiting:
                # A task born by one that was not done yet is in this very list: it was read after
                # all others were done.
                return not news
            for sight in waiting:
                self._look(sight)
            if any(not sight.done for sight in self.sights.values()):
                return False

    def _survey(self) -> None:
        """Where the backend judges all tasks at once, those that need no second look are done."""
        if all(sight.done for sight in self.sights.values()):
            return
        for key, seen in survey(self.process, self.threads, self.wanted()).items():
            sight = self.sights.get(key)
            if sight is None or sight.done:
                continue
            sight.done = seen.clear
            sight.unseen = seen.gs_base is None
            if not seen.clear:
                sight.reason = seen.reason
                if seen.accused is not None:
                    self._blame(sight, seen.accused, seen.reason)

    def wanted(self) -> Survey:
        """What a survey is asked: who has left the code that is to be left?"""
        return Survey(
            old=self.old,
            pending=self.pending,
            signal_returns=self.threads.signal_returns,
            stacks=self.threads.own_stacks(),
            left_rows=self.left_rows,
            seconds=SURVEY_SECONDS,
        )

    def glance(self) -> None:
        """One look at every task, without stopping any: for a status."""
        session = self.process.session
        for task in session.tasks():
            sight = self.sights.setdefault((task.tid, task.start_time), Sight(task))
            seen = session.look(task.tid)
            if seen is None:
                del self.sights[(task.tid, task.start_time)]
            elif seen.running:
                sight.reason = "is running"
            else:
                thread = self.threads.sleeper(task, seen)
                if thread is not None:
                    self._judge(sight, thread)

    def _look(self, sight: Sight) -> None:
        session = self.process.session
        if sight.unseen:
            # It waits for a processor: nobody sees it sooner than the next survey.
            return
        seen = session.look(sight.task.tid)
        if seen is None:
            return
        if not seen.running:
            thread = self.threads.sleeper(sight.task, seen)
            if thread is not None and self._judge(sight, thread):
                sight.stamp = seen.stamp
                return
        if sight.due(seen):
            self._visit(sight)

    def _visit(self, sight: Sight) -> None:
        try:
            with self.process.session.visit(sight.task.tid, "observe") as stopped:
                thread = self.threads.stopped(stopped)
                frames = None
                if thread is not None and not thread.own_stack:
                    # Part of its frames lies on a stack that the copy does not hold.
                    frames = self.threads.unwind(thread, stopped)
        except Failed as error:
            if error.reason not in ("thread_gone", "thread_unstoppable"):
                raise
            sight.reason = error.message
            return
        if thread is None:
            sight.reason = "is not on a stack that could be read"
            return
        if self._left(sight, thread) or self._judge(sight, thread):
            return
        if thread.own_stack:
            frames = self.threads.unwind(thread)
        if frames is None:
            return
        inside = [
            address
            for address in frames
            if any(low <= address <= high for low, high in (*self.old, *self.pending))
        ]
        if inside:
            self._blame(sight, inside[0], "has a frame of old code")
        else:
            sight.done = True

    def _left(self, sight: Sight, thread: Thread) -> bool:
        if thread.gs_base is None:
            return False
        if row_of(self.process, thread.gs_base, thread.tid) not in self.left_rows:
            return False
        sight.done = not words_inside_thread(thread, self.pending)
        return sight.done

    def _judge(self, sight: Sight, thread: Thread) -> bool:
        """Whether the copy of a thread's stack shows it quiescent."""
        if not thread.own_stack:
            sight.reason = "is not on its own stack (signal handler or foreign stack)"
            return False
        hits = words_inside_thread(thread, (*self.old, *self.pending))
        if hits:
            self._blame(sight, hits[0], "may have a frame of old code")
            return False
        sight.done = True
        return True

    def _blame(self, sight: Sight, address: int, reason: str) -> None:
        for (low, high), name in self.names.items():
            if low <= address <= high:
                sight.function = name
                sight.reason = f"{reason} ({name}, {address:#x})"
                return
        sight.function = None
        sight.reason = f"is on its way into a replaced function ({address:#x})"

    def stragglers(self) -> tuple[Straggler, ...]:
        """The tasks that are not done, named."""
        return tuple(
            Straggler(sight.task.tid, sight.task.comm, sight.function, sight.reason)
            for sight in self.sights.values()
            if not sight.done
        )


def survey(process: LiveProcess, threads: Threads, wanted: Survey) -> dict[Key, Surveyed]:
    """What the backend sees of all tasks at once, by task; empty where it cannot.

    Raises gs_in_use for a task whose GS base is no row.
    """
    found = {}
    for seen in process.session.survey(wanted) or ():
        if seen.gs_base is not None:
            row_of(process, seen.gs_base, seen.tid)
        found[(seen.tid, seen.start_time)] = seen
    return found


def names_of(live: LiveRegion) -> dict[tuple[int, int], str]:
    """Intervals of all code of the moved functions -> the function's name."""
    names: dict[tuple[int, int], str] = {}
    by_index = {slot.index: slot.name for slot in live.header.slots}
    for source in current_note(live).sources:
        if source.held_row is None:
            continue
        generation = live.generation(source.generation)
        for slot in moved_slots(live, source.generation):
            for piece in live.pieces(generation, slot):
                names[piece.interval] = by_index[slot]
    return names


def all_pending(process: LiveProcess) -> list[tuple[int, int]]:
    """Stub text, landing code and padding jumps of all regions."""
    return [interval for region in process.regions for interval in region.pending_intervals()]


def observer(process: LiveProcess, live: LiveRegion, threads: Threads) -> Observer:
    """The observer of the open transition."""
    note = current_note(live)
    old = [
        interval
        for source in note.sources
        if source.held_row is not None
        for interval in old_intervals(live, source.generation)
    ]
    held = {source.held_row for source in note.sources if source.held_row is not None}
    return Observer(
        process,
        threads,
        old,
        all_pending(process),
        names_of(live),
        frozenset({note.target_row, *held}),
    )


class HeldRow:
    """Empties the held rows: who is in one and can be cleared by unwinding is moved on."""

    def __init__(self, process: LiveProcess, live: LiveRegion, watch: Observer) -> None:
        note = current_note(live)
        self._process = process
        self._live = live
        self._watch = watch
        self._held = {source.held_row for source in note.sources if source.held_row is not None}
        self._target = note.target_row
        self._clear: set[Key] = set()
        self._exact = False
        self.sights: dict[Key, Sight] = {}

    def never_entered(self) -> bool:
        """Whether no task has ever entered a held row, by the stub's own counters."""
        return counters(self._live).held_in == 0

    def sweep(self, exact: bool) -> bool:
        """Whether every task was seen outside the held rows and stub text since the last sweep of
        source rows. ``exact`` reads each task's GS base in a stop."""
        if exact and not self._exact:
            self._begin_exactly()
        self._exact = exact
        while True:
            tasks = self._process.session.tasks()
            news = [t for t in tasks if (t.tid, t.start_time) not in self._clear]
            alive = {(task.tid, task.start_time) for task in tasks}
            self.sights = {key: sight for key, sight in self.sights.items() if key in alive}
            if not news:
                return True
            surveyed = self._survey()
            for task in news:
                key = (task.tid, task.start_time)
                if key in surveyed and surveyed[key].clear:
                    self._clear.add(key)
                    self.sights.pop(key, None)
                    continue
                sight = self.sights.setdefault(key, Sight(task))
                if self._is_clear(sight, exact):
                    self._clear.add(key)
                    self.sights.pop(key, None)
            if self.sights:
                return False

    def _begin_exactly(self) -> None:
        """Who was cleared while nobody had entered a held row may have been in one by then: a task
        that was in the check routine when the source rows were finished."""
        self._clear.clear()

    def _survey(self) -> dict[Key, Surveyed]:
        """All tasks at once, where the backend can: those in a held row are moved if they may."""
        watch = self._watch
        rows = max(region.region.layout.rows for region in self._process.regions)
        wanted = replace(
            watch.wanted(),
            left_rows=frozenset(range(rows)) - self._held,
            from_rows=frozenset(self._held),
            target=self._target,
        )
        return survey(self._process, watch.threads, wanted)

    def _is_clear(self, sight: Sight, exact: bool) -> bool:
        watch = self._watch
        session = self._process.session
        seen = session.look(sight.task.tid)
        if seen is None:
            return True
        if not exact:
            earlier = watch.sights.get((sight.task.tid, sight.task.start_time))
            if not seen.running:
                if earlier is not None and earlier.done and earlier.stamp == seen.stamp:
                    # Asleep since it was seen outside of stub text.
                    return True
                thread = watch.threads.sleeper(sight.task, seen)
                if thread is not None and not words_inside_thread(thread, watch.pending):
                    return True
        if not sight.due(seen):
            return False
        try:
            with session.visit(sight.task.tid, "held_row") as stopped:
                thread = watch.threads.stopped(stopped)
                if thread is None:
                    sight.reason = "is not on a stack that could be read"
                    return False
                row = row_of(self._process, stopped.registers.gs_base, sight.task.tid)
                held_row = row in self._held
                inside = (*watch.old, *watch.pending) if held_row else watch.pending
                if not held_row and not words_inside_thread(thread, inside):
                    return True
                if self._is_free(thread, stopped, inside, sight.visits > 1):
                    if held_row:
                        grounds = None if stopped.stopped else watch.threads.grounds(thread)
                        stopped.set_gs_base(self._target * 4096, grounds)
                    return True
                if not thread.own_stack:
                    sight.reason = "stays in old code, in a signal handler or on a foreign stack"
                    return False
        except Failed as error:
            if error.reason == "thread_gone":
                return True
            if error.reason != "thread_unstoppable":
                raise
            sight.reason = error.message
            return False
        return self._unwound(sight, thread, inside, held_row)

    def _is_free(self, thread: Thread, stopped: Visit, inside: Intervals, unwind: bool) -> bool:
        """Whether a stopped thread has no frame ``inside``: of stub text, and of old code if held.

        A thread whose stack holds a stale word is unwound after the stop first, which fills the
        unwinder's cache; one that runs will have moved on by then, so the next time ``unwind`` has
        it done within the stop. A visit that is no stop is no shorter without.
        """
        if thread.own_stack and not words_inside_thread(thread, inside):
            return True
        if thread.own_stack and stopped.stopped and not unwind:
            return False
        frames = self._watch.threads.unwind(thread, stopped)
        return frames is not None and not any(
            low <= address <= high for address in frames for low, high in inside
        )

    def _unwound(self, sight: Sight, thread: Thread, inside: Intervals, held_row: bool) -> bool:
        """Clear a thread by its frames, and move one that is held if it is still where it was."""
        watch = self._watch
        frames = watch.threads.unwind(thread)
        if frames is None:
            # No table describes stub text: who is there cannot be unwound.
            sight.reason = (
                "stays in old code: its stack cannot be unwound"
                if held_row
                else "is on its way into a replaced function, or cannot be unwound"
            )
            return False
        for address in frames:
            for low, high in inside:
                if low <= address <= high:
                    watch._blame(sight, address, "has a frame of old code")
                    return False
        if not held_row:
            # It was outside at the moment of the stop, and no source row leads to stub text now.
            return True
        try:
            with self._process.session.visit(sight.task.tid, "migrate") as stopped:
                again = watch.threads.stopped(stopped)
                if again is None or not again.same_frames(thread):
                    sight.reason = "moves on too fast to be migrated from outside"
                    return False
                stopped.set_gs_base(self._target * 4096)
        except Failed as error:
            if error.reason not in ("thread_gone", "thread_unstoppable"):
                raise
            return error.reason == "thread_gone"
        return True

    def stragglers(self) -> tuple[Straggler, ...]:
        """The tasks that are still in a held row, named."""
        return tuple(
            Straggler(s.task.tid, s.task.comm, s.function, s.reason) for s in self.sights.values()
        )


def pauses(deadline: float) -> Iterable[None]:
    """Growing pauses until ``deadline`` (time.monotonic()); the first turn comes at once."""
    pause = FIRST_PAUSE
    while True:
        yield
        left = deadline - time.monotonic()
        if left <= 0:
            return
        # Waiting for threads of another process to move: there is nothing to be woken by.
        time.sleep(min(pause, left))
        pause = min(LONGEST_PAUSE, pause * 1.5)
