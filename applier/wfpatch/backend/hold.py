# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping one task, and stopping all tasks of an address space at once."""

from __future__ import annotations

import time
from types import TracebackType

from wfpatch.backend import StopRecord
from wfpatch.backend.stops import (
    InterruptedCalls,
    OverdueTracees,
    ReapWhileSeizing,
    Tracee,
    await_stops,
)
from wfpatch.backend.undisturbed import Undisturbed
from wfpatch.errors import Failed
from wfpatch.memory import ProcessMemory
from wfpatch.tasks import SharingProcesses, Task, read_stat, tasks_of, thread_ids

_GLANCE = 0.001
_LAST_CHANCE_NS = 10_000_000


def await_stoppable(tgid: int, tid: int, deadline_ns: int) -> bool:
    """Wait until a task is in no uninterruptible sleep; whether that came true in time.

    A task in such a sleep (vfork's parent, a page being read) cannot stop, and one that was asked
    to cannot be let go before it does. So it is not even asked.
    """
    while True:
        stat = read_stat(tgid, tid)
        if stat is None or stat.state != "D":
            return True
        if time.perf_counter_ns() >= deadline_ns:
            return False
        time.sleep(_GLANCE)


class Stop:
    """Context manager: one task stopped."""

    __slots__ = ("_purpose", "_stops", "_timeout", "_tracee", "_undisturbed")

    def __init__(
        self, tracee: Tracee, purpose: str, timeout: float, stops: list[StopRecord]
    ) -> None:
        self._tracee = tracee
        self._purpose = purpose
        self._timeout = timeout
        self._stops = stops
        self._undisturbed = Undisturbed()

    def __enter__(self) -> Tracee:
        tracee = self._tracee
        deadline = time.perf_counter_ns() + int(self._timeout * 1e9)
        if not await_stoppable(tracee.tgid, tracee.tid, deadline):
            raise tracee.unstoppable(self._timeout)
        self._undisturbed.__enter__()
        try:
            if len(tracee.overdue):
                tracee.overdue.settle()
                with ReapWhileSeizing(lambda: tracee.overdue):
                    tracee.seize()
            else:
                tracee.seize()
            tracee.interrupt()
            ended, running = await_stops([tracee], deadline, tracee.overdue)
            if ended:
                raise tracee.gone()
            if running:
                raise tracee.unstoppable(self._timeout)
            tracee.registers  # noqa: B018 - read now: the release needs them in any case
        except BaseException:
            try:
                microseconds = tracee.release()
                tracee.overdue.find_again(tracee)
                if tracee.interrupted_at:
                    # It has stopped, or will for a moment before it is let go.
                    self._stops.append(StopRecord(tracee.tid, self._purpose, microseconds))
            finally:
                # Whatever happens: signals that stay blocked could never end this process again.
                self._undisturbed.__exit__(None, None, None)
            raise
        return tracee

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            microseconds = self._tracee.release()
            self._tracee.overdue.find_again(self._tracee)
        finally:
            self._undisturbed.__exit__(None, None, None)
        self._stops.append(StopRecord(self._tracee.tid, self._purpose, microseconds))


class Hold:
    """Context manager: all tasks of an address space stopped, those born meanwhile included."""

    def __init__(
        self,
        pid: int,
        memory: ProcessMemory,
        overdue: OverdueTracees,
        purpose: str,
        timeout: float,
        stops: list[StopRecord],
        interrupted: InterruptedCalls,
    ) -> None:
        self._interrupted = interrupted
        self._pid = pid
        self._memory = memory
        self._overdue = overdue
        self._purpose = purpose
        self._timeout = timeout
        self._stops = stops
        self._sharing = SharingProcesses(pid)
        self._tracees: dict[int, Tracee] = {}
        self._ended: list[Tracee] = []
        self._undisturbed = Undisturbed()

    def __enter__(self) -> list[Tracee]:
        deadline = time.perf_counter_ns() + int(self._timeout * 1e9)
        tasks = tasks_of(self._sharing.current())
        for task in tasks:
            if not await_stoppable(task.tgid, task.tid, deadline):
                raise self._timed_out([task.tid])
        self._undisturbed.__enter__()
        try:
            with ReapWhileSeizing(lambda: [*self._tracees.values(), *self._overdue]):
                self._overdue.settle()
                self._stop_all(tasks, deadline)
        except BaseException:
            self._release()
            raise
        return list(self._tracees.values())

    def _stop_all(self, tasks: tuple[Task, ...], deadline: int) -> None:
        new = [(task.tgid, task.tid) for task in tasks]
        while new:
            # Seize all before the first is stopped: that part costs the program nothing.
            batch = []
            for tgid, tid in new:
                tracee = Tracee(tgid, tid, self._memory, self._overdue, self._interrupted)
                try:
                    tracee.seize()
                except Failed as error:
                    if error.reason == "thread_gone":
                        continue
                    raise
                self._tracees[tid] = tracee
                batch.append(tracee)
            for tracee in batch:
                tracee.interrupt()
            ended, running = await_stops(batch, deadline, self._overdue)
            for tracee in ended:
                self._tracees.pop(tracee.tid, None)
            self._ended += ended
            if running:
                raise self._timed_out([tracee.tid for tracee in running])
            # A stopped task gives birth to none: once a listing holds nobody unknown, it is
            # complete.
            new = self._unknown()
            if new and time.perf_counter_ns() >= deadline:
                raise self._timed_out([tid for _, tid in new])

    def _unknown(self) -> list[tuple[int, int]]:
        new = []
        for tgid in self._sharing.current():
            for tid in thread_ids(tgid):
                if tid not in self._tracees:
                    stat = read_stat(tgid, tid)
                    if stat is not None and stat.runs_user_code:
                        new.append((tgid, tid))
        return new

    def _timed_out(self, tids: list[int]) -> Failed:
        return Failed(
            "hold_timeout",
            f"process {self._pid}: {len(tids)} of its threads did not stop within"
            f" {self._timeout:g} s ({', '.join(map(str, tids[:8]))}); all were let go,"
            " try again later",
            pid=self._pid,
            tids=tids,
        )

    def _release(self) -> None:
        try:
            tracees = list(self._tracees.values())
            running = [tracee for tracee in tracees if tracee.traced and not tracee.stopped]
            if running:
                # Cut short: those that were seized can be detached only when they have stopped.
                for tracee in running:
                    tracee.interrupt()
                await_stops(running, time.perf_counter_ns() + _LAST_CHANCE_NS, self._overdue)
            for tracee in tracees:
                microseconds = tracee.release()
                self._stops.append(StopRecord(tracee.tid, self._purpose, microseconds))
            for tracee in tracees + self._ended:
                self._overdue.find_again(tracee)
        finally:
            self._undisturbed.__exit__(None, None, None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()
