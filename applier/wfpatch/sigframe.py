# SPDX-License-Identifier: GPL-3.0-or-later
"""Signal frames as a chain of system calls.

rt_sigreturn(2) loads every register, the vector state and the signal mask from a frame on the
stack. A chain is a row of such frames: a call runs, its ``ret`` leads to rt_sigreturn, which loads
the registers of the next call, and the last frame holds what the thread had. Once a thread's
registers point to the first call nobody is needed any more: tracer or not, it runs to the end.

Layout of one frame (struct rt_sigframe, arch/x86/include/asm/sigframe.h), offsets from its start: 0
return address (here: the way to rt_sigreturn) 8  uc_flags, uc_link, uc_stack {ss_sp, ss_flags,
ss_size} 48  struct sigcontext (256 bytes): r8-r15 di si bp bx dx ax cx sp ip flags, cs/gs/fs/ss,
err trapno oldmask cr2, pointer to the vector state, 8 reserved words 304  uc_sigmask All frames of
a chain share one XSAVE image: the kernel only reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from wfpatch.backend.ptrace_requests import UserRegisters
from wfpatch.syscalls import NR_RT_SIGRETURN, SystemCall
from wfpatch.xstate import XSAVE_ALIGNMENT

RED_ZONE = 128  # System V ABI, AMD64 supplement, 3.2.2
FRAME_SIZE = 312
UCONTEXT_OFFSET = 8
LINK_OFFSET = 16
STACK_OFFSET = 24

_UC_FP_XSTATE = 1
_UC_SIGCONTEXT_SS = 2
_UC_STRICT_RESTORE_SS = 4
_UC_FLAGS = _UC_FP_XSTATE | _UC_SIGCONTEXT_SS | _UC_STRICT_RESTORE_SS
# No mode of sigaltstack(2): the kernel refuses it, ignores the refusal (restore_altstack() squashes
# all errors but EFAULT), and the thread's alternate stack stays as it is.
_SS_FLAGS_INVALID = 0x7F
_FLAGS_PLAIN = 0x202  # IF and the bit that is always set: no DF, no TF
_SIGCONTEXT = struct.Struct("<18Q4H4QQ64x")
_HEAD = struct.Struct("<QQQQQQ")


@dataclass(frozen=True)
class Gadgets:
    """Pieces of code in the target that a chain runs through.

    system_call: ``syscall; ret``. sigreturn: ``mov $15, %eax; syscall`` as in the C library's
    signal return, or None; then pop_rax: ``pop %rax; ret``.
    """

    system_call: int
    sigreturn: int | None
    pop_rax: int | None

    def return_words(self) -> list[int]:
        """What a call's ``ret`` finds: the way to rt_sigreturn, rsp behind the last word."""
        if self.sigreturn is not None:
            return [self.sigreturn]
        assert self.pop_rax is not None
        return [self.pop_rax, NR_RT_SIGRETURN, self.system_call]


@dataclass(frozen=True)
class Chain:
    """A built chain: ``data`` goes to ``low``, then the thread gets ``registers``."""

    low: int
    data: bytes
    registers: UserRegisters
    nonce_address: int


def frame(
    registers: UserRegisters, mask: int, xstate_address: int, return_word: int, nonce: int
) -> bytes:
    """One rt_sigframe, up to and with its signal mask."""
    head = _HEAD.pack(return_word, _UC_FLAGS, nonce, 0, _SS_FLAGS_INVALID, 0)
    r = registers
    context = _SIGCONTEXT.pack(
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
        r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.eflags,
        r.cs & 0xFFFF, 0, 0, r.ss & 0xFFFF,
        0, 0, 0, 0,
        xstate_address,
    )  # fmt: skip
    return head + context + struct.pack("<Q", mask)


def call_registers(
    original: UserRegisters, call: SystemCall, gadget: int, rsp: int
) -> UserRegisters:
    """The registers with which a thread runs one call at a ``syscall; ret``."""
    registers = original.copy()
    registers.rax = call.number
    (
        registers.rdi,
        registers.rsi,
        registers.rdx,
        registers.r10,
        registers.r8,
        registers.r9,
    ) = call.arguments
    registers.rip = gadget
    registers.rsp = rsp
    registers.eflags = _FLAGS_PLAIN
    registers.orig_rax = (1 << 64) - 1
    return registers


def chain_size(calls: int, xstate_size: int) -> int:
    """An upper bound of the bytes a chain needs below the red zone."""
    return xstate_size + XSAVE_ALIGNMENT + calls * (FRAME_SIZE + 24) + 16


def build_chain(
    calls: Sequence[SystemCall],
    restored: UserRegisters,
    mask: int,
    xstate: bytes,
    gadgets: Gadgets,
    nonce: int,
) -> Chain:
    """A chain that runs ``calls`` below ``restored.rsp`` and ends with ``restored`` in force.

    ``xstate`` is a complete image as wfpatch.xstate prepares it; ``nonce`` is put where the tracer
    can check that it wrote to the memory the thread runs in.
    """
    words = gadgets.return_words()
    prefix = len(words) - 1
    xstate_address = (restored.rsp - RED_ZONE - len(xstate)) & -XSAVE_ALIGNMENT
    # The frame that is used last lies highest: a signal handler that runs in the middle of the
    # chain goes below the current frame, over frames that are used up.
    top = xstate_address & -16
    starts: list[int] = []
    for _ in calls:
        top -= FRAME_SIZE + 8 * prefix
        starts.append(top)
    starts.reverse()
    low = starts[0]
    parts = []
    for index in range(len(starts)):
        if index + 1 < len(starts):
            following = call_registers(
                restored, calls[index + 1], gadgets.system_call, starts[index + 1]
            )
        else:
            following = restored
        parts.append(struct.pack(f"<{prefix}Q", *words[:prefix]))
        parts.append(frame(following, mask, xstate_address, words[prefix], nonce))
    data = b"".join(parts)
    data += bytes(xstate_address - low - len(data)) + xstate
    first = call_registers(restored, calls[0], gadgets.system_call, low)
    return Chain(low, data, first, low + 8 * prefix + LINK_OFFSET)


def build_runner_frame(
    runner: int,
    records: int,
    count: int,
    restored: UserRegisters,
    mask: int,
    xstate: bytes,
    nonce: int,
) -> Chain:
    """One frame for the syscall runner: r12 = records, r13 = count, rsp = the frame's ucontext.

    The runner ends with rt_sigreturn, which finds the frame 8 bytes below rsp.
    """
    xstate_address = (restored.rsp - RED_ZONE - len(xstate)) & -XSAVE_ALIGNMENT
    low = (xstate_address & -16) - FRAME_SIZE - 8
    data = frame(restored, mask, xstate_address, 0, nonce)
    data += bytes(xstate_address - low - len(data)) + xstate
    registers = restored.copy()
    registers.r12 = records
    registers.r13 = count
    registers.rip = runner
    registers.rsp = low + UCONTEXT_OFFSET
    registers.eflags = _FLAGS_PLAIN
    registers.orig_rax = (1 << 64) - 1
    return Chain(low, data, registers, low + LINK_OFFSET)
