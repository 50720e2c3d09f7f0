# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate through which everything passes that changes a process: ptrace requests and memory
writes.

It exists so that "kill the applier at every step" can be tested exhaustively: the steps of a run
are enumerated here, and a new request cannot be forgotten, because a test proves that nothing else
calls ptrace or writes memory. Environment, read once at start:

WFPATCH_STEPS=<file>   append each step's number and name to the file
WFPATCH_KILL_AT=<n>    SIGKILL this process right before the n-th step (from 1)
WFPATCH_KILL_AT=<n>+   the same, right after it
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Counter:
    def __init__(self, record: str | None, kill_at: str | None) -> None:
        self.number = 0
        self.after = kill_at is not None and kill_at.endswith("+")
        self.kill_at = int(kill_at.rstrip("+")) if kill_at else 0
        self.file = (
            os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            if record
            else -1
        )

    def run(self, name: str, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        self.number += 1
        if self.file >= 0:
            os.write(self.file, f"{self.number} {name}\n".encode())
        if self.number == self.kill_at and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments)
        if self.number == self.kill_at and self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


_counter: _Counter | None = None


def configure(record: str | None, kill_at: str | None) -> None:
    """Begin to count from 1, as the environment or the test of a forked child asks for."""
    global _counter  # noqa: PLW0603 - one process has one count
    _counter = _Counter(record, kill_at) if record or kill_at else None


configure(os.environ.get("WFPATCH_STEPS"), os.environ.get("WFPATCH_KILL_AT"))


def step(name: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Run one step that touches the process: ``function(*arguments)``."""
    if _counter is None:
        return function(*arguments)
    return _counter.run(name, function, arguments)
