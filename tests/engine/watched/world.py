# SPDX-License-Identifier: GPL-3.0-or-later
"""The service with builds that no other process of the machine has, its patch, and the watch.

A watch acts on every process that maps a build it is told of: a build-id of its own keeps it from
the processes of other tests on the same machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sample_patch
from programs_fixture import RunningProgram
from proof.bundles import SignedStore
from wfpatch.host import Host, Options

PROGRAMS = Path(__file__).parent
FIXED = """
int answer(int number);
__attribute__((noinline)) int answer(int number)
{ __asm__ volatile("" : "+r"(number)); return number + 2; }
"""


def compiled(name: str, directory: Path, *flags: str, output: str = "") -> Path:
    """A program of this folder, as a build of its own."""
    return sample_patch.compile_program(
        PROGRAMS / f"{name}.c",
        directory / (output or name),
        ("-O2", "-pthread", f"-Wl,--build-id=0x{secrets.token_hex(20)}", *flags),
    )


class Watched:
    """The service (or another program), its one patch in a store, and what is in force."""

    def __init__(self, directory: Path, name: str = "service", *flags: str) -> None:
        self.directory = directory
        self.program = compiled(name, directory, *flags)
        self.signed = SignedStore(directory)
        self.signed.add("fix-answer", sample_patch.build(self.program, FIXED, ["answer"]))

    def want(self, *patches: str) -> None:
        """What the store wants from now on."""
        self.signed.store().set_wanted(patches)

    def host(self) -> Host:
        return Host(self.signed.store())

    def status(self, pid: int) -> Any:
        """The report on one process, from its memory."""
        (process,) = self.host().status(["fix-answer"], Options(pids=(pid,))).processes
        return process


class Watch:
    """A running ``wfpatch watch``, and what it says."""

    def __init__(self, signed: SignedStore, *words: object) -> None:
        self.process = subprocess.Popen(
            signed.command("watch", *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.pid = self.process.pid
        self.events: list[dict[str, Any]] = []
        self._pending = b""

    def until(self, event: str, pid: int | None = None, timeout: float = 60.0) -> dict[str, Any]:
        """The next event of that kind (about that process); those before it are kept as well."""
        deadline = time.monotonic() + timeout
        while True:
            for line in self._lines(deadline):
                self.events.append(line)
                if line["event"] == event and pid in (None, line.get("pid")):
                    return line

    def _lines(self, deadline: float) -> Iterator[dict[str, Any]]:
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            output = self.process.stdout
            readable, _, _ = select.select([output], [], [], max(left, 0))
            assert readable, f"the watch said nothing more: {self.events}"
            data = os.read(output.fileno(), 65536)
            assert data, f"the watch ended: {self.process.wait(10)} {self._pending!r} {self.events}"
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        assert line.startswith(b"{"), line
        yield json.loads(line)

    def said(self, event: str, pid: int | None = None) -> list[dict[str, Any]]:
        """The events of that kind so far."""
        return [
            each
            for each in self.events
            if each["event"] == event and pid in (None, each.get("pid"))
        ]

    def rest(self) -> None:
        """Have it end, and read what it said until then."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            while True:
                self.until("ended")
        assert self.process.wait(30) == 0

    def processor_time(self) -> float:
        """Seconds of processor time that it used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ended(watch: Watch) -> None:
    """Kill what is left of it."""
    if watch.process.poll() is None:
        watch.process.kill()
    watch.process.wait(30)
    watch.process.stdout.close()


def answer(running: RunningProgram) -> tuple[int, int]:
    """Which process answers, and what: 1 as shipped, 2 as patched."""
    pid, number = running.ask("say").split()
    return int(pid), int(number)
