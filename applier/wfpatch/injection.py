# SPDX-License-Identifier: GPL-3.0-or-later
"""Running system calls inside a process by a chain that completes itself.

One thread is stopped once, gets its registers changed once, and is let go; from then on nobody
needs to be there (sigframe.py). What the calls did is read from memory, never from the thread.
Here: which thread, where on its stack, with what registers restored.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from wfpatch.backend import Runner, StackBounds, ptrace_requests
from wfpatch.backend.ptrace_requests import UserRegisters
from wfpatch.backend.stops import (
    RESTART_CODES,
    Tracee,
    deliverable_signal_pending,
    interrupted_by_stop,
)
from wfpatch.errors import Failed, Refused
from wfpatch.maps import Mapping, MemoryMap
from wfpatch.memory import ProcessMemory
from wfpatch.sigframe import (
    FRAME_SIZE,
    RED_ZONE,
    STACK_OFFSET,
    Chain,
    Gadgets,
    build_chain,
    build_runner_frame,
    chain_size,
)
from wfpatch.syscalls import (
    NR_CLOCK_NANOSLEEP,
    NR_FUTEX,
    NR_MMAP,
    NR_MPROTECT,
    NR_MREMAP,
    NR_MUNMAP,
    NR_NANOSLEEP,
    NR_POLL,
    NR_RESTART_SYSCALL,
    OWN_SIGNAL_MASK,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    RETURNS_EINTR_ON_STOP,
    SystemCall,
)
from wfpatch.tasks import Look
from wfpatch.xstate import XStateLayout, signal_image

_SYSCALL_RET = b"\x0f\x05\xc3"
_POP_RAX_RET = b"\x58\xc3"
# The C libraries' signal returns: glibc and Go; musl and others.
_SIGRETURNS = (b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", b"\xb8\x0f\x00\x00\x00\x0f\x05")

# Left free between the frames and the end of the thread's stack as far as it is known, and where
# only the mapping is known (it may hold something else at its lower end) more.
_MARGIN = 4096
_MARGIN_UNKNOWN = 16384
_RSEQ_CS = struct.Struct("<IIQQQ")


@dataclass(frozen=True)
class Code:
    """What a chain uses in the target: gadgets, and every address that serves as signal return."""

    gadgets: Gadgets
    signal_returns: frozenset[int]


def find_code(memory: ProcessMemory, maps: MemoryMap) -> Code:
    """Search the executable file mappings, the C library first.

    Raises Refused("injection_impossible") when the process has no ``syscall; ret``, or no way to
    rt_sigreturn.
    """
    candidates = [
        mapping
        for mapping in maps
        if mapping.executable and mapping.readable and (mapping.inode or mapping.path == "[vdso]")
    ]
    candidates.sort(key=lambda mapping: not os.path.basename(mapping.path).startswith("libc"))
    system_call = pop_rax = None
    returns: list[int] = []
    for mapping in candidates:
        text = memory.read(mapping.start, mapping.size)
        if system_call is None and (at := text.find(_SYSCALL_RET)) >= 0:
            system_call = mapping.start + at
        if pop_rax is None and (at := text.find(_POP_RAX_RET)) >= 0:
            pop_rax = mapping.start + at
        for pattern in _SIGRETURNS:
            at = text.find(pattern)
            while at >= 0:
                returns.append(mapping.start + at)
                at = text.find(pattern, at + 1)
    if system_call is None or not (returns or pop_rax):
        raise Refused(
            "injection_impossible",
            f"process {memory.pid} has no code to run system calls with (syscall; ret)",
            pid=memory.pid,
        )
    gadgets = Gadgets(system_call, returns[0] if returns else None, pop_rax)
    return Code(gadgets, frozenset(returns))


def unusable(look: Look) -> str | None:
    """Why a task, as it looks, cannot run an injection; None when it can."""
    if look.state in "Tt":
        return "stopped by a signal or a debugger"
    if look.state not in "RSI":
        return f"asleep in the kernel (state {look.state})"
    if look.running:
        return None
    if look.syscall is None:
        return "outside of a system call"
    return None


BEST_RANK = 0


def rank(look: Look) -> int:
    """How well a usable task suits an injection (0: best).

    Sleepers come first. Among them those last whose call has a time limit, which starts anew, or a
    signal mask of its own, which is not in force during the chain. Last of all those in
    restart_syscall, whose call has to be guessed.
    """
    if look.running:
        return 3
    if look.syscall == NR_RESTART_SYSCALL:
        return 4
    third, fourth = look.arguments[2:4]
    delicate = {
        NR_NANOSLEEP: True,
        NR_CLOCK_NANOSLEEP: True,
        NR_FUTEX: fourth != 0,
        NR_POLL: third & 0x80000000 == 0,
    }.get(look.syscall or 0, look.syscall in OWN_SIGNAL_MASK)
    if delicate:
        return 2
    return 1 if look.syscall in RETURNS_EINTR_ON_STOP else 0


def own_stack(
    maps: MemoryMap, rsp: int, fs_base: int, bounds: tuple[int, int] | None
) -> tuple[int, int, Mapping] | None:
    """[low, high) of the thread's own stack around rsp, None when rsp is not on it.

    The mapping must hold the thread's control block (as the C library's thread stacks do) or be
    [stack]; a coroutine's stack or an alternate signal stack in a heap is neither, and what lies
    below rsp there may be anything.
    """
    mapping = maps.containing(rsp)
    if mapping is None or not mapping.writable or not mapping.readable:
        return None
    if bounds is not None:
        low, high = max(bounds[0], mapping.start), min(bounds[1], mapping.end)
        return (low + _MARGIN, high, mapping) if low <= rsp < high else None
    if mapping.path == "[stack]":
        return mapping.start + _MARGIN, mapping.end, mapping
    if rsp < fs_base < mapping.end:
        return mapping.start + _MARGIN_UNKNOWN, fs_base, mapping
    return None


def alternate_stack_floor(stack: bytes, base: int, rsp: int, signal_returns: frozenset[int]) -> int:
    """The lowest address that may be written below rsp as far as signal frames above it tell.

    A handler may run on an alternate stack that lies *within* the thread's own one; below it are
    live frames. Such a handler's signal frame is above rsp and names the alternate stack's bounds.
    ``stack`` is the memory from ``base`` (rsp rounded down to 8) upwards.
    """
    floor = 0
    for target in signal_returns:
        word = struct.pack("<Q", target)
        at = stack.find(word)
        while at >= 0:
            if at % 8 == 0 and at + FRAME_SIZE <= len(stack):
                start, flags, size = struct.unpack_from("<Qi4xQ", stack, at + STACK_OFFSET)
                if not flags & 2 and start <= rsp < start + size:  # SS_DISABLE is not set
                    floor = max(floor, start)
            at = stack.find(word, at + 1)
    return floor


def restored_registers(tracee: Tracee) -> UserRegisters | None:
    """What the thread shall have after the chain: as it is, its interrupted call issued again.

    The chain takes the place of the kernel's own restart logic, which looks at rax at the stop.
    None when the thread is in restart_syscall, and which call that is is not known.
    """
    registers = tracee.registers.copy()
    restarts = registers.system_call >= 0 and registers.result in RESTART_CODES
    if restarts and registers.system_call == NR_RESTART_SYSCALL:
        before = tracee.read(registers.rip - 7, 7)
        number = tracee.interrupted.number(tracee.tid, registers, before)
        if number is None:
            return None
        registers.orig_rax = number
    if restarts or interrupted_by_stop(registers):
        Tracee.restart_system_call(registers)
    return registers


def in_restartable_sequence(tracee: Tracee) -> bool:
    """Whether the thread is within an rseq critical section (rseq(2)).

    The kernel aborts a section only where it finds rip inside; with rip in the chain it would
    forget the section, and the thread would go on in it after a preemption.
    """
    area = ptrace_requests.get_rseq_area(tracee.tid)
    if not area:
        return False
    section = tracee.memory.read_u64(area + 8)
    if not section:
        return False
    _, _, start, length, _ = _RSEQ_CS.unpack(tracee.memory.read(section, _RSEQ_CS.size))
    return bool(0 <= tracee.registers.rip - start < length)


@dataclass(frozen=True)
class Planted:
    """A chain on its way: the thread runs it while its stack pointer is at or below ``high``."""

    tid: int
    low: int
    high: int


@dataclass(frozen=True)
class Unsuitable:
    """Why a thread was not used."""

    tid: int
    why: str


class Injection:
    """One batch of calls, ready to be given to a thread: what needs no stop is done before."""

    def __init__(
        self,
        code: Code,
        layout: XStateLayout,
        maps: MemoryMap,
        calls: Sequence[SystemCall],
        runner: Runner | None,
        bounds: StackBounds | None,
    ) -> None:
        self._bounds = bounds
        self._code = code
        self._layout = layout
        self._maps = maps
        self._calls = calls
        self._runner = runner

    def plant(self, tracee: Tracee, before: Look) -> Planted | Unsuitable:
        """Give the stopped thread the chain, or say why not. One SETREGS; the caller detaches."""
        registers = tracee.registers
        tid = tracee.tid
        if tracee.group_stopped:
            return Unsuitable(tid, "stopped by a signal")
        if registers.cs != 0x33:
            return Unsuitable(tid, "not in 64-bit mode")
        restored = restored_registers(tracee)
        if restored is None:
            return Unsuitable(tid, "in restart_syscall of an unknown call")
        if not before.running and registers.rsp != before.sp:
            return Unsuitable(tid, "moved on since it was looked at")
        bounds = self._bounds(tid, registers.fs_base) if self._bounds else None
        stack = own_stack(self._maps, registers.rsp, registers.fs_base, bounds)
        if stack is None:
            return Unsuitable(tid, "not on its own stack")
        low, high, _ = stack
        base = registers.rsp & -8
        above = tracee.read(base, high - base)
        floor = alternate_stack_floor(above, base, registers.rsp, self._code.signal_returns)
        xstate = signal_image(ptrace_requests.get_xstate(tid), self._layout)
        size = chain_size(max(len(self._calls), 1), len(xstate)) + RED_ZONE
        if registers.rsp - size < max(low, floor + _MARGIN if floor else 0):
            return Unsuitable(tid, "too little room on its stack")
        if registers.system_call < 0 and in_restartable_sequence(tracee):
            return Unsuitable(tid, "within a restartable sequence")
        if deliverable_signal_pending(tracee.tgid, tid):
            return Unsuitable(tid, "a signal is on its way")
        chain = self._build(tid, restored, xstate)
        tracee.memory.write(chain.low, chain.data)
        # /proc/PID/mem stays with the memory it was opened on; the thread may have another since
        # exec.
        nonce = tracee.memory.read_u64(chain.nonce_address)
        try:
            same = ptrace_requests.peek_word(tid, chain.nonce_address) == nonce
        except OSError:
            same = False
        if not same:
            raise Failed(
                "target_changed",
                f"thread {tid} of process {tracee.tgid} executed another program",
                pid=tracee.tgid,
                tid=tid,
            )
        ptrace_requests.set_registers(tid, chain.registers)
        # Once more: a handler that the program waits for with a mask of its own (sigsuspend, ppoll)
        # has to find it in its call, not in the chain.
        if deliverable_signal_pending(tracee.tgid, tid):
            ptrace_requests.set_registers(tid, registers)
            return Unsuitable(tid, "a signal is on its way")
        tracee.changed = tracee.injected = True
        return Planted(tid, chain.low, registers.rsp)

    def _build(self, tid: int, restored: UserRegisters, xstate: bytes) -> Chain:
        mask = ptrace_requests.get_signal_mask(tid)
        nonce = int.from_bytes(os.urandom(8), "little")
        if self._runner is None:
            return build_chain(self._calls, restored, mask, xstate, self._code.gadgets, nonce)
        return build_runner_frame(
            self._runner.address,
            self._runner.records,
            len(self._calls),
            restored,
            mask,
            xstate,
            nonce,
        )


# Outcomes of a chain without a runner are read from the memory map.


def outcome(call: SystemCall, maps: MemoryMap) -> int | None:
    """The result of a call as the map shows it, None while it shows nothing.

    Raises ValueError for a call that leaves no trace in the map: it needs a runner.
    """
    address, size, third = call.arguments[:3]
    if call.number == NR_MMAP:
        return address if _mapped(maps, address, size, third) else None
    if call.number == NR_MUNMAP:
        return 0 if maps.free(address, address + size) else None
    if call.number == NR_MPROTECT:
        return 0 if _mapped(maps, address, size, third) else None
    if call.number == NR_MREMAP:
        return call.arguments[4] if maps.free(address, address + size) else None
    raise ValueError(f"{call.name} leaves no trace in the memory map: it needs the region's runner")


def _mapped(maps: MemoryMap, address: int, size: int, protection: int) -> bool:
    position, end = address, address + size
    wanted = (
        bool(protection & PROT_READ),
        bool(protection & PROT_WRITE),
        bool(protection & PROT_EXEC),
    )
    while position < end:
        mapping = maps.containing(position)
        if mapping is None or (mapping.readable, mapping.writable, mapping.executable) != wanted:
            return False
        position = mapping.end
    return True


RECORD = struct.Struct("<Q6QQQ")
PENDING = 2  # written by the applier; the runner stores DONE
DONE = 1


def encode_records(calls: Sequence[SystemCall]) -> bytes:
    """The runner's records {u64 nr, u64 args[6], u64 result, u64 done} of a batch."""
    return b"".join(RECORD.pack(call.number, *call.arguments, 0, PENDING) for call in calls)


def read_results(memory: ProcessMemory, runner: Runner, count: int) -> list[int]:
    """The raw results of a finished batch, signed."""
    data = memory.read(runner.records, count * RECORD.size)
    results = []
    for offset in range(0, len(data), RECORD.size):
        value = RECORD.unpack_from(data, offset)[7]
        results.append(value - (1 << 64) if value >> 63 else value)
    return results


def in_flight_words(stack: bytes, span: range) -> bool:
    """Whether an aligned word of ``stack`` (from an 8-aligned address up) lies in ``span``."""
    for upper in range(span.start >> 8, ((span.stop - 1) >> 8) + 1):
        pattern = upper.to_bytes(7, "little")
        at = stack.find(pattern)
        while at >= 0:
            if at % 8 == 1 and upper << 8 | stack[at - 1] in span:
                return True
            at = stack.find(pattern, at + 1)
    return False


def poll(deadline: float) -> bool:
    """Pause between two looks at memory; False once the deadline (time.monotonic) has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    time.sleep(min(0.0001, left))
    return True
