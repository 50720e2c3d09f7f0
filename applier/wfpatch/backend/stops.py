# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping one task and letting it go, so that its program notices nothing.

A tracee is seized (not stopped), interrupted, awaited with a deadline, and detached. What can come
in between: signals on their way (passed on), the task's end (reaped: an exec or exit of its process
waits for that), a group stop (left in force), and a task that does not stop at all, such as the
parent of a vfork. Nothing can detach a task that runs, so such a one is remembered as overdue and
detached at the moment it stops, by SIGCHLD.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import FrameType, TracebackType

from wfpatch.backend import ptrace_requests
from wfpatch.backend.ptrace_requests import TaskGone, UserRegisters
from wfpatch.errors import Failed, WfpatchError
from wfpatch.memory import ProcessMemory
from wfpatch.syscalls import (
    NR_POLL,
    NR_RESTART_SYSCALL,
    RESTARTED_BY_BLOCK,
    RETURNS_EINTR_ON_STOP,
)
from wfpatch.tasks import read_stat, read_status
from wfpatch.unwind import Grounds

_WALL = 0x40000000  # __WALL: threads too
_WAIT = os.WNOHANG | _WALL
_ENDED = os.WEXITED | os.WNOHANG | _WALL
_ENDS = frozenset({os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED})
_CHILD = frozenset({signal.SIGCHLD})
_SEIZES = 3
_REAP_AFTER = 0.02
_REMIND_AFTER = 0.1
_PATIENCE_NS = 150_000  # a task that a processor is free for has stopped by then
_SLICE_NS = 2_000_000  # a wake-up may get lost to another thread of ours: look again this often

RESTART_BLOCK = -516  # include/linux/errno.h: ERESTART_RESTARTBLOCK
RESTART_CODES = frozenset({-512, -513, -514, RESTART_BLOCK})
_IGNORED_BY_DEFAULT = sum(
    1 << (number - 1) for number in (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
)


def deliverable_signal_pending(tgid: int, tid: int) -> bool:
    """Whether a stopped task is about to run a signal handler (or to be ended by a signal)."""
    pending = ptrace_requests.pending_signals(tid, False) | ptrace_requests.pending_signals(
        tid, True
    )
    if not pending:
        return False
    status = read_status(tgid, tid)
    if status is None:
        return True
    blocked = int(status["SigBlk"], 16)
    ignored = int(status["SigIgn"], 16)
    caught = int(status["SigCgt"], 16)
    # While a task is traced, ignored signals are queued too; they are dropped on the way out.
    dropped = ignored | (_IGNORED_BY_DEFAULT & ~caught)
    return bool(pending & ~blocked & ~dropped)


def interrupted_by_stop(registers: UserRegisters) -> bool:
    """Whether the kernel, left to itself, would show the program or a later stop that there was
    one.

    Calls of RETURNS_EINTR_ON_STOP return EINTR. An endless poll(2) is restarted as restart_syscall,
    whose own number is lost (no call can be injected then); issued again it is the same poll. Calls
    with a time limit are left to the kernel, which restarts them for the time that remains.
    """
    number, result = registers.system_call, registers.result
    if result == -errno.EINTR:
        return number in RETURNS_EINTR_ON_STOP
    return result == RESTART_BLOCK and number == NR_POLL and bool(registers.rdx & 0x80000000)


class InterruptedCalls:
    """Which calls with a time limit our stops have made restart_syscall of, by thread.

    The kernel keeps such a call to itself from then on: a later stop finds only the number of
    restart_syscall, which cannot be issued again after a signal frame (the kernel forgets the call
    at rt_sigreturn, and it returns EINTR). With its own number the call itself can be.
    """

    def __init__(self) -> None:
        self._calls: dict[int, UserRegisters] = {}

    def note(self, tid: int, registers: UserRegisters) -> None:
        """Remember the call a stopped thread is in, if it is one of these."""
        if registers.result == RESTART_BLOCK and registers.system_call != NR_RESTART_SYSCALL:
            self._calls[tid] = registers.copy()

    def number(self, tid: int, registers: UserRegisters, before: bytes) -> int | None:
        """The number of the call that a thread in restart_syscall was in; None when unknown.

        Known from an earlier stop at the same place with the same arguments; or from the code,
        ``before`` being the 7 bytes before rip, if they are ``mov $number, %eax; syscall``.
        """
        known = self._calls.get(tid)
        if known is not None and all(
            getattr(known, name) == getattr(registers, name)
            for name in ("rip", "rsp", "rbp", "rdi", "rsi", "rdx", "r10", "r8")
        ):
            return known.system_call
        if len(before) == 7 and before[0] == 0xB8 and before[5:] == b"\x0f\x05":
            number = int.from_bytes(before[1:5], "little")
            return number if number in RESTARTED_BY_BLOCK else None
        return None


class Tracee:
    """One task under this thread's ptrace and, while it is stopped, the protocol's Visit."""

    __slots__ = (
        "_registers",
        "changed",
        "ended",
        "group_stopped",
        "injected",
        "interrupted",
        "interrupted_at",
        "memory",
        "overdue",
        "stopped",
        "tgid",
        "tid",
        "traced",
        "vanished",
    )

    def __init__(
        self,
        tgid: int,
        tid: int,
        memory: ProcessMemory,
        overdue: OverdueTracees,
        interrupted: InterruptedCalls,
    ) -> None:
        self.interrupted = interrupted
        self.tgid = tgid
        self.tid = tid
        self.memory = memory
        self.overdue = overdue
        self.traced = False
        self.stopped = False
        self.group_stopped = False
        self.changed = False
        self.ended = self.vanished = False
        self.injected = False
        self.interrupted_at = 0
        self._registers: UserRegisters | None = None

    # From running to stopped

    def seize(self) -> None:
        """Become the tracer. Raises Failed: thread_gone, already_traced, no_permission."""
        for attempt in range(_SEIZES):
            try:
                ptrace_requests.seize(self.tid)
            except OSError as error:
                why = self._why_not(error)
                # A thread that executes a program takes its leader's id over: a moment ago the id
                # was a dying task's, which may not be traced.
                if why.reason != "no_permission" or attempt == _SEIZES - 1:
                    raise why from error
            else:
                self.traced = True
                return

    def _why_not(self, error: OSError) -> WfpatchError:
        stat = read_stat(self.tgid, self.tid)
        if stat is None or not stat.runs_user_code:
            return self.gone()
        status = read_status(self.tgid, self.tid)
        tracer = int(status["TracerPid"]) if status else 0
        if self.tid in self.overdue:
            return Failed(
                "thread_unstoppable",
                f"thread {self.tid} of process {self.tgid} has not answered an earlier request to"
                " stop yet; try again later",
                pid=self.tgid,
                tid=self.tid,
            )
        if _is_ours(tracer):
            # Seized under another id, by which nobody is known any more.
            return Failed(
                "target_changed",
                f"process {self.tgid} is executing another program",
                pid=self.tgid,
                tid=self.tid,
            )
        if tracer:
            return Failed(
                "already_traced",
                f"thread {self.tid} of process {self.tgid} is traced by process {tracer};"
                " end that tracer and try again",
                pid=self.tgid,
                tid=self.tid,
                tracer=tracer,
            )
        return Failed(
            "no_permission",
            f"thread {self.tid} of process {self.tgid} cannot be traced ({error.strerror});"
            " CAP_SYS_PTRACE over its user namespace is needed",
            pid=self.tgid,
            tid=self.tid,
        )

    def gone(self) -> Failed:
        """The error for a task that has ended."""
        return Failed(
            "thread_gone",
            f"thread {self.tid} of process {self.tgid} has ended",
            pid=self.tgid,
            tid=self.tid,
        )

    def interrupt(self) -> None:
        """Ask the task to stop; asking again does no harm."""
        if not self.interrupted_at:
            self.interrupted_at = time.perf_counter_ns()
        try:
            ptrace_requests.interrupt(self.tid)
        except TaskGone:
            # No tracee of ours has this id: it was reaped, or another thread executed a program
            # and took the id over.
            self.ended = self.vanished = True

    def poll(self) -> bool:
        """Take what the task has reported: whether it stopped. Raises Failed("thread_gone")."""
        if self.ended:
            self.traced = False
            raise self.gone()
        while not self.stopped:
            try:
                pid, status = os.waitpid(self.tid, _WAIT)
            except ChildProcessError:
                self.vanished = True
                self.traced = False
                raise self.gone() from None
            if pid == 0:
                return False
            if not os.WIFSTOPPED(status):
                self.traced = False
                raise self.gone()
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == ptrace_requests.EVENT_STOP:
                self.stopped = True
                self.group_stopped = number != signal.SIGTRAP
            else:
                # On its way to a signal handler: pass the signal on; the stop asked for comes right
                # after, before the handler's first instruction.
                with suppress(TaskGone):
                    ptrace_requests.cont(self.tid, 0 if event else number)
        return True

    def reap(self) -> None:
        """Take note of the task's end if it has ended, and of nothing else. Any thread may."""
        if not self.traced or self.ended:
            return
        try:
            # A tracee's stops are reported whether asked for or not: those stay for poll().
            report = os.waitid(os.P_PID, self.tid, _ENDED | os.WNOWAIT)
            if report is not None and report.si_code in _ENDS:
                os.waitid(os.P_PID, self.tid, _ENDED)
                self.ended = True
        except ChildProcessError:
            self.ended = self.vanished = True

    def unstoppable(self, timeout: float) -> Failed:
        """The error for a task that did not stop in time."""
        return Failed(
            "thread_unstoppable",
            f"thread {self.tid} of process {self.tgid} did not stop within {timeout:g} s"
            " (asleep in the kernel, or waiting for a vfork child); try again later",
            pid=self.tgid,
            tid=self.tid,
        )

    # While stopped: the Visit

    @property
    def registers(self) -> UserRegisters:
        """The registers; changes take effect with set_registers()."""
        if self._registers is None:
            self._registers = ptrace_requests.get_registers(self.tid)
        return self._registers

    def set_registers(self) -> None:
        """Make ``registers`` the thread's registers.

        A thread may be stopped behind a system call that the kernel is about to restart: it then
        steps two bytes back from whatever rip says, so a moved rip must lie behind a ``syscall`` as
        well.
        """
        self.require_same_memory()
        ptrace_requests.set_registers(self.tid, self.registers)
        self.changed = True

    def unchanged(self) -> bool:
        """True: it is stopped."""
        return True

    def set_gs_base(self, value: int, grounds: Grounds | None = None) -> None:
        """Set the GS base. Raises Failed("applier_failed") when it does not read back as set."""
        self.require_same_memory()
        ptrace_requests.poke_gs_base(self.tid, value)
        self.registers.gs_base = value
        found = ptrace_requests.get_registers(self.tid).gs_base
        if found != value:
            raise Failed(
                "applier_failed",
                f"thread {self.tid} of process {self.tgid}: GS base reads {found:#x} after"
                f" {value:#x} was set",
                pid=self.tgid,
                tid=self.tid,
            )

    def read(self, address: int, size: int) -> bytes:
        """Memory of the process."""
        return self.memory.read(address, size)

    def require_same_memory(self) -> None:
        """Prove that the thread still runs in the address space that ``memory`` is open on.

        Raises Failed("target_changed") after an exec in between.
        """
        address = self.registers.rsp & -8
        try:
            same = ptrace_requests.peek_word(self.tid, address) == self.memory.read_u64(address)
        except (OSError, Failed):
            same = False
        if not same:
            raise Failed(
                "target_changed",
                f"thread {self.tid} of process {self.tgid} no longer runs in the memory that was"
                " examined (exec?)",
                pid=self.tgid,
                tid=self.tid,
            )

    # From stopped to running

    def release(self) -> int:
        """Let the task go; returns the microseconds since it was asked to stop.

        A task that has ended meanwhile is no error.
        """
        if self.traced:
            if self.stopped:
                with suppress(OSError, WfpatchError):  # killed meanwhile
                    self._undo_eintr()
                    self.interrupted.note(self.tid, self.registers)
                self.detach()
            else:
                self.overdue.add(self)
        return (time.perf_counter_ns() - self.interrupted_at) // 1000 if self.interrupted_at else 0

    def detach(self) -> None:
        """PTRACE_DETACH; a task that was killed meanwhile is reaped."""
        try:
            ptrace_requests.detach(self.tid)
        except TaskGone:
            self.stopped = False
            self.overdue.add(self)
            return
        self.traced = self.stopped = False

    def _undo_eintr(self) -> None:
        """Run a call again that would return EINTR, or lose its number, because of the stop."""
        if self.injected or self.group_stopped:
            return
        registers = self.registers
        if not interrupted_by_stop(registers) or deliverable_signal_pending(self.tgid, self.tid):
            return
        before = registers.copy()
        self.restart_system_call(registers)
        ptrace_requests.set_registers(self.tid, registers)
        # A signal that came in between has a handler to run, after which the program is told EINTR:
        # one that waits for just that (ppoll, epoll_pwait) must not sleep again.
        if deliverable_signal_pending(self.tgid, self.tid):
            ptrace_requests.set_registers(self.tid, before)

    @staticmethod
    def restart_system_call(registers: UserRegisters) -> None:
        """Change registers from behind a system call to before it."""
        registers.rip -= 2  # the length of ``syscall``
        registers.rax = registers.orig_rax
        registers.orig_rax = (1 << 64) - 1


def traced_by_us(tgid: int, tid: int) -> bool:
    """Whether a thread of this process is the task's tracer."""
    status = read_status(tgid, tid)
    return status is not None and _is_ours(int(status["TracerPid"]))


def _is_ours(tracer: int) -> bool:
    return tracer != 0 and os.path.exists(f"/proc/self/task/{tracer}")


class OverdueTracees:
    """Tracees that did not stop in time, or ended unreaped: each is dealt with when it reports.

    Only the thread that seized a task may detach it, and Python runs signal handlers in the main
    thread only. A session that is used from another thread must therefore end that thread after
    Failed("thread_unstoppable"): the kernel then detaches by itself.
    """

    def __init__(self) -> None:
        self._tracees: dict[int, Tracee] = {}
        self._previous: object = None
        self._installed = False

    def add(self, tracee: Tracee) -> None:
        """Take over a tracee that is not stopped."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD)
        try:
            tracee.traced, tracee.stopped = True, False
            self._tracees[tracee.tid] = tracee
            if not self._installed and threading.current_thread() is threading.main_thread():
                self._previous = signal.signal(signal.SIGCHLD, self._on_child)
                self._installed = True
                threading.Thread(target=self._remind, daemon=True).start()
            self.settle()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def find_again(self, tracee: Tracee) -> None:
        """Find a tracee again that vanished without having ended: its id may have changed.

        A thread that executes a program takes the id of its leader over, and still is our tracee.
        """
        tgid = tracee.tgid
        if tracee.vanished and tracee.tid != tgid and tgid not in self and traced_by_us(tgid, tgid):
            self.add(Tracee(tgid, tgid, tracee.memory, self, tracee.interrupted))

    def _remind(self) -> None:
        # A thread that executes a program may forget that it was asked to stop (seen on 6.18): it
        # then never reports, and has to be asked again.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while self._installed:
            time.sleep(_REMIND_AFTER)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGCHLD)

    def _on_child(self, number: int, frame: FrameType | None) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD)
        try:
            self.settle()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if callable(self._previous):
            self._previous(number, frame)

    def settle(self) -> None:
        """Detach those that have stopped, forget those that have ended. SIGCHLD is blocked."""
        for tracee in self:
            try:
                if not tracee.poll():
                    with suppress(OSError):  # the next reminder asks again
                        tracee.interrupt()
                    continue
            except Failed:
                self._tracees.pop(tracee.tid, None)
                self.find_again(tracee)
                continue
            self._tracees.pop(tracee.tid, None)
            tracee.release()
        if not self._tracees and self._installed:
            self._installed = False
            signal.signal(signal.SIGCHLD, self._previous or signal.SIG_DFL)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._tracees)

    def __iter__(self) -> Iterator[Tracee]:
        return iter(list(self._tracees.values()))

    def __contains__(self, tid: int) -> bool:
        return tid in self._tracees


OVERDUE = OverdueTracees()


class ReapWhileSeizing:
    """Context manager around requests to seize tasks while others are traced already.

    SEIZE waits while the task's process executes a program (cred_guard_mutex), and that waits for
    its other threads, killed by it, to be reaped: by us, who wait. So another thread of ours reaps
    them; it looks up only if the first is not done after a while.
    """

    def __init__(self, tracees: Callable[[], Iterable[Tracee]]) -> None:
        self._tracees = tracees
        self._done = threading.Event()

    def __enter__(self) -> ReapWhileSeizing:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._done.wait(_REAP_AFTER):
            for tracee in list(self._tracees()):
                tracee.reap()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()


def end_time_slice_on_processor_of(tgid: int, tid: int) -> None:
    """Visit the processor whose queue a task waits in.

    A task that was asked to stop has to run for a moment. Woken on a processor that another one
    computes on, it may be kept waiting for that one's time slice (2 to 4 ms) although another
    processor is idle: ours, as soon as we wait. A real-time thread that comes there ends the time
    slice, and the scheduler chooses anew. Where we run with no such priority, or may not go there,
    nothing is gained or lost.
    """
    stat = read_stat(tgid, tid)
    if stat is None:
        return
    with suppress(OSError):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {stat.processor})
        finally:
            os.sched_setaffinity(0, allowed)


def await_stops(
    tracees: list[Tracee], deadline_ns: int, overdue: OverdueTracees
) -> tuple[list[Tracee], list[Tracee]]:
    """Wait until all these interrupted tracees have stopped or ended, or until the deadline.

    Returns (ended, still running). The caller has SIGCHLD blocked (Undisturbed).
    """
    ended: list[Tracee] = []
    # They stop about in the order in which they were asked: only the first that has not is asked
    # again at each wake-up.
    waiting = tracees[::-1]
    intervened = False
    while waiting:
        try:
            if waiting[-1].poll():
                waiting.pop()
                continue
        except Failed:
            ended.append(waiting.pop())
            continue
        left = deadline_ns - time.perf_counter_ns()
        if left <= 0:
            break
        patience = _SLICE_NS if intervened else _PATIENCE_NS
        if signal.sigtimedwait(_CHILD, min(left, patience) / 1e9) is not None:
            pass
        elif not intervened:
            intervened = True
            end_time_slice_on_processor_of(waiting[-1].tgid, waiting[-1].tid)
        else:
            # A thread that executes a program cannot stop before all others are reaped, and may
            # forget that it was asked.
            for tracee in tracees:
                tracee.reap()
            for tracee in waiting:
                tracee.interrupt()
        if len(overdue):
            overdue.settle()
    running = []
    for tracee in waiting:
        try:
            if not tracee.poll():
                running.append(tracee)
        except Failed:
            ended.append(tracee)
    return ended, running
