# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task's seccomp state says to a system call: classic BPF, evaluated here, not tried out.

A call that the filter kills, traps or answers with an error must not be injected; the filter is
never suspended. Sources: seccomp(2), kernel/seccomp.c (seccomp_run_filters, seccomp_check_filter),
and Documentation/networking/filter.rst for the instructions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from wfpatch.syscalls import SystemCall

AUDIT_ARCH_X86_64 = 0xC000003E
_STRICT_ALLOWED = frozenset({0, 1, 15, 60})  # read, write, rt_sigreturn, exit
_WORD = 0xFFFFFFFF

_ACTIONS = {
    0x80000000: "kill_process",
    0x00000000: "kill_thread",
    0x00030000: "trap",
    0x00050000: "errno",
    0x7FC00000: "user_notification",
    0x7FF00000: "trace",
    0x7FFC0000: "log",
    0x7FFF0000: "allow",
}
_ACTION_MASK = 0xFFFF0000
_DATA_SIZE = 64

_CLASS_LD, _CLASS_LDX, _CLASS_ST, _CLASS_STX, _CLASS_ALU, _CLASS_JMP, _CLASS_RET, _CLASS_MISC = (
    range(8)
)
_SOURCE_X = 0x08
_MODE_IMM, _MODE_ABS, _MODE_MEM, _MODE_LEN = 0x00, 0x20, 0x60, 0x80


@dataclass(frozen=True)
class Verdict:
    """What happens to a call: ``action`` as in _ACTIONS; ``value``: the errno of "errno"."""

    action: str
    value: int = 0

    @property
    def allowed(self) -> bool:
        """Whether the call runs as if there were no filter."""
        return self.action in ("allow", "log")

    def __str__(self) -> str:
        return f"{self.action}({self.value})" if self.action == "errno" else self.action


ALLOW = Verdict("allow")
_STRICT_KILL = Verdict("kill_thread")


def _data_of(call: SystemCall, instruction_pointer: int) -> bytes:
    return struct.pack(
        "<iIQ6Q", call.number, AUDIT_ARCH_X86_64, instruction_pointer, *call.arguments
    )


def run_filter(program: bytes, data: bytes) -> int:
    """The 32-bit return value of one filter (array of struct sock_filter) over a struct
    seccomp_data.

    Raises ValueError on a program the kernel would not have accepted.
    """
    if not program or len(program) % 8 or len(data) != _DATA_SIZE:
        raise ValueError("not a seccomp filter")
    code = [struct.unpack_from("<HBBI", program, offset) for offset in range(0, len(program), 8)]
    accumulator = index = 0
    scratch = [0] * 16
    position = 0
    while position < len(code):
        operation, jump_true, jump_false, constant = code[position]
        position += 1
        kind = operation & 7
        if kind in (_CLASS_LD, _CLASS_LDX):
            mode = operation & 0xE0
            if mode == _MODE_IMM:
                value = constant
            elif mode == _MODE_MEM and constant < 16:
                value = scratch[constant]
            elif mode == _MODE_LEN:
                value = _DATA_SIZE
            elif (
                mode == _MODE_ABS
                and kind == _CLASS_LD
                and not operation & 0x18
                and constant % 4 == 0
                and constant + 4 <= _DATA_SIZE
            ):
                value = struct.unpack_from("<I", data, constant)[0]
            else:
                raise ValueError(f"seccomp filter: load {operation:#x} at {position - 1}")
            if kind == _CLASS_LD:
                accumulator = value
            else:
                index = value
        elif kind in (_CLASS_ST, _CLASS_STX):
            if constant >= 16:
                raise ValueError(f"seccomp filter: store to slot {constant}")
            scratch[constant] = accumulator if kind == _CLASS_ST else index
        elif kind == _CLASS_ALU:
            operand = index if operation & _SOURCE_X else constant
            # A division by X == 0 ends a classic filter with the result 0 (kill_thread).
            if operation & 0xF0 in (0x30, 0x90) and operand == 0:
                return 0
            accumulator = _calculate(operation & 0xF0, accumulator, operand)
        elif kind == _CLASS_JMP:
            if operation & 0xF0 == 0x00:
                position += constant
                continue
            operand = index if operation & _SOURCE_X else constant
            position += (
                jump_true if _compare(operation & 0xF0, accumulator, operand) else jump_false
            )
        elif kind == _CLASS_RET:
            source = operation & 0x18
            return int(accumulator if source == 0x10 else index if source == 0x08 else constant)
        elif operation & 0xF8 == 0x00:
            index = accumulator
        elif operation & 0xF8 == 0x80:
            accumulator = index
        else:
            raise ValueError(f"seccomp filter: instruction {operation:#x}")
    raise ValueError("seccomp filter: runs over its end")


def _calculate(operation: int, left: int, right: int) -> int:
    if operation == 0x00:
        value = left + right
    elif operation == 0x10:
        value = left - right
    elif operation == 0x20:
        value = left * right
    elif operation == 0x30:
        value = left // right
    elif operation == 0x40:
        value = left | right
    elif operation == 0x50:
        value = left & right
    elif operation == 0x60:
        value = left << (right & 31)
    elif operation == 0x70:
        value = left >> (right & 31)
    elif operation == 0x80:
        value = -left
    elif operation == 0x90:
        value = left % right
    elif operation == 0xA0:
        value = left ^ right
    else:
        raise ValueError(f"seccomp filter: arithmetic {operation:#x}")
    return value & _WORD


def _compare(operation: int, left: int, right: int) -> bool:
    if operation == 0x10:
        return left == right
    if operation == 0x20:
        return left > right
    if operation == 0x30:
        return left >= right
    if operation == 0x40:
        return bool(left & right)
    raise ValueError(f"seccomp filter: jump {operation:#x}")


def _precedence(value: int) -> int:
    # The kernel compares the action words as signed numbers and takes the least.
    action = value & _ACTION_MASK
    return action - (1 << 32) if action & 0x80000000 else action


@dataclass(frozen=True)
class SeccompState:
    """A task's seccomp mode (0 off, 1 strict, 2 filter) and its filters, the oldest first."""

    mode: int
    filters: tuple[bytes, ...] = ()

    def verdict(self, call: SystemCall, instruction_pointer: int = 0) -> Verdict:
        """What the state says to a call made from ``instruction_pointer``."""
        if self.mode == 0:
            return ALLOW
        if self.mode == 1:
            return ALLOW if call.number in _STRICT_ALLOWED else _STRICT_KILL
        data = _data_of(call, instruction_pointer)
        # Of equal actions the newest filter's counts: it is asked first.
        worst = min(
            (run_filter(program, data) for program in reversed(self.filters)), key=_precedence
        )
        # An action the kernel does not know kills the process.
        name = _ACTIONS.get(worst & _ACTION_MASK, "kill_process")
        return Verdict(name, worst & 0xFFFF if name == "errno" else 0)

    def first_forbidden(
        self, calls: Iterable[SystemCall], instruction_pointer: int = 0
    ) -> tuple[SystemCall, Verdict] | None:
        """The first of ``calls`` that would not simply run, with the verdict on it."""
        for call in calls:
            verdict = self.verdict(call, instruction_pointer)
            if not verdict.allowed:
                return call, verdict
        return None


NO_SECCOMP = SeccompState(0)
