# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that detects mixtures of versions (programs/proof_trees.c), its patches and a driver.

trees = Trees(start(call_trees.program(), 4, 2))
patch_elf = call_trees.patch(2, "fgk")       # version 2 of f, g and k
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import sample_patch
from programs_fixture import PROGRAMS, ProgramCache, RunningProgram

#: Functions that leave by tail jumps to others of the set: f to g (after_direct_call), r to itself
#: and x and y to each other (never).
SETS = ("fgk", "fgkr", "fgkrxy", "gk", "gkxy", "fgkd")
#: Each version has another size and layout, so that nothing fits by chance.
_EXTRA = '__asm__ volatile(".skip {}, 0x90")'
_FLAGS = ("-O2", "-fPIE", "-pthread", f"-I{PROGRAMS}")


@functools.cache
def program(*flags: str) -> Path:
    """The program; with -DMIXED the one that mixes versions on command.

    As shipped, its code has no jump tables: registers with addresses of cases would count as words
    of old code, and hide what a scenario is about. Later versions have them.
    """
    return ProgramCache(PROGRAMS).build("proof_trees", "-fno-jump-tables", *flags)


def patch(version: int, functions: str, **definitions: str) -> bytes:
    """A patch ELF that brings ``version`` of each of ``functions`` ("fgk").

    ``k="k_WITH_TAIL"`` takes that definition of k.
    """
    return patch_of(program(), version, functions, **definitions)


@functools.cache
def patch_of(built: Path, version: int, functions: str, **definitions: str) -> bytes:
    """The same for another build of the program."""
    lines = [
        f"#define VERSION {version}",
        f"#define EXTRA {_EXTRA.format(16 * version + 3)}",
        '#include "proof_trees.h"',
        *(f"DEFINE_{definitions.get(name, name)}" for name in functions),
    ]
    return sample_patch.build(built, "\n".join(lines) + "\n", list(functions), flags=_FLAGS)


class Trees:
    """A running proof_trees: its commands, and what they answer."""

    def __init__(self, running: RunningProgram) -> None:
        self.running = running
        self.pid = running.pid

    def _done(self, command: str) -> None:
        answer = self.running.ask(command)
        assert answer == "ok", f"{command}: {answer!r}"

    def run(self, thread: int, script: str) -> None:
        """Have a scripted thread run ``script``."""
        self._done(f"run {thread} {script}")

    def main(self, script: str) -> list[str]:
        """Run ``script`` on the main thread; the functions entered, with their versions."""
        return self.running.ask(f"main {script}").split()

    def child(self, thread: int, script: str) -> None:
        """What clones and threads begotten by that thread's scripts run."""
        self._done(f"child {thread} {script}")

    def signal(self, thread: int, script: str) -> None:
        """Interrupt the thread by a signal whose handler runs ``script`` on the same stack."""
        self._done(f"signal {thread} {script}")

    def handler(self, thread: int, script: str) -> None:
        """What the thread's handlers of SIGUSR1 run."""
        self._done(f"handler {thread} {script}")

    def go(self, thread: int) -> None:
        """Wake the thread, or its child, that waits in p, P or q."""
        self._done(f"go {thread}")

    def tid(self, thread: int) -> int:
        return int(self._state(thread)[2])

    def _state(self, thread: int) -> list[str]:
        answer = self.running.ask(f"state {thread}").split()
        assert len(answer) == 3, f"the program ended: {self.running.process.poll()}"
        return answer

    def trace(self, thread: int) -> list[str]:
        """The functions that it entered since the last call, with their versions."""
        return self.running.ask(f"trace {thread}").split()

    def set(self, name: str, value: object) -> None:
        """storm, births, forks, pause or expect."""
        self._done(f"{name} {value}")

    def report(self) -> dict[str, Any]:
        return json.loads(self.running.ask("report"))

    def _until(self, condition: str, holds: Any, thread: int, timeout: float = 30.0) -> None:
        deadline = time.monotonic() + timeout
        while not holds(self._state(thread)):
            assert time.monotonic() < deadline, f"thread {thread} is not {condition}"
            time.sleep(0.002)

    def until_idle(self, thread: int) -> None:
        """Wait until its script is at its end."""
        self._until("idle", lambda state: state[0] == "idle", thread)

    def until_blocked(self, thread: int, times: int = 1) -> None:
        """Wait until it reached p, P or q so many times since the start, and sleeps there."""
        self._until("blocked", lambda state: int(state[1]) >= times, thread)
        self._until_asleep(thread)

    def _until_asleep(self, thread: int) -> None:
        tid = self.tid(thread)
        deadline = time.monotonic() + 30.0
        while self.running.states().get(tid) != "S":
            assert time.monotonic() < deadline, f"thread {thread} does not sleep"
            time.sleep(0.002)

    def until_child_blocked(self, times: int = 1) -> None:
        """Wait until forks, clones and begotten threads reached p so many times, and one sleeps."""
        deadline = time.monotonic() + 30.0
        while True:
            report = self.report()
            if report["children_blocked"] >= times:
                stat = Path(f"/proc/{report['last_child']}/stat").read_text()
                if stat.rpartition(")")[2].split()[0] == "S":
                    return
            assert time.monotonic() < deadline, report
            time.sleep(0.002)

    def until_children_ended(self, number: int) -> None:
        """Wait until so many forks, clones and begotten threads came to their end."""
        deadline = time.monotonic() + 30.0
        while self.report()["children_ended"] < number:
            assert time.monotonic() < deadline, self.report()
            time.sleep(0.002)

    def calls(self, version: int) -> int:
        return int(self.report()["calls"][version])

    def until_called(self, version: int, more: int) -> None:
        """Wait for ``more`` further calls of a version."""
        goal = self.calls(version) + more
        deadline = time.monotonic() + 60.0
        while self.calls(version) < goal:
            assert time.monotonic() < deadline, f"no calls of version {version}"
            time.sleep(0.01)

    def assert_consistent(self) -> dict[str, Any]:
        """No tree had two versions, no thread went backward; returns the report."""
        report = self.report()
        assert self.running.alive()
        assert (report["mixed"], report["backward"]) == (0, 0), report
        return report
