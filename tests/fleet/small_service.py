# SPDX-License-Identifier: GPL-3.0-or-later
"""A small service for hosts of a fleet, whose one thread too many can be kept in old code.

It takes seconds where a package's build takes minutes; tests of the fleet's own behaviour use it.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import time
from typing import Any

import yaml

ENGINE = pathlib.Path(__file__).resolve().parents[1] / "engine"
sys.path.insert(0, str(ENGINE))

import sample_patch  # noqa: E402
from proof import bundles  # noqa: E402
from sshfleet import namespaces  # noqa: E402
from sshfleet.fleet import Fleet  # noqa: E402

PATCH = "counting-answer"
COMM = "counting"
PROGRAM = "/usr/local/bin/counting"
OUTPUT = "/run/counting.out"
GATE = "/run/counting.gate"

#: answer() stays where it is as long as nobody writes to the descriptor it is given.
SERVICE = """
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
__attribute__((noinline)) int answer(int x, int gate) {
    char byte;
    if (gate >= 0 && read(gate, &byte, 1) < 0) return -1;
    return 3 * x + 1;
}
static void *serve(void *gate) {
    struct timespec pause = {0, 10 * 1000 * 1000};
    if (gate) answer(0, open(gate, O_RDWR));
    for (int i = 0;; i++) {
        printf("%d\\n", answer(i, -1) - 3 * i);
        nanosleep(&pause, 0);
    }
    return 0;
}
int main(int argc, char **argv) {
    pthread_t other;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (argc > 1) pthread_create(&other, 0, serve, argv[1]);
    serve(0);
}
"""
NEW_CODE = """
#include <unistd.h>
int answer(int x, int gate) {
    char byte;
    if (gate >= 0 && read(gate, &byte, 1) < 0) return -1;
    return 3 * x + 2;
}
"""


def compile_service(folder: pathlib.Path) -> pathlib.Path:
    """The executable, made in that folder."""
    return sample_patch.compile_program(SERVICE, folder / COMM, ("-O2", "-g", "-pthread"))


def signed_patch(
    program: pathlib.Path, folder: pathlib.Path, key: pathlib.Path, **fields: Any
) -> pathlib.Path:
    """The patch's folder as the builder would leave it; `fields` replace those of the manifest."""
    elf = sample_patch.build(str(program), NEW_CODE, ["answer"])
    manifest = bundles.manifest(PATCH, elf, **fields)
    manifest["cves"] = [{"id": "CVE-2026-0001", "severity": "high", "references": []}]
    place = folder / PATCH
    place.mkdir()
    data = sample_patch.canonical_json(manifest)
    (place / "patch.elf").write_bytes(elf)
    (place / "manifest.yml").write_text("---\n" + yaml.safe_dump(manifest, sort_keys=False))
    (place / "bundle.json").write_bytes(data)
    (place / "bundle.json.sig").write_bytes(bundles.signature(data, key))
    return place


class SmallService:
    """The service running on a host; `held` has a thread that stays in old code until let go."""

    def __init__(self, fleet: Fleet, host: str, program: pathlib.Path, held: bool = False) -> None:
        self.fleet, self.host = fleet, host
        root = fleet.root(host)
        installed = root / PROGRAM.lstrip("/")
        if not installed.exists():
            installed.write_bytes(program.read_bytes())
            installed.chmod(0o755)
        self.output = root / OUTPUT.lstrip("/")
        self.output.write_bytes(b"")
        self.gate = root / GATE.lstrip("/")
        self.gate.unlink(missing_ok=True)
        os.mkfifo(self.gate)
        words = f"{PROGRAM} {GATE if held else ''}"
        started = fleet.run(host, "sh", "-c", f"setsid {words} >{OUTPUT} 2>&1 </dev/null & echo $!")
        self.inner = int(started.stdout)
        self.pid = fleet.outer_pid(host, self.inner)
        self.started = namespaces.start_time(self.pid)
        if held:
            self._until(self._blocked, "no thread waits at the gate")

    def _blocked(self) -> bool:
        calls = [task / "syscall" for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir()]
        return any(path.read_text().startswith("0 ") for path in calls)

    @staticmethod
    def _until(condition: Any, complaint: str, seconds: float = 60) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit, complaint
            time.sleep(0.01)

    def answers(self) -> set[int]:
        """What the service prints from now on, over some lines."""
        seen = self.output.stat().st_size

        def lines() -> list[bytes]:
            return self.output.read_bytes()[seen:].split(b"\n")

        self._until(lambda: len(lines()) > 12, "the service says nothing")
        # The first line may have been begun before this call, the last one may be incomplete.
        return {int(line) for line in lines()[3:-1]}

    def let_go(self) -> None:
        """The thread at the gate leaves old code."""
        descriptor = os.open(self.gate, os.O_RDWR)
        os.write(descriptor, b".")
        self._until(lambda: not self._blocked(), "the thread stays at the gate")
        os.close(descriptor)

    def alive(self) -> bool:
        """Whether it is still the process that was started."""
        return namespaces.start_time(self.pid) == self.started

    def end(self) -> None:
        """Ends it."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            self._until(lambda: not self.alive(), "the service does not end")
