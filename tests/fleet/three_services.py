# SPDX-License-Identifier: GPL-3.0-or-later
"""Three services on each of many hosts, so small that a hundred hosts of them fit.

`north` and `south` run one program, for which there are two patches; `east` runs another one, which
no patch is for. Each says over and over what it computes, in a file of a fixed size.
"""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Iterable

import yaml

ENGINE = pathlib.Path(__file__).resolve().parents[1] / "engine"
sys.path.insert(0, str(ENGINE))

import sample_patch  # noqa: E402
from proof import bundles  # noqa: E402
from sshfleet.fleet import Fleet  # noqa: E402

SERVICES = ("north", "south", "east")
PATCHES = ("three-answer", "three-bonus")
#: What the services say without and with both patches.
UNPATCHED = {"north": 1, "south": 1, "east": 1}
PATCHED = {"north": 12, "south": 12, "east": 1}

#: -DEAST makes another program of it, with another build-id.
SERVICE = """
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#ifdef EAST
const char kind[] = "east";
#endif
__attribute__((noipa)) int answer(int x) { return 3 * x + 1; }
__attribute__((noipa)) int bonus(int x) { return x & 0 ? x : 0; }
int main(int argc, char **argv) {
    struct timespec pause = {0, 50 * 1000 * 1000};
    int out = open(argv[1], O_WRONLY | O_CREAT, 0644);
    for (int i = 0; out >= 0; i++) {
        char line[32];
        int size = snprintf(line, sizeof line, "%10d %4d\\n", i, answer(i) - 3 * i + bonus(i));
        if (pwrite(out, line, size, 0) != size) return 1;
        nanosleep(&pause, 0);
    }
    return 1;
}
"""
NEW_CODE = {
    "three-answer": ("answer", "int answer(int x) { return 3 * x + 2; }"),
    "three-bonus": ("bonus", "int bonus(int x) { return x & 0 ? x : 10; }"),
    "three-more": ("bonus", "int bonus(int x) { return x & 0 ? x : 20; }"),
}


def compile_services(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The program of north and south, and that of east."""
    options = ("-O2", "-g")
    return (
        sample_patch.compile_program(SERVICE, folder / "three", options),
        sample_patch.compile_program(SERVICE, folder / "east", (*options, "-DEAST")),
    )


def signed_patch(
    program: pathlib.Path, folder: pathlib.Path, key: pathlib.Path, patch: str, **fields: object
) -> pathlib.Path:
    """The folder of one of NEW_CODE; `fields` replace those of the manifest."""
    function, code = NEW_CODE[patch]
    elf = sample_patch.build(str(program), code, [function])
    manifest = bundles.manifest(patch, elf, **fields)
    cve = f"CVE-2026-{list(NEW_CODE).index(patch) + 1:04d}"
    manifest["cves"] = [{"id": cve, "severity": "high", "references": []}]
    place = folder / patch
    place.mkdir(parents=True)
    data = sample_patch.canonical_json(manifest)
    (place / "patch.elf").write_bytes(elf)
    (place / "manifest.yml").write_text("---\n" + yaml.safe_dump(manifest, sort_keys=False))
    (place / "bundle.json").write_bytes(data)
    (place / "bundle.json.sig").write_bytes(bundles.signature(data, key))
    return place


class ThreeServices:
    """The services on the hosts of a fleet."""

    def __init__(self, fleet: Fleet, programs: tuple[pathlib.Path, pathlib.Path]) -> None:
        self.fleet = fleet
        self._pids: dict[str, list[int]] = {}
        for host in fleet.hosts:
            folder = fleet.root(host.name) / "usr/local/bin"
            for name in SERVICES:
                program = folder / name
                program.write_bytes(programs[name == "east"].read_bytes())
                program.chmod(0o755)

    def start(self, host: str) -> None:
        """Starts the services of a host, anew where they run: without any patch."""
        names = " ".join(SERVICES)
        script = (
            f"kill -9 {' '.join(map(str, self._pids.get(host, [])))} 2>/dev/null; for s in {names};"
            " do rm -f /run/$s; setsid /usr/local/bin/$s /run/$s </dev/null >/run/$s.log 2>&1 & "
            "echo $!; done"
        )
        done = self.fleet.run(host, "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        self._pids[host] = [int(line) for line in done.stdout.split()]

    def run_on(self, host: str) -> bool:
        """Whether the services of a host are still the processes that were started."""
        found = [
            (self.fleet.root(host) / f"proc/{pid}/exe").readlink().name for pid in self._pids[host]
        ]
        return found == list(SERVICES)

    def _written(self, host: str, service: str) -> bool:
        output = self.fleet.root(host) / "run" / service
        return output.exists() and output.stat().st_size > 0

    def line(self, host: str, service: str) -> tuple[int, int]:
        """How often the service has computed, and what it said last."""
        words = (self.fleet.root(host) / "run" / service).read_text().split()
        return int(words[0]), int(words[1])

    def says(self, hosts: Iterable[str]) -> dict[str, dict[str, int]]:
        """What each service of these hosts computes from now on."""
        begun: dict[tuple[str, str], int] = {}
        limit = time.monotonic() + 60
        for host in hosts:
            for service in SERVICES:
                while not self._written(host, service):
                    assert time.monotonic() < limit, f"{service} of {host} says nothing"
                    time.sleep(0.01)
                begun[host, service] = self.line(host, service)[0]
        found: dict[str, dict[str, int]] = {}
        for (host, service), first in begun.items():
            # Two more lines: what is computed in the next one may have been begun before.
            while True:
                count, value = self.line(host, service)
                if count >= first + 2:
                    break
                assert time.monotonic() < limit, f"{service} of {host} has stopped"
                time.sleep(0.01)
            found.setdefault(host, {})[service] = value
        return found
