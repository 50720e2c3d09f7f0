# SPDX-License-Identifier: GPL-3.0-or-later
"""Where each thread's descriptor (TCB) and stack lie, found without stopping anyone.

glibc keeps its ``struct pthread`` at the thread pointer: word 0 (``tcb``) and word 2 (``self``)
point to itself (sysdeps/x86_64/nptl/tls.h), and ``stackblock``, ``stackblock_size`` name the stack
that it lies on top of (nptl/descr.h). Their offsets differ between versions, so they are found by
evidence from the process at hand, never from a table:

- the kernel tells the head of each task's robust futex list (get_robust_list(2)), which is a member
  of the descriptor; the self pointers below it prove where the descriptor begins;
- the thread's id stands at one offset in all descriptors;
- at one offset, every thread's pair names mapped memory that the descriptor itself ends;
- the main thread's pair is 0 and ``__libc_stack_end`` (``__tls_init_tp``).

What is not proved is left out, and the caller falls back on a short stop, or does not migrate.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .elf_object import ObjectImage
from .errors import WfpatchError
from .libc import C
from .maps import MemoryMap
from .object_memory import Memory
from .self_check_stub import StackBounds

_NR_GET_ROBUST_LIST = 274
_DESCRIPTOR_SPAN = 8192  # struct pthread is 2,304 bytes in glibc 2.36
_SELF = 16  # offset of tcbhead_t.self
_FIRST_MEMBER = 0x40  # what lies below belongs to tcbhead_t
# The descriptor ends its stack block, but for padding to the alignment of thread-local blocks.
_LARGEST_REST = 128 << 10
_LARGEST_STACK = 1 << 40
# How many threads vote; all are checked when their bounds are asked for.
_VOTERS = 128
# mmap keeps clear of the main stack by its limit, at least by this (arch/x86/mm/mmap.c).
_MAIN_STACK_GAP = 128 << 20


class Task(Protocol):
    """A task of the process (tasks.Task)."""

    @property
    def tgid(self) -> int: ...

    @property
    def tid(self) -> int: ...


def robust_list_head(tid: int) -> int:
    """The address of a task's robust futex list, 0 where it has none or may not be asked."""
    head, size = ctypes.c_uint64(), ctypes.c_uint64()
    result = C.syscall(
        ctypes.c_long(_NR_GET_ROBUST_LIST),
        ctypes.c_long(tid),
        ctypes.byref(head),
        ctypes.byref(size),
    )
    return int(head.value) if result == 0 else 0


@dataclass(frozen=True)
class ThreadDescriptors:
    """What was proved about a process's descriptors; offsets are 0 where there is no proof.

    ``head`` is the offset of the robust list's head in the descriptor, ``tid`` that of the thread's
    id, ``stackblock`` that of the stack's address, its size following. ``main`` are the main
    thread's bounds: its low end is as far as its stack may grow.
    """

    memory: Memory = field(repr=False)
    head: int = 0
    tid: int = 0
    stackblock: int = 0
    main: StackBounds | None = None

    def tcb(self, tid: int) -> int | None:
        """The address of a task's descriptor; None when it has none of its own (a vfork child)."""
        if not self.head:
            return None
        address = robust_list_head(tid) - self.head
        return address if address > 0 and _is_descriptor(self.memory, address) else None

    def bounds(self, tid: int) -> StackBounds | None:
        """The stack of a task, without a stop; None when it is not known."""
        tcb = self.tcb(tid)
        return None if tcb is None else self.bounds_of(tcb)

    def bounds_of(self, tcb: int) -> StackBounds | None:
        """The stack of the thread with that descriptor (its FS base); None when not known.

        ``low`` is the end of the guard, ``high`` the descriptor: frames end below it. The main
        thread's stack is ``[stack]``.
        """
        if self.main is not None and tcb == self.main.tcb:
            return self.main
        if not self.stackblock or tcb <= 0:
            return None
        try:
            if not _is_descriptor(self.memory, tcb):
                return None
            pair = self.memory.read(tcb + self.stackblock, 24)
        except WfpatchError:
            return None
        block, size, guard = struct.unpack("<QQQ", pair)
        if not _is_block(block, size, tcb):
            return None
        return StackBounds(tcb, block + guard if guard < tcb - block else block, tcb)


def _is_descriptor(memory: Memory, address: int) -> bool:
    try:
        head = memory.read(address, 24)
    except WfpatchError:
        return False
    tcb, _, own = struct.unpack("<QQQ", head)
    return bool(tcb == address == own)


def _is_block(block: int, size: int, tcb: int) -> bool:
    """Whether a stack block [block, block + size) can be that of a descriptor."""
    return 0 < block < tcb < block + size <= tcb + _LARGEST_REST and size < _LARGEST_STACK


@dataclass(frozen=True)
class _Sample:
    """One thread: its id as it sees it itself, and the words of its descriptor."""

    number: int
    main: bool
    tcb: int
    head: int
    words: tuple[int, ...]

    def word(self, offset: int) -> int:
        index = offset // 8
        return self.words[index] if index < len(self.words) else 0


def find_descriptors(
    pid: int,
    tasks: Iterable[Task],
    memory: Memory,
    memory_map: MemoryMap,
    images: Sequence[ObjectImage] = (),
) -> ThreadDescriptors:
    """Find the descriptors of the threads of process ``pid`` by the evidence in it.

    ``tasks`` are those that share its memory, ``images`` its objects (for ``__libc_stack_end``).
    """
    samples = []
    for task in tasks:
        sample = _sample(pid, task, memory, memory_map)
        if sample is not None:
            samples.append(sample)
            if len(samples) == _VOTERS:
                break
    heads = {sample.head - sample.tcb for sample in samples}
    if len(heads) != 1:
        return ThreadDescriptors(memory)
    tid = _thread_id_offset(samples)
    if not tid and len(samples) > 1:
        return ThreadDescriptors(memory)
    main = next((sample for sample in samples if sample.main), None)
    return ThreadDescriptors(
        memory,
        heads.pop(),
        tid,
        _stackblock_offset(samples, main, memory, memory_map, images),
        None if main is None else _main_bounds(main.tcb, memory_map),
    )


def _sample(pid: int, task: Task, memory: Memory, memory_map: MemoryMap) -> _Sample | None:
    head = robust_list_head(task.tid)
    mapping = memory_map.containing(head) if head else None
    if mapping is None or head % 8:
        return None
    start = max(mapping.start, head - _DESCRIPTOR_SPAN)
    end = min(mapping.end, head + _DESCRIPTOR_SPAN)
    start += (head - start) % 8
    try:
        data = memory.read(start, end - start)
    except WfpatchError:
        return None
    words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) & -8])
    # the nearest below: another thread's descriptor may lie in the same mapping, further down
    for index in range((head - start) // 8, -1, -1):
        tcb = start + 8 * index
        if words[index] == tcb and words[index + _SELF // 8] == tcb:
            number = _own_number(task)
            main = task.tid == task.tgid == pid
            return _Sample(number, main, tcb, head, words[index:])
    return None


def _own_number(task: Task) -> int:
    """The thread's id in its innermost PID namespace, as gettid(2) tells it."""
    try:
        with open(f"/proc/{task.tgid}/task/{task.tid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except (OSError, ValueError):
        pass
    return task.tid


def _thread_id_offset(samples: Sequence[_Sample]) -> int:
    """The one offset at which every descriptor has its thread's id (a 32-bit number)."""
    found = []
    span = min(len(sample.words) for sample in samples) * 8
    for offset in range(_FIRST_MEMBER, span, 4):
        shift = 8 * (offset % 8)
        if all(s.word(offset) >> shift & 0xFFFFFFFF == s.number for s in samples):
            found.append(offset)
    return found[0] if len(found) == 1 else 0


def _stackblock_offset(
    samples: Sequence[_Sample],
    main: _Sample | None,
    memory: Memory,
    memory_map: MemoryMap,
    images: Sequence[ObjectImage],
) -> int:
    others = [sample for sample in samples if not sample.main]
    span = min(len(sample.words) for sample in samples) * 8
    votes = {
        offset
        for offset in range(_FIRST_MEMBER, span - 16, 8)
        if others and all(_names_its_stack(sample, offset, memory_map) for sample in others)
    }
    of_main = _main_evidence(main, memory, images)
    if others:
        # the main thread's word, where it is known, must not contradict the others
        if len(votes) > 1 and of_main:
            votes &= of_main
        return votes.pop() if len(votes) == 1 else 0
    return of_main.pop() if len(of_main) == 1 else 0


def _names_its_stack(sample: _Sample, offset: int, memory_map: MemoryMap) -> bool:
    block, size, guard = (sample.word(offset + 8 * i) for i in range(3))
    if not _is_block(block, size, sample.tcb) or guard >= size or guard % 4096:
        return False
    position = block
    while position < block + size:
        mapping = memory_map.containing(position)
        if mapping is None:
            return False
        position = mapping.end
    return True


def _main_evidence(main: _Sample | None, memory: Memory, images: Sequence[ObjectImage]) -> set[int]:
    """Offsets at which the main thread's descriptor has 0 and __libc_stack_end."""
    if main is None:
        return set()
    for image in images:
        try:
            symbol = image.definition("__libc_stack_end", None)
            if symbol is None:
                continue
            (end,) = struct.unpack("<Q", memory.read(image.address(symbol.value), 8))
        except WfpatchError:
            continue
        return {
            offset
            for offset in range(_FIRST_MEMBER, len(main.words) * 8 - 8, 8)
            if end and main.word(offset + 8) == end and not main.word(offset)
        }
    return set()


def _main_bounds(tcb: int, memory_map: MemoryMap) -> StackBounds | None:
    """The main thread's stack: ``[stack]``, and what it may grow into."""
    stack = memory_map.stack
    if stack is None:
        return None
    below = max((m.end for m in memory_map if m.end <= stack.start), default=0)
    return StackBounds(tcb, min(stack.start, max(below, stack.end - _MAIN_STACK_GAP)), stack.end)
