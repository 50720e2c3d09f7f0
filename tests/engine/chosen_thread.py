# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions whose injections go to a thread the test chooses, and a region of memory to work in."""

from __future__ import annotations

from wfpatch.backend import Runner
from wfpatch.backend.ptrace import PtraceBackend, PtraceSession
from wfpatch.machine_code import syscall_runner
from wfpatch.syscalls import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    mmap_anonymous,
    munmap,
)
from wfpatch.xstate import layout_of_this_host

PLACE = 0x10000000
DATA_SIZE = 0x10000
TEXT_SIZE = 0x1000
TEXT = PLACE + DATA_SIZE
LAYOUT = layout_of_this_host()


class ChosenSession(PtraceSession):
    """A session that injects into the thread ``chosen`` only (None: as it likes)."""

    chosen: int | None = None

    def _candidates(self, calls, tried, few, refused):
        found = super()._candidates(calls, tried, few and self.chosen is None, refused)
        return [seen for seen in found if self.chosen in (None, seen.tid)]


def open_chosen(pid: int) -> ChosenSession:
    """A session on a process."""
    return ChosenSession(pid, LAYOUT)


def open_session(pid: int) -> PtraceSession:
    """A session as the applier opens it."""
    return PtraceBackend().open(pid)


def map_place(session: PtraceSession, timeout: float = 10.0) -> Runner:
    """Map data and text at PLACE, as the applier maps a region; returns the syscall runner."""
    results = session.call(
        [
            mmap_anonymous(PLACE, DATA_SIZE, PROT_READ | PROT_WRITE),
            mmap_anonymous(TEXT, TEXT_SIZE, PROT_READ | PROT_EXEC),
        ],
        timeout=timeout,
    )
    assert results == [PLACE, TEXT]
    code = syscall_runner()
    session.memory.write(TEXT, code)
    return Runner(TEXT, len(code), PLACE, 100)


def unmap_place(session: PtraceSession, timeout: float = 10.0) -> None:
    """Unmap it again."""
    assert session.call([munmap(PLACE, DATA_SIZE + TEXT_SIZE)], timeout=timeout) == [0]
