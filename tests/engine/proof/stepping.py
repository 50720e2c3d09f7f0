# SPDX-License-Identifier: GPL-3.0-or-later
"""Halting a test program's thread at a chosen instruction, as no applier may: by single steps.

What the engine must bear at any instruction is then done at each of them.
"""

from __future__ import annotations

import ctypes
import os
import time

from wfpatch.backend.ptrace_requests import UserRegisters

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_POKEUSER, _SINGLESTEP, _GETREGS, _DETACH = 6, 9, 12, 17
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000
_SYS_TGKILL = 234
_PUSHF = b"\x9c"
_TRAP_FLAG = 1 << 8


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, tid, address, data) == -1:
        number = ctypes.get_errno()
        with open(f"/proc/{tid}/status", encoding="ascii") as file:
            status = [line.strip() for line in file if line.startswith(("State", "TracerPid"))]
        raise OSError(number, f"ptrace {request} of {tid}: {os.strerror(number)}, {status}")


def send_signal(tgid: int, tid: int, number: int) -> None:
    """tgkill(2)."""
    if _libc.syscall(_SYS_TGKILL, tgid, tid, number):
        raise OSError(ctypes.get_errno(), f"tgkill {tid}")


class Stepper:
    """A traced thread; a context manager that lets it go at the end."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._memory = os.open(f"/proc/{tid}/mem", os.O_RDWR)

    def __enter__(self) -> Stepper:
        _ptrace(_SEIZE, self.tid)
        _ptrace(_INTERRUPT, self.tid)
        self._wait()
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.tid, os.WNOHANG | _WALL)
            if pid:
                assert os.WIFSTOPPED(status), f"thread {self.tid} ended: {status:#x}"
                return
            time.sleep(0.0002)
        raise AssertionError(f"thread {self.tid} does not stop")

    def _registers(self) -> UserRegisters:
        registers = UserRegisters()
        _ptrace(_GETREGS, self.tid, 0, ctypes.addressof(registers))
        return registers

    def run_to(self, address: int, limit: int = 20000) -> None:
        """Step until it is about to execute ``address``."""
        for _ in range(limit):
            if self.step() == address:
                return
        raise AssertionError(f"{limit} steps did not lead to {address:#x}")

    def step(self) -> int:
        """One instruction; returns where it is then."""
        rip = self._registers().rip
        _ptrace(_SINGLESTEP, self.tid)
        self._wait()
        registers = self._registers()
        if os.pread(self._memory, 1, rip) == _PUSHF:
            # What it pushed has the trap flag that stepping is done by, and popf would set it.
            flags = int.from_bytes(os.pread(self._memory, 8, registers.rsp), "little") & ~_TRAP_FLAG
            os.pwrite(self._memory, flags.to_bytes(8, "little"), registers.rsp)
        return registers.rip

    def __exit__(self, *_: object) -> None:
        os.close(self._memory)
        # The kernel takes a popf for the program's own wish to be stepped, and leaves the flag set.
        flags = self._registers().eflags & ~_TRAP_FLAG
        _ptrace(_POKEUSER, self.tid, UserRegisters.eflags.offset, flags)
        _ptrace(_DETACH, self.tid)
