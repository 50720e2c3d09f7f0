# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that lie or break, all in one run: each is named by its own reason, and the others are
patched as if nothing were.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import live_patching
import pytest
import small_service
from live_patching import TOP, Run
from small_service import PATCH, SmallService
from sshfleet import namespaces
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

STORE = "var/lib/wfpatch"
APPLIER = "usr/local/lib/wfpatch/wfpatch"
#: How far the clock of one host is off, in seconds.
SKEW = 3 * 24 * 3600
#: Ahead of every program of a host (ld.so.preload), its clock.
OTHER_CLOCK = f"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now)
{{
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += {SKEW};
    return result;
}}
int gettimeofday(struct timeval *now, void *zone)
{{
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}}
time_t time(time_t *result)
{{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}}
"""
WELL, FULL, NO_ROOM, NO_PYTHON, SKEWED, DYING, OTHER, CORRUPT, TAMPERED = (
    f"host{number:02}" for number in range(1, 10)
)


@dataclass
class Site:
    """The fleet, its services, a patch, and what makes a run with it."""

    fleet: Fleet
    folder: pathlib.Path
    services: dict[str, SmallService]
    signer: live_patching.Signer
    settings: dict[str, Any]

    def play(self, name: str, *options: str, **variables: Any) -> Run:
        return live_patching.play(
            name, self.fleet.inventory, self.folder, *options, **{**self.settings, **variables}
        )

    def answers(self) -> dict[str, set[int]]:
        return {name: service.answers() for name, service in self.services.items()}


def rows(run: Run) -> dict[str, tuple[str, str | None]]:
    return {host["name"]: (host["state"], host["reason"]) for host in run.report["hosts"]}


def message(run: Run, host: str) -> str:
    (found,) = [each["message"] for each in run.report["hosts"] if each["name"] == host]
    return found


def mount_small(fleet: Fleet, host: str, place: str, size: str) -> None:
    """A file system of its own on a folder of the host, open to all as /tmp is."""
    words = ("-t", "tmpfs", "-o", f"size={size},mode=1777", "small", place)
    done = fleet.run(host, "mount", *words)
    assert done.returncode == 0, done.stderr


def fill(fleet: Fleet, host: str, place: str) -> None:
    script = f"cat /dev/zero >{place}/filler"
    done = fleet.run(host, "sh", "-c", script)
    assert "No space left" in done.stderr, done.stderr


def skew(fleet: Fleet, host: str, folder: pathlib.Path) -> None:
    """From now on, programs of the host see another time."""
    source = folder / "other_clock.c"
    source.write_text(OTHER_CLOCK)
    library = fleet.root(host) / "usr/lib/other_clock.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    (fleet.root(host) / "etc/ld.so.preload").write_text("/usr/lib/other_clock.so\n")
    said = int(fleet.ssh(host, "date +%s").stdout)
    assert abs(said - time.time() - SKEW) < 60


def other_applier(fleet: Fleet, host: str, version: str) -> None:
    """An applier of another version, installed as ours would be."""
    place = fleet.root(host) / APPLIER
    place.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(TOP / "dist" / "wfpatch") as ours, place.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as theirs:
            for item in ours.infolist():
                data = ours.read(item)
                if item.filename == "wfpatch/__init__.py":
                    line = f'\n__version__ = "{version}"\n'.encode()
                    data += line
                theirs.writestr(item, data)
    program = fleet.root(host) / "usr/local/sbin/wfpatch"
    program.write_text(f'#!/bin/sh\nexec /usr/bin/python3 -I -B /{APPLIER} "$@"\n')
    program.chmod(0o755)
    assert version in fleet.run(host, "/usr/local/sbin/wfpatch", "version").stdout


def sshd_of(fleet: Fleet, host: str) -> list[int]:
    """The host's sshd processes: who listens, and those of connections."""
    inside = namespaces.pid_namespace(fleet.host(host).pid)
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text().startswith("sshd") and inside == (
                namespaces.pid_namespace(int(entry.name))
            ):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def site(ssh_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    fleet = ssh_fleet(9)
    program = small_service.compile_service(folder)
    signer = live_patching.make_signer(folder)
    patch = small_service.signed_patch(program, folder, signer.key, timeouts={"transition": 30})
    services: dict[str, SmallService] = {}
    try:
        for host in fleet.hosts:
            services[host.name] = SmallService(fleet, host.name, program, held=host.name == DYING)
        settings = {
            "wfpatch_patches": [str(patch)],
            "wfpatch_signers_file": str(signer.allowed),
            "wfpatch_serial": ["100%"],
        }
        yield Site(fleet, folder, services, signer, settings)
    finally:
        for service in services.values():
            service.end()


def test_each_is_named_and_the_others_are_patched(site: Site) -> None:
    fleet = site.fleet
    # The store is full; elsewhere is room.
    (fleet.root(FULL) / STORE).mkdir(parents=True)
    mount_small(fleet, FULL, f"/{STORE}", "16k")
    fill(fleet, FULL, f"/{STORE}")
    # Nothing can be put anywhere.
    script = (
        "cp -a /home/operator/.ssh /kept && mount -t tmpfs -o size=32k,mode=755,uid=operator "
        "small /home/operator && mv /kept /home/operator/.ssh"
    )
    assert fleet.run(NO_ROOM, "sh", "-c", script).returncode == 0
    for place in ("/tmp", "/var/tmp"):
        mount_small(fleet, NO_ROOM, place, "16k")
    for place in ("/tmp", "/var/tmp", "/home/operator"):
        fill(fleet, NO_ROOM, place)
    (fleet.root(NO_PYTHON) / "usr/bin/python3").rename(
        fleet.root(NO_PYTHON) / "usr/bin/python3.hidden"
    )
    skew(fleet, SKEWED, site.folder)
    other_applier(fleet, OTHER, "0.0.1")
    (fleet.root(CORRUPT) / STORE).mkdir(parents=True)
    (fleet.root(CORRUPT) / STORE / "wanted.json").write_bytes(b"\0" * 50)
    # A bundle of the patch's name, with code that nobody signed.
    tampered = fleet.root(TAMPERED) / STORE / "bundles" / PATCH
    tampered.mkdir(parents=True)
    (patch,) = map(pathlib.Path, site.settings["wfpatch_patches"])
    for name in ("bundle.json", "bundle.json.sig"):
        (tampered / name).write_bytes((patch / name).read_bytes())
    (tampered / "patch.elf").write_bytes((patch / "patch.elf").read_bytes()[:-1] + b"\x90")

    begun = live_patching.begin("patch", fleet.inventory, site.folder, **site.settings)
    # Where a thread stays in old code, the applier is at work when sshd and its children die.
    deadline = time.monotonic() + 120
    while site.services[DYING].answers() != {2}:
        assert time.monotonic() < deadline and begun.process.poll() is None
    for pid in sshd_of(fleet, DYING):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run = begun.end()
    print(run.output)
    for host in run.report["hosts"]:
        print(host["name"], host["state"], host["reason"], host["message"][:300])
    assert run.code != 0
    assert rows(run) == {
        WELL: ("patched", None),
        FULL: ("unknown", "disk_full"),
        NO_ROOM: ("unknown", "disk_full"),
        NO_PYTHON: ("unknown", "python_missing"),
        SKEWED: ("patched", None),
        DYING: ("unknown", "host_unreachable"),
        OTHER: ("patched", None),
        CORRUPT: ("blocked", "store_invalid"),
        TAMPERED: ("patched", None),
    }
    assert "/var/lib/wfpatch/" in message(run, FULL)
    assert "/var/lib/wfpatch/wanted.json" in message(run, CORRUPT)
    untouched = {FULL, NO_ROOM, NO_PYTHON, CORRUPT}
    assert site.answers() == {name: {1} if name in untouched else {2} for name in site.services}
    assert all(service.alive() for service in site.services.values())
    # Its own bundle lies there now, and the applier that was sent along.
    assert (tampered / "patch.elf").read_bytes() == (patch / "patch.elf").read_bytes()
    ours = (TOP / "dist" / "wfpatch").read_bytes()
    assert (fleet.root(OTHER) / APPLIER).read_bytes() == ours

    # Put right, a second run completes what is missing, and finds nothing to do on the others.
    for host, place in ((FULL, f"/{STORE}"), (NO_ROOM, "/tmp"), (NO_ROOM, "/var/tmp")):
        assert fleet.run(host, "umount", place).returncode == 0
    script = "rm /home/operator/filler && mount -o remount,size=8m /home/operator"
    assert fleet.run(NO_ROOM, "sh", "-c", script).returncode == 0
    python = fleet.root(NO_PYTHON) / "usr/bin/python3"
    python.with_name("python3.hidden").rename(python)
    assert fleet.run(DYING, "/usr/sbin/sshd").returncode == 0
    (fleet.root(CORRUPT) / STORE / "wanted.json").unlink()
    site.services[DYING].let_go()
    run = site.play("patch")
    assert run.code == 0, run.output
    assert rows(run) == dict.fromkeys(site.services, ("patched", None))
    assert set(run.changed) == set(site.services)
    # An applier that lost its connection works on, and may have ended what it began.
    assert {name for name, changed in run.changed.items() if changed} - {DYING} == untouched
    assert site.answers() == dict.fromkeys(site.services, {2})


def test_evidence_of_a_clock_that_is_off(site: Site) -> None:
    """The report says by how much, and dates evidence by the controller's clock."""
    dest = site.folder / "compliance"
    run = site.play("compliance", wfpatch_compliance_dest=str(dest))
    assert run.code == 0, run.output
    report = json.loads((dest / "report.json").read_text())
    offsets = {host["name"]: host["clock"]["offset_us"] / 1e6 for host in report["hosts"]}
    assert abs(offsets.pop(SKEWED) - SKEW) < 10
    assert all(abs(offset) < 10 for offset in offsets.values()), offsets
    for host in report["hosts"]:
        assert host["state"] == "patched"
        assert host["evidence_time"] <= report["time"] < host["expires"]


def test_a_bundle_that_was_tampered_with_is_named(site: Site) -> None:
    """Memory is what it is: the host is patched, and who reads it learns what lies in its store."""
    code = site.fleet.root(TAMPERED) / STORE / "bundles" / PATCH / "patch.elf"
    whole = code.read_bytes()
    code.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        run = site.play("patch", "--tags", "verify")
    finally:
        code.write_bytes(whole)
    assert run.code != 0
    expected = dict.fromkeys(site.services, ("patched", None))
    assert rows(run) == {**expected, TAMPERED: ("blocked", "bundle_altered")}


def test_an_applier_that_says_what_nobody_understands(site: Site) -> None:
    """One of a later version, of which the run does not bring another."""
    program = site.fleet.root(OTHER) / "usr/local/sbin/wfpatch"
    ours = program.read_text()
    program.write_text('#!/bin/sh\necho \'{"schema": 2, "host": {}}\'\n')
    try:
        run = site.play("patch", "--skip-tags", "install")
    finally:
        program.write_text(ours)
    assert run.code != 0
    expected = dict.fromkeys(site.services, ("patched", None))
    assert rows(run) == {**expected, OTHER: ("unknown", "result_invalid")}
    assert site.answers() == dict.fromkeys(site.services, {2})
