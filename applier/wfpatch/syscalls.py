# SPDX-License-Identifier: GPL-3.0-or-later
"""System calls to be run inside a target process: numbers, flags and constructors (x86-64).

Source of the numbers: arch/x86/entry/syscalls/syscall_64.tbl.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

NR_READ = 0
NR_WRITE = 1
NR_POLL = 7
NR_MMAP = 9
NR_MPROTECT = 10
NR_MUNMAP = 11
NR_RT_SIGRETURN = 15
NR_READV = 19
NR_WRITEV = 20
NR_MREMAP = 25
NR_NANOSLEEP = 35
NR_CONNECT = 42
NR_ACCEPT = 43
NR_SENDTO = 44
NR_RECVFROM = 45
NR_SENDMSG = 46
NR_RECVMSG = 47
NR_VFORK = 58
NR_SEMOP = 65
NR_RT_SIGTIMEDWAIT = 128
NR_RT_SIGSUSPEND = 130
NR_SIGALTSTACK = 131
NR_ARCH_PRCTL = 158
NR_FUTEX = 202
NR_IO_GETEVENTS = 208
NR_RESTART_SYSCALL = 219
NR_SEMTIMEDOP = 220
NR_CLOCK_NANOSLEEP = 230
NR_EPOLL_WAIT = 232
NR_PSELECT6 = 270
NR_PPOLL = 271
NR_EPOLL_PWAIT = 281
NR_ACCEPT4 = 288
NR_RECVMMSG = 299
NR_SENDMMSG = 307
NR_IO_PGETEVENTS = 333
NR_IO_URING_ENTER = 426
NR_EPOLL_PWAIT2 = 441

PROT_NONE = 0
PROT_READ = 1
PROT_WRITE = 2
PROT_EXEC = 4
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_FIXED_NOREPLACE = 0x100000
MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2

_WORD = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class SystemCall:
    """One system call: its name for messages, number, and six argument words (unsigned)."""

    name: str
    number: int
    arguments: tuple[int, int, int, int, int, int]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(hex(argument) for argument in self.arguments)})"


def system_call(name: str, number: int, *arguments: int) -> SystemCall:
    """A SystemCall with its arguments taken modulo 2**64 and padded with zeros to six."""
    if len(arguments) > 6:
        raise ValueError("a system call has six arguments at most")
    padded = [argument & _WORD for argument in arguments] + [0] * (6 - len(arguments))
    return SystemCall(
        name, number, (padded[0], padded[1], padded[2], padded[3], padded[4], padded[5])
    )


def mmap_anonymous(address: int, size: int, protection: int) -> SystemCall:
    """Private anonymous memory at exactly ``address``; EEXIST where something is mapped already.

    MAP_FIXED_NOREPLACE makes the call harmless when two threads run it (Linux 4.17; older kernels
    take the address as a hint, and a result elsewhere is then an error).
    """
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    return system_call("mmap", NR_MMAP, address, size, protection, flags, -1, 0)


def munmap(address: int, size: int) -> SystemCall:
    """Unmap [address, address + size)."""
    return system_call("munmap", NR_MUNMAP, address, size)


def mprotect(address: int, size: int, protection: int) -> SystemCall:
    """Change the protection of [address, address + size)."""
    return system_call("mprotect", NR_MPROTECT, address, size, protection)


def mremap_over(source: int, target: int, size: int) -> SystemCall:
    """Move the pages at ``source`` over those at ``target`` (both page aligned, size bytes)."""
    return system_call(
        "mremap", NR_MREMAP, source, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, target
    )


def rt_sigreturn() -> SystemCall:
    """The call that ends every chain; here for the evaluation of seccomp filters."""
    return system_call("rt_sigreturn", NR_RT_SIGRETURN)


# The result of a call that failed in a chain without a runner: nothing has kept its errno.
NOT_REPORTED = -4095


def error_of(result: int) -> str | None:
    """The errno name of a raw result ("ENOMEM"), None when the call succeeded."""
    if result == NOT_REPORTED:
        return "an error (address space limit, SELinux's execmem, or the place was taken)"
    if -4096 < result < 0:
        return errno.errorcode.get(-result, str(-result))
    return None


# Calls that return EINTR to the program after a plain stop and continue, although no signal handler
# ran (signal(7), "Interruption of system calls and library functions by stop signals", and the
# kernel's sock_intr_errno, io_cqring_wait, read_events). Running them again is what the program
# would have seen without us. read/write appear for sockets with SO_RCVTIMEO or SO_SNDTIMEO.
# close() is not here: the descriptor is gone already when it says EINTR.
RETURNS_EINTR_ON_STOP = frozenset(
    {
        NR_READ,
        NR_WRITE,
        NR_READV,
        NR_WRITEV,
        NR_CONNECT,
        NR_ACCEPT,
        NR_SENDTO,
        NR_RECVFROM,
        NR_SENDMSG,
        NR_RECVMSG,
        NR_SEMOP,
        NR_RT_SIGTIMEDWAIT,
        NR_IO_GETEVENTS,
        NR_SEMTIMEDOP,
        NR_EPOLL_WAIT,
        NR_EPOLL_PWAIT,
        NR_ACCEPT4,
        NR_RECVMMSG,
        NR_SENDMMSG,
        NR_IO_PGETEVENTS,
        NR_IO_URING_ENTER,
        NR_EPOLL_PWAIT2,
    }
)

# Calls that the kernel restarts as restart_syscall, for the time that remains.
RESTARTED_BY_BLOCK = frozenset({NR_POLL, NR_NANOSLEEP, NR_FUTEX, NR_CLOCK_NANOSLEEP})

# Calls that wait with a signal mask given to them.
OWN_SIGNAL_MASK = frozenset(
    {
        NR_RT_SIGSUSPEND,
        NR_PSELECT6,
        NR_PPOLL,
        NR_EPOLL_PWAIT,
        NR_IO_PGETEVENTS,
        NR_EPOLL_PWAIT2,
    }
)
