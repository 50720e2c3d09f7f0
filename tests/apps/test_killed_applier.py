# SPDX-License-Identifier: GPL-3.0-or-later
"""The applier is killed on the host in the middle of a playbook's run, under load.

The engine's tests kill it at each of its steps; this is the whole of it: the service serves on, the
run fails and says so, `status` names the state, the same playbook completes it, another undoes it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import live_patching
import load_client
import pytest
from live_patching import Run
from sshfleet import namespaces
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

RECIPE = "memcached-incr-large-number"
#: What may be found after a kill: nothing in force, in the middle, all in force.
NAMED = {"vulnerable", "pending", "partial", "patched"}

#: moment(site, host) -> is it now? It is asked again and again, as fast as can be.
Moment = Callable[["Site", str], Callable[[], bool]]


class Site:
    """Hosts with a stock memcached each, and the patch."""

    def __init__(self, fleet: Fleet, folder: pathlib.Path) -> None:
        self.fleet, self.folder = fleet, folder
        signer = live_patching.make_signer(folder)
        bundle, said = live_patching.build(RECIPE, folder, signer)
        assert bundle, said
        self.settings: dict[str, Any] = {
            "wfpatch_patches": [str(bundle)],
            "wfpatch_signers_file": str(signer.allowed),
        }

    def play(self, name: str, host: str, *options: str) -> Run:
        """Runs a playbook with the patch on one host."""
        words = (*options, "--limit", host)
        return live_patching.play(name, self.fleet.inventory, self.folder, *words, **self.settings)

    def service(self, host: str) -> int:
        """The pid here of the host's memcached."""
        return self.fleet.outer_pid(host, self.fleet.host(host).services["memcached"])

    def status(self, host: str) -> str:
        """The state of the process, as a new applier reads it from memory."""
        done = self.fleet.run(host, "/usr/local/sbin/wfpatch", "--json", "status", RECIPE)
        (process,) = json.loads(done.stdout)["processes"]
        assert process["reason"] is None, process
        return str(process["state"])

    def kill_applier(
        self, host: str, running: Callable[[], bool], moment: Callable[[], bool]
    ) -> bool:
        """SIGKILL to the host's `apply` at that moment; whether there was one to kill."""
        inside = namespaces.pid_namespace(self.fleet.host(host).pid)
        while running():
            applier = next((pid for pid in pids() if applies(pid, inside)), None)
            if applier is None:
                continue
            while applies(applier, inside):
                if moment():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(applier, signal.SIGKILL)
                        return True
            # Gone, or in the middle of execve(2), when a process has no command line: look again.
        return False


@contextlib.contextmanager
def ahead_of_others() -> Iterator[None]:
    """Whoever waits for a moment of milliseconds must not wait for a processor too."""
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    os.setpriority(os.PRIO_PROCESS, thread, -20)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, before)


def pids() -> list[int]:
    """All processes."""
    return [int(entry.name) for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit()]


def applies(pid: int, inside: int | None) -> bool:
    """Whether that is an applier at work in that pid namespace."""
    try:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return (
        b"apply" in words
        and b"--allowed-signers" in words
        and namespaces.pid_namespace(pid) == inside
    )


def mapped(site: Site, host: str) -> Callable[[], bool]:
    """The process has a mapping that it had not: the region is there, all else is not."""
    maps = pathlib.Path(f"/proc/{site.service(host)}/maps")
    before = {line.split()[0] for line in maps.read_text().splitlines()}

    def now() -> bool:
        lines = [line.split() for line in maps.read_text().splitlines()]
        return any(
            words[1] == "r-xp" and words[4] == "0" and len(words) == 5 and words[0] not in before
            for words in lines
        )

    return now


def armed(site: Site, host: str) -> Callable[[], bool]:
    """The first byte of a function to be replaced has changed."""
    planned = site.play("patch", host, "--check")
    (process,) = planned.processes(host)
    entries = [function["entry"] for function in process["functions"]]
    assert len(entries) > 1
    memory = os.open(f"/proc/{site.service(host)}/mem", os.O_RDONLY)
    before = [os.pread(memory, 5, entry) for entry in entries]

    def now() -> bool:
        return any(
            os.pread(memory, 5, entry) != was for entry, was in zip(entries, before, strict=True)
        )

    return now


def any_time(site: Site, host: str) -> Callable[[], bool]:
    """A moment that nobody chose, within what an applier takes."""
    until = 0.0

    def now() -> bool:
        nonlocal until
        until = until or time.monotonic() + random.uniform(0.0, 0.4)
        return time.monotonic() >= until

    return now


@pytest.fixture(scope="module")
def site(ssh_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(ssh_fleet(3, "memcached"), tmp_path_factory.mktemp("killed"))


def kill_once(site: Site, host: str, moment: Moment) -> tuple[bool, str]:
    """One run during which the applier is killed; whether it was, and the state found then."""
    now = moment(site, host)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        playing = pool.submit(site.play, "patch", host)
        with ahead_of_others():
            killed = site.kill_applier(host, lambda: not playing.done(), now)
        run = playing.result()
    if killed:
        # The kill may have come when all was said and done.
        assert run.code != 0 or run.report["state"] == "patched", run.output
    else:
        assert run.code == 0, run.output
    state = site.status(host)
    assert state in NAMED
    return killed, state


@pytest.mark.parametrize(
    ("host", "moment", "rounds"),
    [
        ("host01", mapped, 1),
        ("host02", armed, 1),
        pytest.param("host03", any_time, 40, marks=pytest.mark.slow),
    ],
)
def test_kill(site: Site, host: str, moment: Moment, rounds: int) -> None:
    pid = site.service(host)
    started = namespaces.start_time(pid)
    network = site.fleet.in_network(host)
    states = []
    with load_client.running("memcached", "--rate=500", prefix=network) as load:
        for _ in range(rounds):
            killed, state = kill_once(site, host, moment)
            states.append(state if killed else "not killed")
            assert site.play("patch", host).code == 0
            assert site.status(host) == "patched"
            reverted = site.play("revert", host)
            assert reverted.code == 0, reverted.output
            assert live_patching.names(reverted.processes(host), "vulnerable") == [RECIPE]
        verdict = load.stop()
    print(f"{host}: after kills {states}, {verdict['answered']} answers")
    assert verdict["verdict"] == "pass", verdict
    assert namespaces.start_time(pid) == started
    assert set(states) - {"not killed"}, "no applier was killed"
    if moment is not any_time:
        # Whoever waits for the first trace of it is there before the end.
        assert states[0] in ("vulnerable", "pending"), states
