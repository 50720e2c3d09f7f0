# SPDX-License-Identifier: GPL-3.0-or-later
"""The ptrace requests the applier makes, each as one typed function.

Never used, because each is deadly or leaves a process stopped when the tracer dies (MECHANISM.md):
ATTACH, SINGLESTEP, SYSCALL, O_EXITKILL, debug registers, O_SUSPEND_SECCOMP. SEIZE is made without
options: with none, the tracer's death simply detaches. Numbers: include/uapi/linux/ptrace.h,
arch/x86's ptrace-abi.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

from wfpatch.backend.steps import step
from wfpatch.errors import Failed
from wfpatch.libc import C

PEEKDATA = 2
POKEUSER = 6
CONT = 7
GETREGS = 12
SETREGS = 13
DETACH = 17
GETREGSET = 0x4204
SEIZE = 0x4206
INTERRUPT = 0x4207
PEEKSIGINFO = 0x4209
GETSIGMASK = 0x420A
SECCOMP_GET_FILTER = 0x420C
GET_RSEQ_CONFIGURATION = 0x420F

EVENT_STOP = 128
NT_X86_XSTATE = 0x202
_PEEKSIGINFO_SHARED = 1
_XSTATE_LIMIT = 64 * 1024
_SIGINFO_SIZE = 128

_ptrace = C.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base"),
    *("ds", "es", "fs", "gs"),
)


class UserRegisters(ctypes.Structure):
    """struct user_regs_struct of x86-64."""

    _fields_ = [(name, ctypes.c_uint64) for name in _REGISTERS]
    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    def copy(self) -> UserRegisters:
        """An independent copy."""
        return UserRegisters.from_buffer_copy(self)

    @property
    def result(self) -> int:
        """rax as a signed number."""
        return self.rax - (1 << 64) if self.rax >> 63 else self.rax

    @property
    def system_call(self) -> int:
        """orig_rax as a signed number: the system call the thread is in, negative when in none."""
        return self.orig_rax - (1 << 64) if self.orig_rax >> 63 else self.orig_rax

    def differs(self, other: UserRegisters) -> bool:
        """Whether any register differs."""
        return bytes(self) != bytes(other)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class _PeekSiginfo(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("number", ctypes.c_int32)]


class TaskGone(Failed):
    """A request found no task stopped for us: it has ended, or was killed while it was stopped."""

    def __init__(self, tid: int) -> None:
        super().__init__("thread_gone", f"thread {tid} has ended", tid=tid)


def _request(name: str, request: int, tid: int, address: Any, data: Any) -> int:
    result = int(step(f"ptrace {name}", _ptrace, request, tid, address, data))
    if result == -1:
        number = ctypes.get_errno()
        if number == errno.ESRCH:
            raise TaskGone(tid)
        raise OSError(number, f"ptrace {name} of task {tid}: {os.strerror(number)}")
    return result


def seize(tid: int) -> None:
    """Become the tracer of a task without stopping it."""
    _request("SEIZE", SEIZE, tid, 0, 0)


def interrupt(tid: int) -> None:
    """Ask a seized task to stop; it reports an EVENT_STOP."""
    _request("INTERRUPT", INTERRUPT, tid, 0, 0)


def cont(tid: int, signal: int) -> None:
    """Let a stopped task run, with a signal delivered (0: none)."""
    _request("CONT", CONT, tid, 0, signal)


def detach(tid: int, signal: int = 0) -> None:
    """Let a stopped task run, untraced."""
    _request("DETACH", DETACH, tid, 0, signal)


def get_registers(tid: int) -> UserRegisters:
    """The general registers of a stopped task."""
    registers = UserRegisters()
    _request("GETREGS", GETREGS, tid, 0, ctypes.addressof(registers))
    return registers


def set_registers(tid: int, registers: UserRegisters) -> None:
    """Set all general registers of a stopped task."""
    _request("SETREGS", SETREGS, tid, 0, ctypes.addressof(registers))


def poke_gs_base(tid: int, value: int) -> None:
    """Set the GS base of a stopped task (below the end of user addresses)."""
    _request("POKEUSER gs_base", POKEUSER, tid, UserRegisters.gs_base.offset, value)  # type: ignore[attr-defined]


def peek_word(tid: int, address: int) -> int:
    """The 8 bytes at ``address`` in the task's *current* address space. Raises OSError (EIO)."""
    word = ctypes.c_uint64()
    # glibc's wrapper returns the word itself and reports errors by errno only.
    ctypes.set_errno(0)
    result = int(step("ptrace PEEKDATA", _ptrace, PEEKDATA, tid, address, ctypes.addressof(word)))
    if result == -1 and ctypes.get_errno():
        if ctypes.get_errno() == errno.ESRCH:
            raise TaskGone(tid)
        raise OSError(ctypes.get_errno(), f"ptrace PEEKDATA of task {tid} at {address:#x}")
    return result & 0xFFFFFFFFFFFFFFFF


def get_signal_mask(tid: int) -> int:
    """The mask of blocked signals; within sigsuspend, ppoll ... the one that will be restored."""
    mask = ctypes.c_uint64()
    _request("GETSIGMASK", GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return int(mask.value)


def get_xstate(tid: int) -> bytes:
    """The XSAVE image in the standard format."""
    buffer = ctypes.create_string_buffer(_XSTATE_LIMIT)
    vector = _Iovec(ctypes.addressof(buffer), _XSTATE_LIMIT)
    _request("GETREGSET xstate", GETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(vector))
    return ctypes.string_at(buffer, vector.length)


_siginfo = ctypes.create_string_buffer(64 * _SIGINFO_SIZE)
_siginfo_address = ctypes.addressof(_siginfo)


def pending_signals(tid: int, shared: bool) -> int:
    """Signals queued for a task (or, ``shared``, its process) as a bit mask (bit 0: signal 1).

    At most the first 64 in the queue.
    """
    wanted = _PeekSiginfo(0, _PEEKSIGINFO_SHARED if shared else 0, 64)
    count = _request("PEEKSIGINFO", PEEKSIGINFO, tid, ctypes.addressof(wanted), _siginfo_address)
    mask = 0
    for index in range(count):
        number = ctypes.c_int32.from_buffer(_siginfo, index * _SIGINFO_SIZE).value
        if 1 <= number <= 64:
            mask |= 1 << (number - 1)
    return mask


def get_seccomp_filter(tid: int, index: int) -> bytes | None:
    """The ``index``-th seccomp filter (0: the oldest) as an array of 8-byte sock_filter; None past
    the last.

    Raises OSError: EACCES without CAP_SYS_ADMIN, EINVAL outside filter mode, EIO without kernel
    support.
    """
    try:
        count = _request("SECCOMP_GET_FILTER", SECCOMP_GET_FILTER, tid, index, 0)
        buffer = ctypes.create_string_buffer(count * 8)
        _request("SECCOMP_GET_FILTER", SECCOMP_GET_FILTER, tid, index, ctypes.addressof(buffer))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return buffer.raw


def get_rseq_area(tid: int) -> int:
    """Address of the task's registered struct rseq, 0 when it has none or the kernel cannot say."""
    configuration = (ctypes.c_uint64 * 3)()
    try:
        _request(
            "GET_RSEQ_CONFIGURATION",
            GET_RSEQ_CONFIGURATION,
            tid,
            ctypes.sizeof(configuration),
            ctypes.addressof(configuration),
        )
    except OSError as error:
        if error.errno in (errno.EIO, errno.EINVAL):  # Linux before 5.13
            return 0
        raise
    return int(configuration[0])
