# SPDX-License-Identifier: GPL-3.0-or-later
"""Stock services patched by playbooks through the kernel service, while somebody else traces them:
no thread is stopped, signalled or traced, and the clients notice nothing."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import live_patching
import pytest
from conftest import HERE
from live_patching import Signer
from rig.machine import Machine

sys.path.insert(0, str(HERE.parent / "load"))
import load_client

pytestmark = pytest.mark.timeout(1800)

#: The demonstration's bundles; the second redis one replaces a function of the first again.
RECIPES = {
    "redis": ("redis-cve-2026-25243", "redis-cve-2026-66373"),
    "memcached": ("memcached-meta-debug-exptime", "memcached-incr-large-number"),
}
UNITS = {"redis": "redis-server", "memcached": "memcached"}
#: Else redis saves in children of its own, whose ends are signals that nobody else sent.
QUIET = {"redis": "redis-cli config set save ''", "memcached": "true"}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return live_patching.make_signer(tmp_path_factory.mktemp("signer"))


@pytest.fixture(scope="module")
def bundles(signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("bundles")
    made: dict[str, list[str]] = {}
    for service, recipes in RECIPES.items():
        for recipe in recipes:
            bundle, said = live_patching.build(recipe, folder, signer)
            assert bundle, said
            made.setdefault(service, []).append(str(bundle))
    return made


@contextlib.contextmanager
def service(vm: Machine, name: str) -> Iterator[int]:
    """The packaged service, started by its unit; its pid."""
    vm.run(f"systemctl restart {UNITS[name]} && sleep 2 && {QUIET[name]}")
    try:
        yield int(vm.run(f"systemctl show --property MainPID --value {UNITS[name]}").stdout)
    finally:
        vm.run(f"systemctl stop {UNITS[name]}", check=False)


@contextlib.contextmanager
def load(vm: Machine, name: str) -> Iterator[dict[str, Any]]:
    """Checked load for the duration of the block; the dictionary has the verdict afterwards."""
    vm.put(load_client.build(), "/usr/local/bin/load")
    words = ("load", "--rate", "50", "--seconds", "1500", "--timeout", "60", name)
    verdict: dict[str, Any] = {}
    with subprocess.Popen(vm.ssh(*words), stdout=subprocess.PIPE, text=True) as client:
        try:
            yield verdict
        finally:
            vm.run("kill -TERM $(pgrep -x load)", check=False)
            verdict.update(json.loads(client.communicate(timeout=120)[0]))


@contextlib.contextmanager
def tracer(vm: Machine, pid: int) -> Iterator[dict[str, Any]]:
    """A tracer of all threads for the duration of the block, and what it saw of them."""
    vm.put(HERE / "watching_tracer.py", "/usr/local/bin/watching_tracer")
    seen: dict[str, Any] = {}
    with subprocess.Popen(
        vm.ssh("sudo", "-n", "watching_tracer", str(pid)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as witness:
        assert witness.stdin and witness.stdout
        try:
            assert witness.stdout.readline().startswith("ready ")
            yield seen
        finally:
            witness.stdin.close()
            seen.update(json.loads(witness.stdout.readline() or "{}"))


def steps_of(run: live_patching.Run) -> list[dict[str, Any]]:
    """The processes in a report, each patched without a stop by the kernel service."""
    processes = run.processes("vm")
    assert processes, run.output
    for process in processes:
        assert process["backend"] == "kernel", process
        assert process["stops_count"] == 0, process
        assert process["stops"] == [], process
    return processes


@pytest.mark.parametrize("name", list(RECIPES))
def test_patched_reverted_and_patched_again(
    vm: Machine,
    name: str,
    bundles: dict[str, list[str]],
    signer: Signer,
    tmp_path: pathlib.Path,
) -> None:
    settings = {
        "wfpatch_patches": bundles[name],
        "wfpatch_signers_file": str(signer.allowed),
        "wfpatch_backend": "kernel",
    }
    with service(vm, name) as pid, load(vm, name) as verdict, tracer(vm, pid) as seen:
        for playbook, states in (
            ("patch", {"patched"}),
            ("revert", {"vulnerable"}),
            ("patch", {"patched"}),
        ):
            run = live_patching.play(playbook, vm.inventory, tmp_path, **settings)
            assert run.code == 0, run.output
            found = {patch["state"] for p in steps_of(run) for patch in p["patches"]}
            assert found == states, run.output
        assert (
            vm.run(f"systemctl show --property MainPID --value {UNITS[name]}").stdout == f"{pid}\n"
        )
    print(name, verdict, seen)
    assert seen["events"] == [] and seen["stopped"] == 0, seen
    assert seen["samples"] > 500, seen
    assert verdict["verdict"] == "pass", verdict
    assert [verdict[kind] for kind in ("wrong", "lost", "interrupted")] == [0, 0, 0]
    assert verdict["answered"] == verdict["requests"] > 100


def test_the_witness_sees_a_signal(vm: Machine) -> None:
    """The judge is judged: a signal that the program ignores, and a stop."""
    pid = int(vm.run("setsid sleep 300 >/dev/null 2>&1 & echo $!").stdout)
    with tracer(vm, pid) as seen:
        vm.run(f"kill -WINCH {pid}; sleep 1")
    assert seen["events"], seen
    vm.run(f"kill -STOP {pid}; sleep 1")
    assert vm.run(f"cut -d' ' -f3 /proc/{pid}/stat").stdout.strip() == "T"
    vm.run(f"kill -KILL {pid}")
