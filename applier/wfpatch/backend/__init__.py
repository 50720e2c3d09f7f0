# SPDX-License-Identifier: GPL-3.0-or-later
"""What touches a process: the protocol that every backend fulfils; the engine knows no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Protocol

if TYPE_CHECKING:
    from wfpatch.backend.ptrace_requests import UserRegisters
    from wfpatch.maps import MemoryMap
    from wfpatch.memory import ProcessMemory
    from wfpatch.seccomp import SeccompState
    from wfpatch.syscalls import SystemCall
    from wfpatch.tasks import Look, Task
    from wfpatch.unwind import Grounds

# (tid, fs_base) -> [low, high) of the thread's own stack, None when it cannot be told.
StackBounds = Callable[[int, int], Optional[tuple[int, int]]]


@dataclass(frozen=True)
class StopRecord:
    """One stop of one thread: from the request to stop until it was let go (an upper bound)."""

    tid: int
    purpose: str
    microseconds: int


@dataclass(frozen=True)
class Runner:
    """A region's syscall runner: its code, its records, and for how many records there is room."""

    address: int
    size: int
    records: int
    capacity: int


@dataclass(frozen=True)
class Poke:
    """Bytes of code to change while threads run: ``before`` and ``after`` are equally long.

    ``redirect`` is code that means what the old code at ``address`` does.
    """

    address: int
    before: bytes
    after: bytes
    redirect: int


@dataclass(frozen=True)
class Survey:
    """What a backend that sees all threads at once is asked: who is *clear*?

    A thread is, once at one moment its rip and no word of its own stack's used part lay in one of
    the closed intervals that count for it: ``old``, ``pending`` and ``signal_returns``; of a thread
    in one of ``left_rows`` only ``pending``. ``stacks`` are (fs_base, low, high). A clear thread in
    one of ``from_rows`` is moved to row ``target``. Without ``patient`` each thread is judged at
    its first moment only. ``seconds`` is how long it may take.
    """

    old: Sequence[tuple[int, int]] = ()
    pending: Sequence[tuple[int, int]] = ()
    signal_returns: Sequence[tuple[int, int]] = ()
    stacks: Sequence[tuple[int, int, int]] = ()
    left_rows: frozenset[int] = frozenset()
    from_rows: frozenset[int] = frozenset()
    target: int = 0
    patient: bool = True
    seconds: float = 1.0


@dataclass(frozen=True)
class Surveyed:
    """What a survey saw of one task; ``start_time`` in clock ticks since boot.

    ``gs_base`` as it was before a move, None of a task that was not seen; ``accused`` is the word
    that lay in an interval, or None.
    """

    tid: int
    start_time: int
    clear: bool
    reason: str
    gs_base: Optional[int]
    accused: Optional[int] = None


class Visit(Protocol):
    """A stopped thread, or one as it was at a moment when it ran no user code."""

    tid: int
    #: Whether it is stopped; else all that is known of it is how it was at that moment.
    stopped: bool

    @property
    def registers(self) -> UserRegisters:
        """The thread's registers; changes count once set_registers() is called."""

    def set_registers(self) -> None:
        """Make ``registers``, as changed by the caller, the thread's registers."""

    def set_gs_base(self, value: int, grounds: Optional[Grounds] = None) -> None:
        """Set the GS base, verified by reading it back; of a thread that is not stopped, only if
        it is as it was, or has its ``grounds`` again. Raises Failed("thread_unstoppable") else."""

    def unchanged(self) -> bool:
        """Whether all of the thread's memory is as it was when the visit began."""

    def read(self, address: int, size: int) -> bytes:
        """Memory of the process."""


class Session(Protocol):
    """A process under work, by one thread of the applier."""

    pid: int
    memory: ProcessMemory
    stops: list[StopRecord]
    stack_bounds: StackBounds | None
    #: Whether poke() changes code; else entries are armed by single bytes, page swaps and holds.
    pokes: bool
    #: Whether seccomp() knows the filters; else the check routine must make no calls in a task
    #: that has one, and survey() moves it instead.
    reads_filters: bool

    def memory_map(self) -> MemoryMap:
        """A fresh snapshot."""

    def tasks(self) -> tuple[Task, ...]:
        """All tasks that share the memory."""

    def look(self, tid: int) -> Look | None:
        """A task from outside, without a stop; None when it is gone."""

    def check(self, calls: Sequence[SystemCall] = (), allow_init: bool = False) -> None:
        """Refuse a process that this backend cannot work on. Nothing is written."""

    def seccomp(self, tid: int) -> SeccompState:
        """The seccomp state of a task."""

    def call(self, calls: Sequence[SystemCall], runner: Runner | None = None) -> list[int]:
        """Run system calls inside the process; their raw results."""

    def visit(self, tid: int, purpose: str) -> AbstractContextManager[Visit]:
        """One short stop of one thread, or its state at one moment."""

    def survey(self, wanted: Survey) -> Sequence[Surveyed] | None:
        """All tasks judged at one moment each; None where the backend cannot."""

    def poke(self, pokes: Sequence[Poke], moves: Sequence[tuple[int, int]] = ()) -> str:
        """Change code that threads are in, all or nothing.

        Returns the thread that stayed inside the bytes, empty when it is done. ``moves`` are
        (from, to) for each instruction boundary in the inside of a poke, ascending.
        """

    def hold_all(self, purpose: str, timeout: float) -> AbstractContextManager[Sequence[Visit]]:
        """All tasks stopped at once."""

    def close(self) -> None:
        """End the work."""


class Backend(Protocol):
    """A way to touch processes."""

    name: str

    def open(self, pid: int) -> Session:
        """Begin work on a process."""
