#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces every thread of a process, and tells of whatever happens to one: a witness.

    watching_tracer.py PID    "ready N" once N threads are traced; at end of input a line of JSON

While it traces, nobody else can; a signal that is sent to a thread stops it for the tracer to see,
and so does a job-control stop. Threads' states are sampled besides, a hundred times a second:
`stopped` counts those seen in T or t.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import select
import signal
import sys
import time

SEIZE, CONT = 0x4206, 7
WALL, NOHANG = 0x40000000, 1

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long


def request(number: int, tid: int, data: int = 0) -> None:
    """One ptrace request; OSError when it fails."""
    if libc.ptrace(number, tid, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {number} of {tid}")


def threads(pid: int) -> list[int]:
    """The thread ids of the process."""
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def state(pid: int, tid: int) -> str:
    """Its letter in /proc/PID/task/TID/stat."""
    text = pathlib.Path(f"/proc/{pid}/task/{tid}/stat").read_text()
    return text.rpartition(")")[2].split()[0]


def main() -> None:
    """See the module's text."""
    pid = int(sys.argv[1])
    tids = threads(pid)
    for tid in tids:
        request(SEIZE, tid)
    print(f"ready {len(tids)}", flush=True)
    events: list[str] = []
    samples = stopped = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        with contextlib.suppress(ChildProcessError):
            while True:
                tid, status = os.waitpid(-1, WALL | NOHANG)
                if not tid:
                    break
                events.append(f"{tid}: {status:#x}")
                if os.WIFSTOPPED(status):
                    number = os.WSTOPSIG(status) if status >> 16 == 0 else 0
                    with contextlib.suppress(OSError):
                        request(CONT, tid, number if number != signal.SIGTRAP else 0)
        for tid in tids:
            with contextlib.suppress(OSError):
                samples += 1
                stopped += state(pid, tid) in "Tt"
        time.sleep(0.01)
    print(json.dumps({"events": events[:20], "samples": samples, "stopped": stopped}), flush=True)


if __name__ == "__main__":
    main()
