# SPDX-License-Identifier: GPL-3.0-or-later
"""A thread's stack, copied at one moment, and what words lie on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Optional

from .backend import Visit
from .errors import Failed
from .maps import Mapping
from .self_check_stub import StackBounds
from .tasks import Look, Task

if TYPE_CHECKING:
    from .backend.ptrace_requests import UserRegisters
    from .live_process import LiveProcess

Intervals = Sequence[tuple[int, int]]


@lru_cache(maxsize=16)
def _pattern(prefixes: frozenset[bytes]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(re.escape(prefix) for prefix in sorted(prefixes)))


def words_inside(stack: bytes, base: int, intervals: Intervals) -> list[int]:
    """The aligned words of ``stack`` (copied from ``base``) that lie in closed intervals.

    Words of one part of the address space share their upper five bytes: those are searched for at
    the speed of the C library, and only what is found is compared.
    """
    if not intervals:
        return []
    skip = -base % 8
    prefixes = frozenset(
        part.to_bytes(5, "little")
        for low, high in intervals
        for part in range(low >> 24, (high >> 24) + 1)
    )
    found = []
    for match in _pattern(prefixes).finditer(stack):
        at = match.start() - 3
        if at < skip or (at - skip) % 8:
            continue
        word = int.from_bytes(stack[at : at + 8], "little")
        if any(low <= word <= high for low, high in intervals):
            found.append(word)
    return found


@dataclass(frozen=True)
class Thread:
    """A thread at one moment: its stack from ``base`` (at or below rsp) up to its end.

    ``own_stack`` tells whether rsp is proved to be on the thread's own stack; ``registers`` and
    ``gs_base`` are known of stopped threads only.
    """

    tid: int
    rip: int
    rsp: int
    base: int
    stack: bytes
    own_stack: bool
    registers: Optional[UserRegisters] = None
    gs_base: Optional[int] = None

    def same_frames(self, other: Thread) -> bool:
        """Whether the thread is where it was in ``other``, with the same words on its stack."""
        return (self.rip, self.rsp, self.base, self.stack) == (
            other.rip,
            other.rsp,
            other.base,
            other.stack,
        )


def words_inside_thread(thread: Thread, intervals: Intervals) -> list[int]:
    """The thread's rip and words of its stack that lie in closed intervals."""
    found = [thread.rip] if any(low <= thread.rip <= high for low, high in intervals) else []
    return found + words_inside(thread.stack, thread.base, intervals)


class Threads:
    """How the threads of a process are looked at."""

    def __init__(self, process: LiveProcess) -> None:
        self._process = process
        self._memory = process.session.memory

    def stacks(self) -> object:
        from .transition import Stacks

        stack = self._process.memory_map.stack
        listed = []
        main = None
        for task in self._process.session.tasks():
            with self._process.session.visit(task.tid, "stack_bounds") as stopped:
                fs = stopped.registers.fs_base
                rsp = stopped.registers.rsp
            if stack is not None and task.tid == self._process.target.pid:
                main = StackBounds(fs, stack.end - (8 << 20), stack.end)
            else:
                mapping = self._process.session.memory_map().containing(rsp)
                if mapping and rsp < fs < mapping.end:
                    listed.append(StackBounds(fs, mapping.start, fs))
        return Stacks(0, main, tuple(listed))

    def comm(self, tid: int) -> str:
        """The task's name now."""
        for task in self._process.session.tasks():
            if task.tid == tid:
                return task.comm
        return ""

    def _mapping(self, sp: int) -> Mapping | None:
        mapping = self._process.memory_map.containing(sp)
        if mapping is None or not mapping.readable:
            self._process.memory_map = self._process.session.memory_map()
            mapping = self._process.memory_map.containing(sp)
        return mapping if mapping is not None and mapping.readable else None

    def sleeper(self, task: Task, look: Look) -> Thread | None:
        """A sleeping task, copied without a stop; None when it moved meanwhile or runs."""
        mapping = self._mapping(look.sp)
        if mapping is None:
            return None
        base = look.sp & -8
        try:
            stack = self._memory.read(base, mapping.end - base)
        except Failed as error:
            if error.reason != "memory_unreadable":
                raise
            return None
        again = self._process.session.look(task.tid)
        if again is None or again.running or again.stamp != look.stamp or again.sp != look.sp:
            return None
        return Thread(task.tid, look.pc, look.sp, base, stack, True)

    def stopped(self, visit: Visit) -> Thread | None:
        """A stopped task; None when its stack cannot be read."""
        registers = visit.registers.copy()
        mapping = self._mapping(registers.rsp)
        if mapping is None:
            return None
        base = registers.rsp & -8
        try:
            stack = self._memory.read(base, mapping.end - base)
        except Failed as error:
            if error.reason != "memory_unreadable":
                raise
            return None
        own = mapping.path == "[stack]" or registers.rsp < registers.fs_base < mapping.end
        return Thread(
            visit.tid,
            registers.rip,
            registers.rsp,
            base,
            stack,
            own,
            registers,
            registers.gs_base,
        )

    def unwind(self, thread: Thread) -> tuple[int, ...] | None:
        """The addresses of all frames; None when the stack cannot be unwound."""
        return None
