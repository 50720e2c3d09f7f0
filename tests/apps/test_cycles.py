# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply and revert, again and again, in stock services under load: nothing wears out."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import live_patching
import load_client
import pytest
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

RECIPES = {"memcached": "memcached-incr-large-number", "redis": "redis-cve-2026-25243"}
#: From this cycle on nothing grows; the first ones map, load and fill what stays.
STEADY_FROM = 3
#: What a service under load may take by itself, such as another page of memcached's slabs.
SERVICE_KIB = 4096


@dataclasses.dataclass(frozen=True)
class Footprint:
    """A process' mappings, resident memory, and that of what the applier mapped, in KiB."""

    mappings: int
    resident: int
    ours: int


def footprint(pid: int, before: frozenset[str]) -> Footprint:
    """Of a process now; ``before`` are the ranges that were mapped as shipped.

    Ours is what is anonymous, executable and new, and the data of a region right below its text.
    """
    text = pathlib.Path(f"/proc/{pid}/smaps").read_text()
    found = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+) *(\S*)\n(?:[A-Z].*\n)*?Rss: +(\d+) kB",
        text,
        re.M,
    )
    ours = {
        low
        for low, high, access, inode, path, _ in found
        if "x" in access and inode == "0" and not path and f"{low}-{high}" not in before
    }
    resident = {low: int(size) for low, *_, size in found}
    below = {low for low, high, *_ in found if high in ours}
    return Footprint(len(found), sum(resident.values()), sum(resident[low] for low in ours | below))


def ranges(pid: int) -> frozenset[str]:
    """What is mapped now, as the kernel writes it."""
    lines = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    return frozenset(line.split()[0] for line in lines)


def applier(fleet: Fleet, command: str, recipe: str) -> dict:
    """One run of the applier on the host."""
    done = fleet.run("host01", "/usr/local/sbin/wfpatch", "--json", command, recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict = json.loads(done.stdout)
    assert result["changed"] is True
    return result


@pytest.mark.parametrize("cycles", [8, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("service", list(RECIPES))
def test_cycles(ssh_fleet: FleetFactory, tmp_path: pathlib.Path, service: str, cycles: int) -> None:
    recipe = RECIPES[service]
    signer = live_patching.make_signer(tmp_path)
    bundle, said = live_patching.build(recipe, tmp_path, signer)
    assert bundle, said
    fleet = ssh_fleet(1, service)
    pid = fleet.outer_pid("host01", fleet.host("host01").services[service])
    settings = {"wfpatch_patches": [str(bundle)], "wfpatch_signers_file": str(signer.allowed)}
    with load_client.running(service, "--rate=500", prefix=fleet.in_network("host01")) as load:
        before = ranges(pid)
        run = live_patching.play("patch", fleet.inventory, tmp_path, **settings)
        assert run.code == 0, run.output
        seen = []
        for _ in range(cycles):
            reverted = applier(fleet, "revert", recipe)
            assert reverted["processes"][0]["state"] == "vulnerable"
            applied = applier(fleet, "apply", recipe)
            assert applied["processes"][0]["state"] == "patched"
            seen.append(footprint(pid, before))
        verdict = load.stop()
    assert verdict["verdict"] == "pass", verdict
    assert verdict["answered"] == verdict["requests"] > 100
    assert [verdict[kind] for kind in ("wrong", "lost", "interrupted")] == [0, 0, 0]
    steady = seen[STEADY_FROM - 1 :]
    print(f"{service}: {cycles} cycles, {verdict['answered']} answers, {seen[0]} .. {seen[-1]}")
    assert {place.mappings for place in steady} == {steady[0].mappings}
    assert {place.ours for place in steady} == {steady[0].ours}
    assert steady[0].ours > 16, "the region was not found"
    assert max(place.resident for place in steady) - steady[0].resident <= SERVICE_KIB, steady
