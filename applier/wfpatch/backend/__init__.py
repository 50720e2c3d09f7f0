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


class Visit(Protocol):
    """A stopped thread."""

    tid: int

    @property
    def registers(self) -> UserRegisters:
        """The thread's registers; changes count once set_registers() is called."""

    def set_registers(self) -> None:
        """Make ``registers``, as changed by the caller, the thread's registers."""

    def set_gs_base(self, value: int) -> None:
        """Set the GS base, verified by reading it back."""

    def read(self, address: int, size: int) -> bytes:
        """Memory of the process."""


class Session(Protocol):
    """A process under work, by one thread of the applier."""

    pid: int
    memory: ProcessMemory
    stops: list[StopRecord]
    stack_bounds: StackBounds | None

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
        """One short stop of one thread."""

    def hold_all(self, purpose: str, timeout: float) -> AbstractContextManager[Sequence[Visit]]:
        """All tasks stopped at once."""

    def close(self) -> None:
        """End the work."""


class Backend(Protocol):
    """A way to touch processes."""

    name: str

    def open(self, pid: int) -> Session:
        """Begin work on a process."""
