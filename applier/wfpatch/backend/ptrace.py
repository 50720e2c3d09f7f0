# SPDX-License-Identifier: GPL-3.0-or-later
"""The ptrace backend: the embedded default, without a kernel module."""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Iterator, Sequence

from wfpatch import injection, tasks
from wfpatch.backend import Poke, Runner, Survey, preflight, ptrace_requests
from wfpatch.backend.hold import Hold, Stop
from wfpatch.backend.process_view import ProcessView
from wfpatch.backend.stops import OVERDUE, InterruptedCalls, Tracee
from wfpatch.errors import Failed, Refused
from wfpatch.injection import Injection, Planted
from wfpatch.seccomp import NO_SECCOMP, SeccompState
from wfpatch.syscalls import (
    NOT_REPORTED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SystemCall,
    mmap_anonymous,
    mremap_over,
    munmap,
    rt_sigreturn,
)
from wfpatch.tasks import Look
from wfpatch.xstate import XStateLayout, layout_of_this_host

VISIT_TIMEOUT = 0.25
ATTEMPT_TIMEOUT = 1.0
CALL_TIMEOUT = 10.0
FILTER_TIMEOUT = 5.0
# How many threads are looked at before one is chosen: so many that suit best, or that are usable.
# Where all of those turn out unsuitable, the others follow.
_BEST_ENOUGH = 4
_USABLE_ENOUGH = 32
_QUESTIONS = 0.02  # how often a thread is asked whether it is through with its chain
_MMAP_PROTECTIONS = (PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC)
# What every apply injects: asked of the seccomp filters when the caller names nothing else.
USUAL_CALLS = (
    *(mmap_anonymous(0x10000, 0x1000, protection) for protection in _MMAP_PROTECTIONS),
    mremap_over(0x10000, 0x20000, 0x1000),
    munmap(0x10000, 0x1000),
    rt_sigreturn(),
)


class PtraceSession(ProcessView):
    """A process under work (backend.Session). Used by one thread, the applier's main thread."""

    pokes = False
    reads_filters = True

    def __init__(self, pid: int, layout: XStateLayout) -> None:
        super().__init__(pid)
        self._layout = layout
        self._code: injection.Code | None = None
        self._interrupted = InterruptedCalls()
        self._seccomp: dict[int, SeccompState] = {}

    def check(self, calls: Sequence[SystemCall] = (), allow_init: bool = False) -> None:
        """Refuse a process that cannot be worked on, before anything is written.

        Raises Refused: target_exited, kernel_thread, is_init, not_64bit, already_traced,
        shadow_stack, no_permission, seccomp_forbids (no thread may make all of ``calls``),
        injection_impossible.
        """
        preflight.require_live_process(self.pid)
        preflight.require_not_init(self.pid, allow_init)
        preflight.require_64bit(self.pid)
        listed = self.tasks()
        modes = preflight.require_untraced_tasks(self.pid, listed)
        self._find_code()
        if any(mode == 0 for mode in modes.values()):
            return
        deadline = time.monotonic() + FILTER_TIMEOUT
        while True:
            refusal = None
            for task in listed:
                refusal = self._forbidden(task.tid, calls or USUAL_CALLS)
                if refusal is None:
                    return
            if refusal is None:
                return
            if refusal.reason != "thread_unstoppable" or time.monotonic() >= deadline:
                raise refusal

    def seccomp(self, tid: int) -> SeccompState:
        """The seccomp state of a task; reading a filter takes one stop, which on a busy machine may
        have to be asked for again.

        Raises Refused("no_permission") without CAP_SYS_ADMIN, and as visit() does.
        """
        deadline = time.monotonic() + FILTER_TIMEOUT
        while True:
            try:
                return self._read_seccomp(tid)
            except Failed as error:
                if error.reason != "thread_unstoppable" or time.monotonic() >= deadline:
                    raise

    def _read_seccomp(self, tid: int) -> SeccompState:
        fields = tasks.status_fields(self._owner(tid), tid, "Seccomp", "Seccomp_filters")
        if fields is None:
            raise Failed("thread_gone", f"thread {tid} has ended", pid=self.pid, tid=tid)
        mode = int(fields[0] or 0)
        if mode != 2:
            return NO_SECCOMP if mode == 0 else SeccompState(mode)
        known = self._seccomp.get(tid)
        count = int(fields[1] or 0)
        if known is not None and count and len(known.filters) == count:
            return known
        filters: list[bytes] = []
        with self.visit(tid, "seccomp"):
            try:
                while (
                    program := ptrace_requests.get_seccomp_filter(tid, len(filters))
                ) is not None:
                    filters.append(program)
            except OSError as error:
                raise Refused(
                    "no_permission",
                    f"the seccomp filter of thread {tid} of process {self.pid} cannot be read"
                    f" ({errno.errorcode.get(error.errno or 0)}): CAP_SYS_ADMIN is needed, and an"
                    " applier without a filter of its own",
                    pid=self.pid,
                    tid=tid,
                ) from error
        state = SeccompState(2, tuple(filters))
        self._seccomp[tid] = state
        return state

    def _forbidden(self, tid: int, calls: Sequence[SystemCall]) -> Refused | None:
        try:
            state = self._read_seccomp(tid)
        except Failed as error:
            return Refused(error.reason, error.message, **error.result)
        found = state.first_forbidden([*calls, rt_sigreturn()])
        if found is None:
            return None
        call, verdict = found
        return Refused(
            "seccomp_forbids",
            f"the seccomp filter of thread {tid} of process {self.pid} answers {call.name} with"
            f" {verdict}; allow it (systemd: SystemCallFilter=) and restart the service once",
            pid=self.pid,
            tid=tid,
            call=call.name,
            verdict=str(verdict),
        )

    # Stopping

    def visit(self, tid: int, purpose: str) -> Stop:
        """One short stop of one thread (context manager of a Tracee).

        Raises Failed: thread_unstoppable (after VISIT_TIMEOUT), thread_gone, already_traced.
        """
        tracee = Tracee(self._owner(tid), tid, self.memory, OVERDUE, self._interrupted)
        return Stop(tracee, purpose, VISIT_TIMEOUT, self.stops)

    def hold_all(self, purpose: str, timeout: float) -> Hold:
        """All tasks stopped at once (context manager of the list of Tracees).

        Raises Failed("hold_timeout") when one does not stop in time; all have been let go then.
        """
        return Hold(self.pid, self.memory, OVERDUE, purpose, timeout, self.stops, self._interrupted)

    def poke(self, pokes: Sequence[Poke], moves: Sequence[tuple[int, int]] = ()) -> str:
        """Never called: ``pokes`` is False."""
        raise AssertionError("ptrace cannot change code that threads are in")

    def survey(self, wanted: Survey) -> None:
        """Threads are looked at one by one: None."""

    # Calling

    def _find_code(self) -> injection.Code:
        if self._code is None:
            self._code = injection.find_code(self.memory, self.memory_map())
        return self._code

    def call(
        self,
        calls: Sequence[SystemCall],
        runner: Runner | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> list[int]:
        """Run system calls in the process; returns their raw results.

        Without a runner: a few calls that the memory map shows the outcome of (mmap, munmap,
        mprotect, mremap). A call that failed has the result NOT_REPORTED then; the ones
        after it have run nevertheless. With one: any calls, raw results.
        Raises Failed: injection_timeout (the calls may still happen later, if a thread is kept from
        running), target_exited, target_changed; Refused("seccomp_forbids").
        """
        if not calls:
            return []
        deadline = time.monotonic() + timeout
        if runner is None:
            return self._call_by_chain(calls, deadline)
        results: list[int] = []
        for start in range(0, len(calls), runner.capacity):
            results += self._call_by_runner(
                calls[start : start + runner.capacity], runner, deadline
            )
        return results

    def _call_by_chain(self, calls: Sequence[SystemCall], deadline: float) -> list[int]:
        before = self.memory_map()
        for call in calls:
            injection.outcome(call, before)
        tried: dict[int, str] = {}
        while True:
            for planted in self._planting(calls, None, tried):
                results = self._await_chain(planted, calls, deadline)
                if results is not None:
                    return results
                # Another thread may try too: each of these calls is harmless the second time.
                tried[planted.tid] = "did not run the calls in time"
                if time.monotonic() >= deadline:
                    break
            if not injection.poll(deadline):
                raise self._timed_out(tried)

    def _planting(
        self, calls: Sequence[SystemCall], runner: Runner | None, tried: dict[int, str]
    ) -> Iterator[Planted]:
        """Give the calls to one thread after the other, best first, as long as the caller asks.

        ``tried`` takes why the others were not used. The map is read after the looks: the stack of
        a sleeper that was looked at is then what the map says.
        """
        seen: set[int] = set()
        for few in (True, False):
            candidates = self._candidates(calls, tried, few, seen)
            if not candidates:
                continue
            plan = Injection(
                self._find_code(), self._layout, self.memory_map(), calls, runner, self.stack_bounds
            )
            seen |= {candidate.tid for candidate in candidates}
            yield from self._given(plan, candidates, tried)

    def _given(
        self, plan: Injection, candidates: Sequence[Look], tried: dict[int, str]
    ) -> Iterator[Planted]:
        for candidate in candidates:
            try:
                with self.visit(candidate.tid, "inject") as tracee:
                    planted = plan.plant(tracee, candidate)
            except Failed as error:
                if error.reason not in ("thread_gone", "thread_unstoppable", "memory_unreadable"):
                    raise
                tried[candidate.tid] = error.message
                continue
            if isinstance(planted, Planted):
                yield planted
            else:
                tried[planted.tid] = planted.why

    def _candidates(
        self,
        calls: Sequence[SystemCall],
        tried: dict[int, str],
        few: bool,
        without: Collection[int],
    ) -> list[Look]:
        """Usable threads but for ``without``, best first; a ``few`` of many are soon found."""
        ranked: list[tuple[int, int, Look]] = []
        forbidden: Refused | None = None
        others = bool(without)
        best = 0
        for task in self.tasks():
            if task.tid in without:
                continue
            seen = self.look(task.tid)
            if seen is None:
                continue
            why = injection.unusable(seen)
            if why is not None:
                tried[task.tid] = why
                others = True
                continue
            refused = self._forbidden(task.tid, calls)
            if refused is not None:
                tried[task.tid] = refused.message
                forbidden = refused
                continue
            rank = injection.rank(seen)
            ranked.append((rank, task.tid, seen))
            best += rank == injection.BEST_RANK
            if few and (best == _BEST_ENOUGH or len(ranked) == _USABLE_ENOUGH):
                break
        if forbidden is not None and not ranked and not others:
            raise forbidden
        ranked.sort(key=lambda entry: entry[:2])
        return [seen for _, _, seen in ranked]

    def _await_chain(
        self, planted: Planted, calls: Sequence[SystemCall], deadline: float
    ) -> list[int] | None:
        """The results once they show; None when the thread was kept from running."""
        begun = time.monotonic()
        attempt = min(deadline, begun + ATTEMPT_TIMEOUT)
        question = begun + _QUESTIONS
        while True:
            results = self._outcomes(calls)
            if None not in results:
                return [result for result in results if result is not None]
            now = time.monotonic()
            if now > question and self._left_chain(planted):
                return [
                    NOT_REPORTED if result is None else result for result in self._outcomes(calls)
                ]
            if now > question:
                question = now + _QUESTIONS
            if not injection.poll(attempt):
                return None

    def _outcomes(self, calls: Sequence[SystemCall]) -> list[int | None]:
        maps = self.memory_map()
        return [injection.outcome(call, maps) for call in calls]

    def _left_chain(self, planted: Planted) -> bool:
        """Whether the thread is through with the chain: its stack pointer is above the frames."""
        seen = self.look(planted.tid)
        if seen is None:
            return False
        if not seen.running:
            return not planted.low - RUN_BELOW <= seen.sp < planted.high
        try:
            with self.visit(planted.tid, "watch") as tracee:
                return not planted.low - RUN_BELOW <= tracee.registers.rsp < planted.high
        except Failed as error:
            if error.reason in ("thread_gone", "thread_unstoppable"):
                return False
            raise

    def _call_by_runner(
        self, calls: Sequence[SystemCall], runner: Runner, deadline: float
    ) -> list[int]:
        self._await_earlier_batch(runner, deadline)
        records = injection.encode_records(calls)
        self.memory.write(runner.records, records)
        last = runner.records + len(records) - 8
        tried: dict[int, str] = {}
        while True:
            for planted in self._planting(calls, runner, tried):
                # It has the batch now: nobody else may get it, whatever happens.
                while self.memory.read_u64(last) != injection.DONE:
                    if not injection.poll(deadline):
                        tried[planted.tid] = "did not run the calls in time"
                        raise self._timed_out(tried)
                return injection.read_results(self.memory, runner, len(calls))
            if not injection.poll(deadline):
                raise self._timed_out(tried)

    def _await_earlier_batch(self, runner: Runner, deadline: float) -> None:
        """Wait for a batch that a killed applier left with a thread; forget one nobody has."""
        if not self._unfinished(runner):
            return
        while self._unfinished(runner) and self._in_flight(runner):
            if not injection.poll(deadline):
                raise Failed(
                    "injection_timeout",
                    f"process {self.pid}: a thread has not finished an earlier batch of system"
                    " calls yet; try again later",
                    pid=self.pid,
                )
        self.memory.write(runner.records, bytes(runner.capacity * injection.RECORD.size))

    def _unfinished(self, runner: Runner) -> bool:
        size = injection.RECORD.size
        data = self.memory.read(runner.records, runner.capacity * size)
        return any(
            int.from_bytes(data[offset + size - 8 : offset + size], "little") == injection.PENDING
            for offset in range(0, len(data), size)
        )

    def _in_flight(self, runner: Runner) -> bool:
        """Whether a thread is in the runner, or in a signal handler on top of it."""
        span = range(runner.address, runner.address + runner.size)
        maps = self.memory_map()
        for task in self.tasks():
            seen = self.look(task.tid)
            if seen is None:
                continue
            if seen.running:
                try:
                    with self.visit(task.tid, "watch") as tracee:
                        rip, rsp = tracee.registers.rip, tracee.registers.rsp
                except Failed as error:
                    if error.reason == "thread_gone":
                        continue
                    return True
            else:
                rip, rsp = seen.pc, seen.sp
            stack = maps.containing(rsp)
            if rip in span:
                return True
            if stack is not None and stack.readable:
                base = rsp & -8
                if injection.in_flight_words(self.memory.read(base, stack.end - base), span):
                    return True
        return False

    def _timed_out(self, tried: dict[int, str]) -> Failed:
        text = "; ".join(f"{tid}: {why}" for tid, why in list(tried.items())[:8])
        return Failed(
            "injection_timeout",
            f"process {self.pid}: no thread could run the system calls in time"
            f" ({text or 'none is in a usable state'}); try again later",
            pid=self.pid,
            tids=list(tried),
        )


RUN_BELOW = 64 * 1024  # a handler on top of the chain runs this far below it at least


class PtraceBackend:
    """The backend "ptrace"."""

    name = "ptrace"

    def __init__(self) -> None:
        self._layout = layout_of_this_host()

    def open(self, pid: int) -> PtraceSession:
        """Begin work on a process. Raises Refused: target_exited, kernel_thread, no_permission."""
        return PtraceSession(pid, self._layout)
