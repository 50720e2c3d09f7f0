# SPDX-License-Identifier: GPL-3.0-or-later
"""Making the applier quick while a thread is stopped.

A stopped thread waits for Python. On a saturated processor a normal process may wait for its turn
for 258 ms (FACTS.md, A), so the tracer is SCHED_FIFO meanwhile; the garbage collector is off; and
signals whose Python handlers might raise between two requests are blocked. SIGCHLD is blocked as
well, because stops.py waits for it with sigtimedwait(2).
"""

from __future__ import annotations

import gc
import os
import signal
from types import TracebackType

_BLOCKED = frozenset(
    {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM}
)
_PRIORITY = os.sched_param(10)


class Undisturbed:
    """``with Undisturbed():`` around a stop. It nests."""

    __slots__ = ("_collecting", "_mask", "_parameters", "_policy")

    def __enter__(self) -> Undisturbed:
        self._collecting = gc.isenabled()
        gc.disable()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        self._policy = os.sched_getscheduler(0)
        self._parameters = os.sched_getparam(0)
        if self._policy not in (os.SCHED_FIFO, os.SCHED_RR):
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, _PRIORITY)
            except OSError:
                # Not permitted (no CAP_SYS_NICE, a cgroup without real-time share): slower, still
                # right.
                self._policy = -1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._policy not in (-1, os.SCHED_FIFO, os.SCHED_RR):
            os.sched_setscheduler(0, self._policy, self._parameters)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self._collecting:
            gc.enable()
