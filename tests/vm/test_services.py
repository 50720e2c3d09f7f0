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

UNITS = {"redis": "redis-server", "memcached": "memcached"}
#: Else redis saves in children of its own, whose ends are signals that nobody else sent.
QUIET = {"redis": "redis-cli config set save ''", "memcached": "true"}


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
    program = f"load-{name}"  # each its own: a program that runs cannot be written
    vm.put(load_client.build(), f"/usr/local/bin/{program}")
    words = (program, "--rate", "50", "--seconds", "1500", "--timeout", "60", name)
    verdict: dict[str, Any] = {}
    with subprocess.Popen(vm.ssh(*words), stdout=subprocess.PIPE, text=True) as client:
        try:
            yield verdict
        finally:
            vm.run(f"kill -TERM $(pgrep -x {program})", check=False)
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


def patched_reverted_and_patched_again(
    vm: Machine, bundles: dict[str, list[str]], signer: Signer, tmp_path: pathlib.Path
) -> None:
    """All services by each of the playbooks, under load, with a tracer on every thread; and what
    all of them saw."""
    settings = {
        "wfpatch_patches": [patch for patches in bundles.values() for patch in patches],
        "wfpatch_signers_file": str(signer.allowed),
        "wfpatch_backend": "kernel",
    }
    verdicts: dict[str, dict[str, Any]] = {}
    witnesses: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        pids = {name: stack.enter_context(service(vm, name)) for name in bundles}
        for name, pid in pids.items():
            verdicts[name] = stack.enter_context(load(vm, name))
            witnesses[name] = stack.enter_context(tracer(vm, pid))
        for playbook, state in (
            ("patch", "patched"),
            ("revert", "vulnerable"),
            ("patch", "patched"),
        ):
            run = live_patching.play(playbook, vm.inventory, tmp_path, **settings)
            assert run.code == 0, run.output
            found = {
                process["pid"]: {patch["id"]: patch["state"] for patch in process["patches"]}
                for process in steps_of(run)
            }
            assert found == {
                pids[name]: {pathlib.Path(patch).name: state for patch in patches}
                for name, patches in bundles.items()
            }, run.output
        for name, pid in pids.items():
            now = vm.run(f"systemctl show --property MainPID --value {UNITS[name]}").stdout
            assert now == f"{pid}\n"
    for name, verdict in verdicts.items():
        seen = witnesses[name]
        print(name, verdict, seen)
        assert seen["events"] == [] and seen["stopped"] == 0, seen
        assert seen["samples"] > 500, seen
        assert verdict["verdict"] == "pass", verdict
        assert [verdict[kind] for kind in ("wrong", "lost", "interrupted")] == [0, 0, 0]
        assert verdict["answered"] == verdict["requests"] > 100


@pytest.mark.slow
def test_patched_reverted_and_patched_again(
    vm: Machine, bundles: dict[str, list[str]], signer: Signer, tmp_path: pathlib.Path
) -> None:
    """On each kernel; on Debian 12's, test_kernel_service.py does it with what DKMS built there."""
    patched_reverted_and_patched_again(vm, bundles, signer, tmp_path)


def test_the_witness_sees_a_signal(vm: Machine) -> None:
    """The judge is judged: a signal that the program ignores, and a stop."""
    pid = int(vm.run("setsid sleep 300 >/dev/null 2>&1 & echo $!").stdout)
    with tracer(vm, pid) as seen:
        vm.run(f"kill -WINCH {pid}; sleep 1")
    assert seen["events"], seen
    vm.run(f"kill -STOP {pid}; sleep 1")
    assert vm.run(f"cut -d' ' -f3 /proc/{pid}/stat").stdout.strip() == "T"
    vm.run(f"kill -KILL {pid}")
