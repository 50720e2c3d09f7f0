# SPDX-License-Identifier: GPL-3.0-or-later
"""Latency of checked requests to stock services: quiet, patched locally, patched globally."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

import load_client
from scenario import bundles
from scenario.checkout import OUTPUT, read_plan
from sshfleet import fleet

from . import TOP

QUANTILES = ("p50", "p99", "p999", "max")


class Store:
    """The demonstration's bundles, built and signed, as a store of the applier's."""

    def __init__(self) -> None:
        plan = read_plan(TOP / "demo" / "plan.toml")
        OUTPUT.mkdir(parents=True, exist_ok=True)
        key, self.signers = bundles.make_signer()
        self.path = OUTPUT / "bench-store"
        shutil.rmtree(self.path, ignore_errors=True)
        self.ids: dict[str, list[str]] = {}
        for recipe in plan.recipes:
            folder = bundles.build(recipe, key)
            shutil.copytree(folder, self.path / "bundles" / recipe.id)
            self.ids.setdefault(recipe.source, []).append(recipe.id)

    def run(self, command: str, ids: list[str], *words: str) -> tuple[dict[str, Any], float, float]:
        """(result, wall seconds, CPU seconds) of one run of the applier."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "wfpatch", "--store", str(self.path), "--json"]
            + ["--allowed-signers", str(self.signers), command, *words, *ids],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(TOP / "applier")},
            check=False,
        )
        wall = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"{command} {ids}: {done.stdout.decode()[-2000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return json.loads(done.stdout), wall, cpu


def _patching(store: Store, ids: list[str], policy: str, seconds: float) -> dict[str, Any]:
    walls, cpus, cycles = [], [], 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _, wall, cpu = store.run("apply", ids, "--policy", policy)
        walls.append(wall)
        cpus.append(cpu)
        store.run("revert", ids)
        cycles += 1
    return {"cycles": cycles, "wall_s": sorted(walls), "cpu_s": sorted(cpus)}


def measure(seconds: float, rate: int, connections: int) -> dict[str, Any]:
    """For each service: latencies by phase, and what the applier took."""
    store = Store()
    result: dict[str, Any] = {}
    with fleet.running(1, ["redis", "memcached"], "bench") as hosts:
        name = hosts.hosts[0].name
        for service, ids in store.ids.items():
            with load_client.running(
                service,
                f"--rate={rate}",
                f"--connections={connections}",
                prefix=hosts.in_network(name),
                seconds=int(seconds * 20) + 600,
            ) as client:
                client.phase("quiet")
                time.sleep(seconds)
                client.phase("local")
                local = _patching(store, ids, "auto", seconds)
                client.phase("global")
                whole = _patching(store, ids, "global", seconds)
                verdict = client.stop()
            result[service] = {"verdict": verdict, "local": local, "global": whole}
    return result


__all__ = ["QUANTILES", "measure"]
