# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel backend: the kernel service does the work, and no thread is stopped, signalled or
traced."""

from __future__ import annotations

import ctypes
import errno
import os
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wfpatch.backend import Poke, Runner, Survey, Surveyed, kernel_requests, preflight
from wfpatch.backend.hold import Hold
from wfpatch.backend.process_view import ProcessView
from wfpatch.backend.stops import OVERDUE, InterruptedCalls
from wfpatch.errors import Failed, Refused
from wfpatch.maps import MemoryMap
from wfpatch.seccomp import NO_SECCOMP, SeccompState
from wfpatch.syscalls import MAP_ANONYMOUS, NR_MMAP, NR_MUNMAP, PROT_EXEC, PROT_WRITE, SystemCall
from wfpatch.tasks import status_fields
from wfpatch.unwind import Grounds

ROW_SIZE = 4096
#: How long a running thread is waited for, in milliseconds: many share a processor.
THREAD_DEADLINE = 250
#: How long threads may take to leave the bytes of an entry; nobody forks or maps meanwhile.
POKE_DEADLINE = 50
LARGEST_COPY = 1 << 20
SCAN_LIMIT = 1 << 20
_ATTEMPTS = 3
_CLOCK_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_REASONS = {
    kernel_requests.REASON_UNSEEN: "waits for a processor",
    kernel_requests.REASON_RANGE: "may have a frame of old code",
    kernel_requests.REASON_STACK: "is not on its own stack (signal handler or foreign stack)",
    kernel_requests.REASON_SIGNAL: "runs a signal handler on an alternate stack",
    kernel_requests.REASON_FAULT: "has a stack that is not in memory",
    kernel_requests.REASON_LIMIT: "has a stack too large to be looked at",
    kernel_requests.REASON_GS: "uses its GS base",
    kernel_requests.REASON_CLONE: "is making another thread or process",
    kernel_requests.REASON_MODE: "runs no 64-bit code of its own (virtual processor, probe)",
}


def _as_refusal(error: OSError, pid: int, doing: str) -> Failed | Refused:
    """An errno of the kernel service as a reason code."""
    number = error.errno or 0
    if number == errno.ESRCH:
        return Failed("target_exited", f"process {pid} is gone, or executed a program", pid=pid)
    if number == errno.EBUSY:
        return Refused("busy", f"another session of the kernel service has process {pid}", pid=pid)
    if number in (errno.EPERM, errno.EACCES):
        return Refused(
            "no_permission",
            f"the kernel service refuses process {pid}: CAP_SYS_ADMIN is needed, and CAP_SYS_PTRACE"
            " over the process's user namespace",
            pid=pid,
        )
    if number == errno.EOPNOTSUPP:
        return Refused("not_64bit", f"process {pid} is no 64-bit x86-64 process", pid=pid)
    return Failed(
        "kernel_service_failed",
        f"{doing} of process {pid}: {errno.errorcode.get(number, number)} ({error.strerror})",
        pid=pid,
        errno=number,
    )


class KernelVisit:
    """A thread as it was at one moment (backend.Visit); moved only if it is as it was then."""

    #: No thread ever is, here.
    stopped = False

    def __init__(
        self, session: KernelSession, seen: kernel_requests.Thread, stack: bytes, high: int
    ) -> None:
        self.tid = seen.tid
        self._session = session
        self._seen = seen
        self._stack = stack
        self._high = high
        self.registers = seen.registers.copy()

    def set_registers(self) -> None:
        """Never called: only a hold changes registers."""
        raise AssertionError("a thread that is not stopped has no registers to set")

    def set_gs_base(self, value: int, grounds: Grounds | None = None) -> None:
        """Move the thread to another row, if it is where it was, or comes by there again.

        Raises Failed: thread_unstoppable when it does not, thread_gone.
        """
        row = value // ROW_SIZE
        try:
            self._session.move(self._seen, self._stack, row)
        except Failed as error:
            if error.reason != "thread_unstoppable" or grounds is None:
                raise
            self._session.move_at(self._seen, grounds, row)
        self.registers.gs_base = value

    def unchanged(self) -> bool:
        """Whether the thread has been asleep ever since."""
        return self._session.slept(self._seen, self._stack)

    def read(self, address: int, size: int) -> bytes:
        """Of its stack, from rsp on, what the copy holds; anything else as it is now.

        Raises Failed("memory_unreadable").
        """
        base = self._seen.registers.rsp & -8
        if address + size <= base or address >= self._high:
            return self._session.memory.read(address, size)
        offset = address - base
        if offset < 0 or offset + size > len(self._stack):
            raise Failed(
                "memory_unreadable",
                f"thread {self.tid}: {size} bytes at {address:#x} of its stack were not copied",
                tid=self.tid,
                address=address,
            )
        return self._stack[offset : offset + size]


class KernelSession(ProcessView):
    """A process under work (backend.Session)."""

    pokes = True
    reads_filters = False

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.memory.force = self._write
        self._fd = -1
        self._map: MemoryMap | None = None
        self._interrupted = InterruptedCalls()

    def close(self) -> None:
        """End the work."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()

    def _request(
        self, number: int, arguments: ctypes.Structure | None, doing: str, *allowed: int
    ) -> int:
        """One request of the session; a negative errno where that is one of ``allowed``."""
        if self._fd < 0:
            # Not before it is needed: who only looks keeps nobody out.
            try:
                self._fd = kernel_requests.attach(self.pid)
            except OSError as error:
                raise _as_refusal(error, self.pid, "attaching") from error
        try:
            return kernel_requests.request(self._fd, number, arguments)
        except OSError as error:
            if error.errno in allowed:
                return -(error.errno or 0)
            if error.errno == errno.ESRCH:
                raise self.memory.gone() from error
            raise _as_refusal(error, self.pid, doing) from error

    # Asking

    def check(self, calls: Sequence[SystemCall] = (), allow_init: bool = False) -> None:
        """Refuse a process that cannot be worked on, before anything is written.

        Raises Refused: target_exited, kernel_thread, is_init, not_64bit, shadow_stack,
        no_permission, busy. A tracer, or a seccomp filter, is no obstacle.
        """
        preflight.require_live_process(self.pid)
        preflight.require_not_init(self.pid, allow_init)
        preflight.require_64bit(self.pid)
        preflight.require_no_shadow_stack(self.pid, self.tasks())
        seen = kernel_requests.List(
            size=ctypes.sizeof(kernel_requests.List),
            entry_size=ctypes.sizeof(kernel_requests.Listed),
        )
        self._request(kernel_requests.LIST, seen, "listing the threads", errno.ENOSPC)

    def seccomp(self, tid: int) -> SeccompState:
        """The seccomp state of a task, whose filters are not known here.

        Raises Failed("thread_gone").
        """
        fields = status_fields(self._owner(tid), tid, "Seccomp")
        if fields is None:
            raise Failed("thread_gone", f"thread {tid} has ended", pid=self.pid, tid=tid)
        mode = int(fields[0] or 0)
        return SeccompState(mode) if mode else NO_SECCOMP

    # Mapping

    def call(self, calls: Sequence[SystemCall], runner: Runner | None = None) -> list[int]:
        """Map and unmap as these calls would; raw results. ``runner`` is not needed."""
        return [self._mapped(call) for call in calls]

    def _mapped(self, call: SystemCall) -> int:
        address, length, protection, flags = call.arguments[:4]
        wanted = kernel_requests.Map(
            size=ctypes.sizeof(kernel_requests.Map), fd=-1, address=address, length=length
        )
        self._map = None
        if call.number == NR_MUNMAP:
            return self._result(kernel_requests.UNLOAD, wanted, str(call))
        if call.number != NR_MMAP or not flags & MAP_ANONYMOUS:
            raise AssertionError(f"the kernel service does not do {call}")
        if protection & PROT_WRITE:
            wanted.flags |= kernel_requests.MAP_WRITE
        if protection & PROT_EXEC:
            wanted.flags |= kernel_requests.MAP_EXEC
        return self._result(kernel_requests.LOAD, wanted, str(call)) or address

    def _result(self, number: int, arguments: ctypes.Structure, doing: str) -> int:
        return self._request(
            number, arguments, doing, errno.EEXIST, errno.EINVAL, errno.ENOMEM, errno.EACCES
        )

    def _write(self, address: int, data: bytes) -> bool:
        """Write where /proc/PID/mem does not (ProcessMemory.force)."""
        for at in range(0, len(data), kernel_requests.MAX_WRITE):
            part = data[at : at + kernel_requests.MAX_WRITE]
            buffer = ctypes.create_string_buffer(part, len(part))
            wanted = kernel_requests.Write(
                size=ctypes.sizeof(kernel_requests.Write),
                address=address + at,
                data=ctypes.addressof(buffer),
                length=len(part),
            )
            result = self._request(
                kernel_requests.WRITE,
                wanted,
                "writing to memory",
                *(errno.EFAULT, errno.EINVAL, errno.ENOTTY),
            )
            if result:
                return False
        return True

    # Changing code

    def poke(self, pokes: Sequence[Poke], moves: Sequence[tuple[int, int]] = ()) -> str:
        """Change code that threads are in, all or nothing.

        Returns the thread that stayed inside the bytes, empty when it is done.
        Raises Refused("old_code_mismatch"), Failed("memory_unwritable").
        """
        wanted = (kernel_requests.Poke * len(pokes))()
        for place, poke in zip(wanted, pokes):
            place.address, place.redirect = poke.address, poke.redirect
            place.length = len(poke.after)
            place.before[: len(poke.before)] = poke.before
            place.after[: len(poke.after)] = poke.after
        moved = (kernel_requests.Move * len(moves))(
            *(kernel_requests.Move(old, new) for old, new in moves)
        )
        arm = kernel_requests.Arm(
            size=ctypes.sizeof(kernel_requests.Arm),
            pokes=ctypes.addressof(wanted),
            moves=ctypes.addressof(moved),
            n_pokes=len(pokes),
            n_moves=len(moves),
            deadline_ms=POKE_DEADLINE,
        )
        result = self._request(
            kernel_requests.ARM, arm, "arming", errno.EAGAIN, errno.EILSEQ, errno.EFAULT
        )
        if result in (-errno.EILSEQ, -errno.EFAULT):
            bad = next((place for place in wanted if place.result), wanted[0])
            raise self._unpokable(bad)
        return f"thread {arm.straggler} ({arm.straggler_word:#x})" if result else ""

    def _unpokable(self, bad: kernel_requests.Poke) -> Failed | Refused:
        if bad.result == -errno.EILSEQ:
            return Refused(
                "old_code_mismatch",
                f"the {bad.length} bytes at {bad.address:#x} of process {self.pid} are not what "
                "they were; another tool may have changed them",
                address=bad.address,
            )
        return Failed(
            "memory_unwritable",
            f"{bad.length} bytes at {bad.address:#x} of process {self.pid} are no private code",
            address=bad.address,
        )

    # Looking at threads

    @contextmanager
    def visit(self, tid: int, purpose: str) -> Iterator[KernelVisit]:
        """A thread at one moment, with a copy of its stack from rsp to the end of the mapping.

        Raises Failed: thread_unstoppable when no moment was found, thread_gone.
        """
        yield self._captured(tid)

    def _captured(self, tid: int) -> KernelVisit:
        seen = self._thread(tid, 0, None)
        for _ in range(_ATTEMPTS):
            sp = seen.registers.rsp
            high = self._high_of(sp)
            room = min(LARGEST_COPY, max(high - (sp & -8), 0) + 4096)
            buffer = (ctypes.c_char * room)()
            seen = self._thread(tid, high, buffer)
            sp = seen.registers.rsp
            if self._high_of(sp) == high and seen.stack_length == min(high - (sp & -8), room):
                break
        return KernelVisit(self, seen, bytes(memoryview(buffer)[: seen.stack_length]), high)

    def _high_of(self, sp: int) -> int:
        """The end of the mapping that a stack pointer lies in, or 0."""
        for fresh in (False, True):
            if self._map is None or fresh:
                self._map = self.memory_map()
            mapping = self._map.containing(sp)
            if mapping is not None and mapping.readable:
                return mapping.end
        return 0

    def _thread(
        self, tid: int, high: int, buffer: ctypes.Array[ctypes.c_char] | None
    ) -> kernel_requests.Thread:
        wanted = kernel_requests.Thread(
            size=ctypes.sizeof(kernel_requests.Thread),
            tid=tid,
            deadline_ms=THREAD_DEADLINE,
            stack=ctypes.addressof(buffer) if buffer is not None else 0,
            stack_high=high,
            stack_room=len(buffer) if buffer is not None else 0,
        )
        self._asked(wanted)
        return wanted

    def _asked(self, wanted: kernel_requests.Thread) -> None:
        tid = wanted.tid
        result = self._request(
            kernel_requests.THREAD,
            wanted,
            f"looking at thread {tid}",
            errno.EAGAIN,
            errno.ENOENT,
            errno.ESTALE,
            errno.EOPNOTSUPP,
        )
        if result == -errno.ENOENT:
            raise Failed("thread_gone", f"thread {tid} has ended", pid=self.pid, tid=tid)
        if result == -errno.ESTALE:
            raise Failed(
                "thread_unstoppable",
                f"thread {tid} moves on too fast to be migrated from outside",
                pid=self.pid,
                tid=tid,
            )
        if result:
            why = (
                _REASONS[kernel_requests.REASON_MODE]
                if result == -errno.EOPNOTSUPP
                else f"could not be seen within {THREAD_DEADLINE} ms"
            )
            raise Failed("thread_unstoppable", f"thread {tid} {why}", pid=self.pid, tid=tid)

    def move(self, seen: kernel_requests.Thread, stack: bytes, row: int) -> None:
        """Move a thread to ``row`` if it is as it was ``seen``; raises as visit() does."""
        self._expect(seen, stack, kernel_requests.THREAD_MOVE, row)

    def move_at(self, seen: kernel_requests.Thread, grounds: Grounds, row: int) -> None:
        """Move a thread to ``row`` when it is next seen with the same ``grounds``; it may run
        meanwhile. Raises as visit() does."""
        if not 0 < len(grounds.words) <= kernel_requests.MAX_WORDS:
            raise Failed(
                "thread_unstoppable", f"thread {seen.tid} has too many frames", tid=seen.tid
            )
        flags = kernel_requests.THREAD_MOVE | kernel_requests.THREAD_WORDS
        if grounds.frame_pointer:
            flags |= kernel_requests.THREAD_FRAME
        words = (kernel_requests.Word * len(grounds.words))(
            *(kernel_requests.Word(*word) for word in grounds.words)
        )
        self._expect(seen, bytes(words), flags, row)

    def slept(self, seen: kernel_requests.Thread, stack: bytes) -> bool:
        """Whether a thread has been asleep since it was ``seen``."""
        if not seen.seen & kernel_requests.SEEN_ASLEEP:
            return False
        try:
            again = self._expect(seen, stack)
        except Failed as error:
            if error.reason in ("thread_unstoppable", "thread_gone"):
                return False
            raise
        return bool(again.seen & kernel_requests.SEEN_ASLEEP and again.switches == seen.switches)

    def _expect(
        self, seen: kernel_requests.Thread, stack: bytes, flags: int = 0, row: int = 0
    ) -> kernel_requests.Thread:
        buffer = (ctypes.c_char * max(1, len(stack))).from_buffer_copy(stack or b"\0")
        wanted = kernel_requests.Thread(
            size=ctypes.sizeof(kernel_requests.Thread),
            flags=kernel_requests.THREAD_EXPECT | flags,
            tid=seen.tid,
            deadline_ms=THREAD_DEADLINE,
            stack=ctypes.addressof(buffer),
            stack_room=len(buffer),
            stack_length=len(stack),
            seen=seen.seen,
            new_row=row,
            switches=seen.switches,
            registers=seen.registers,
        )
        self._asked(wanted)
        return wanted

    def survey(self, wanted: Survey) -> tuple[Surveyed, ...]:
        """All tasks judged at one moment each, by the kernel service."""
        ranges = kernel_requests.ranges(
            (
                (kernel_requests.KIND_PENDING, wanted.pending),
                (kernel_requests.KIND_OLD, wanted.old),
                (kernel_requests.KIND_SIGNAL, wanted.signal_returns),
            )
        )
        known = {stack[0]: stack for stack in wanted.stacks}
        stacks = (kernel_requests.Stack * len(known))(
            *(kernel_requests.Stack(*known[fs_base]) for fs_base in sorted(known))
        )
        flags = kernel_requests.VISIT_MIGRATE if wanted.from_rows else 0
        visit = kernel_requests.Visit(
            size=ctypes.sizeof(kernel_requests.Visit),
            flags=flags if wanted.patient else flags | kernel_requests.VISIT_ONCE,
            eventfd=-1,
            deadline_ms=max(1, int(wanted.seconds * 1000)),
            ranges=ctypes.addressof(ranges) if len(ranges) else 0,
            stacks=ctypes.addressof(stacks) if len(stacks) else 0,
            n_ranges=len(ranges),
            n_stacks=len(stacks),
            left_rows=_mask(wanted.left_rows),
            from_rows=_mask(wanted.from_rows),
            target=wanted.target,
            scan_limit=SCAN_LIMIT,
        )
        self._request(kernel_requests.VISIT, visit, "visiting all threads")
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()  # the visit has a deadline of its own
        return tuple(_surveyed(listed) for listed in self._list())

    def _list(self) -> Sequence[kernel_requests.Listed]:
        room = 256
        while True:
            threads = (kernel_requests.Listed * room)()
            listing = kernel_requests.List(
                size=ctypes.sizeof(kernel_requests.List),
                threads=ctypes.addressof(threads),
                n_threads=room,
                entry_size=ctypes.sizeof(kernel_requests.Listed),
            )
            result = self._request(
                kernel_requests.LIST, listing, "listing the threads", errno.ENOSPC
            )
            if result == 0:
                return threads[: listing.n_threads]
            room = listing.n_threads + 64

    # Stopping: what the policy "global" is

    def hold_all(self, purpose: str, timeout: float) -> Hold:
        """All tasks stopped at once, by ptrace: the policy ``global`` asks for just that.

        Raises Failed: hold_timeout, already_traced.
        """
        return Hold(self.pid, self.memory, OVERDUE, purpose, timeout, self.stops, self._interrupted)


def _mask(rows: frozenset[int]) -> int:
    return sum(1 << row for row in rows)


def _surveyed(listed: kernel_requests.Listed) -> Surveyed:
    reason = listed.reason
    return Surveyed(
        tid=listed.tid,
        start_time=listed.start_time // _CLOCK_TICK,
        clear=listed.state == kernel_requests.STATE_CLEAR,
        reason=_REASONS.get(reason, ""),
        gs_base=None if reason == kernel_requests.REASON_UNSEEN else listed.gs_base,
        accused=listed.hit_word if reason == kernel_requests.REASON_RANGE else None,
    )


class KernelBackend:
    """The backend "kernel"."""

    name = "kernel"

    def open(self, pid: int) -> KernelSession:
        """Begin work on a process. Raises Refused: target_exited, kernel_thread, no_permission."""
        return KernelSession(pid)
