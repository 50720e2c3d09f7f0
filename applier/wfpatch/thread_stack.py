# SPDX-License-Identifier: GPL-3.0-or-later
"""A thread's stack, copied at one moment, and what words lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from .backend import Visit
from .errors import Failed
from .maps import Mapping
from .quiescence import Restorers, alternate_stack, copy_sleeper, words_inside
from .region_header import Slot
from .self_check_stub import StackBounds
from .tasks import Look, Task
from .thread_descriptor import find_descriptors
from .unwind import CopiedCode, Grounds, StackMemory, Unwinder, stop_registers

if TYPE_CHECKING:
    from .backend.ptrace_requests import UserRegisters
    from .live_process import LiveProcess

Intervals = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Stacks:
    """How threads prove that they are on their own stack.

    ``stackblock`` is the offset of glibc's field in struct pthread, 0 where it is unknown;
    ``main`` the main thread's bounds; ``listed`` those of threads whose descriptors tell nothing.
    ``signal_returns`` are the addresses to which signal handlers return: a thread with such a word
    on its stack may run on an alternate stack that sigaltstack(2) does not tell of
    (SS_AUTODISARM), above frames that no scan sees, so it does not migrate before the handler has
    returned.
    """

    stackblock: int
    main: StackBounds | None
    listed: tuple[StackBounds, ...]
    signal_returns: frozenset[int]


@dataclass(frozen=True)
class Thread:
    """A thread at one moment: its stack from ``base`` (at or below rsp) up to its end.

    ``own_stack`` tells whether all its frames are proved to lie in ``stack``: rsp is on the
    thread's own stack, and no signal handler runs on an alternate one. ``registers`` and
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
    return found + [hit.word for hit in words_inside(thread.stack, thread.base, intervals)]


def copies_of(slot: Slot) -> list[CopiedCode]:
    """The slot's displaced instructions, for the unwinder."""
    low = slot.continuation.low
    places = tuple((low + here, slot.address + there) for there, here in slot.boundaries)
    copies = [CopiedCode(slot.continuation.high, places)]
    at, code = slot.evicted
    if at and len(slot.boundaries) > 1:
        copies.append(CopiedCode(at + len(code), ((at, slot.address + slot.boundaries[1][0]),)))
    return copies


class Threads:
    """How the threads of a process are looked at; what needs no stop is found out at once."""

    def __init__(self, process: LiveProcess) -> None:
        self._process = process
        self._memory = process.session.memory
        self._restorers = Restorers.find(self._memory, process.images)
        self._descriptors = find_descriptors(
            process.target.pid,
            process.session.tasks(),
            self._memory,
            process.memory_map,
            process.images,
        )
        self._unwinder = Unwinder(
            self._memory,
            process.images,
            [
                loaded.frames
                for region in process.regions
                for loaded in region.header.loaded
                if loaded.frames[1]
            ],
            [
                copy
                for region in process.regions
                for slot in region.header.slots
                for copy in copies_of(slot)
            ],
        )

    def stacks(self) -> Stacks:
        """What the self-check needs; a stop only for threads that have no glibc descriptor."""
        listed = []
        session = self._process.session
        for task in session.tasks():
            if self._descriptors.bounds(task.tid) is not None:
                continue
            try:
                with session.visit(task.tid, "stack_bounds") as stopped:
                    base, rsp = stopped.registers.fs_base, stopped.registers.rsp
            except Failed as error:
                if error.reason not in ("thread_gone", "thread_unstoppable"):
                    raise
                continue
            mapping = self._mapping(rsp)
            if mapping is not None and rsp < base < mapping.end:
                listed.append(StackBounds(base, mapping.start, base))
        return Stacks(
            self._descriptors.stackblock,
            self._descriptors.main,
            tuple(listed),
            frozenset(self._restorers.addresses),
        )

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

    def _copy(self, visit: Visit, base: int, high: int) -> bytes | None:
        try:
            return visit.read(base, high - base)
        except Failed as error:
            if error.reason != "memory_unreadable":
                raise
            return None

    def sleeper(self, task: Task, look: Look) -> Thread | None:
        """A sleeping task on its own stack, copied without a stop; None for any other."""
        bounds = self._descriptors.bounds(task.tid)
        if bounds is None:
            return None
        session = self._process.session
        try:
            copy = copy_sleeper(
                look, self._memory, (bounds.low, bounds.high), lambda: session.look(task.tid)
            )
        except Failed as error:
            if error.reason != "memory_unreadable":
                raise
            return None
        if copy is None:
            return None
        own = alternate_stack(copy.data, copy.sp, self._restorers, copy.pc) is None
        return Thread(task.tid, copy.pc, copy.sp, copy.sp, copy.data, own)

    def stopped(self, visit: Visit) -> Thread | None:
        """A stopped task; None when its stack cannot be read."""
        registers = visit.registers.copy()
        rsp = registers.rsp
        base = rsp & -8
        bounds = self._descriptors.bounds_of(registers.fs_base)
        if bounds is not None and bounds.low <= rsp < bounds.high:
            high, own = bounds.high, True
        else:
            mapping = self._mapping(rsp)
            if mapping is None:
                return None
            own = bounds is None and rsp < registers.fs_base < mapping.end
            high = registers.fs_base if own else mapping.end
        stack = self._copy(visit, base, high)
        if stack is None:
            return None
        own = own and alternate_stack(stack, base, self._restorers, registers.rip) is None
        return Thread(visit.tid, registers.rip, rsp, base, stack, own, registers, registers.gs_base)

    def unwind(self, thread: Thread, visit: Visit | None = None) -> tuple[int, ...] | None:
        """The addresses of all frames of a thread that was visited; None when it cannot be unwound.

        What follows from the copy alone is so of the moment when it was made. A ``visit`` that is
        still on lets the unwinder follow a signal handler to the stack it interrupted, which is not
        in the copy.
        """
        if thread.registers is None:
            return None
        registers = stop_registers(thread.registers)
        unwound = self._unwinder.unwind(registers, StackMemory(thread.base, thread.stack))
        if not unwound.complete and visit is not None:
            memory = StackMemory(thread.base, thread.stack, self._memory)
            unwound = self._unwinder.unwind(registers, memory)
            if not visit.unchanged():
                return None
        if not unwound.complete:
            return None
        return tuple(frame.pc for frame in unwound.frames)

    def grounds(self, thread: Thread) -> Grounds | None:
        """What the frames of a thread, as unwound from its copy, follow from."""
        if thread.registers is None:
            return None
        copy = StackMemory(thread.base, thread.stack)
        return self._unwinder.grounds(stop_registers(thread.registers), copy)

    def own_stacks(self) -> tuple[tuple[int, int, int], ...]:
        """(FS base, low, high) of the stacks that are known, for a survey."""
        found = []
        for task in self._process.session.tasks():
            bounds = self._descriptors.bounds(task.tid)
            if bounds is not None:
                found.append((bounds.tcb, bounds.low, bounds.high & -8))
        return tuple(found)

    @property
    def signal_returns(self) -> tuple[tuple[int, int], ...]:
        """The addresses that signal handlers return to, as intervals."""
        return tuple((address, address) for address in self._restorers.addresses)
