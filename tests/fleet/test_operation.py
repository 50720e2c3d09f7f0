# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator meets on a fleet, entered over ssh as an unprivileged user with become."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import live_patching
import pytest
import small_service
from live_patching import Run
from small_service import PATCH, SmallService
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

EVERY_HOST = {"wfpatch_serial": ["100%"]}
APPLIER = "/usr/local/sbin/wfpatch"

Starter = Callable[..., SmallService]


class Site:
    """Four hosts, a program, somebody who may sign, and the patches they have signed."""

    def __init__(self, fleet: Fleet, folder: pathlib.Path) -> None:
        self.fleet, self.folder = fleet, folder
        self.program = small_service.compile_service(folder)
        self.signer = live_patching.make_signer(folder)
        self.made = 0

    def patch(self, **fields: Any) -> dict[str, Any]:
        """The variables for a run with a patch whose manifest has these fields."""
        self.made += 1
        place = self.folder / str(self.made)
        place.mkdir()
        patch = small_service.signed_patch(self.program, place, self.signer.key, **fields)
        return {"wfpatch_patches": [str(patch)], "wfpatch_signers_file": str(self.signer.allowed)}

    def play(self, name: str, *options: str, **variables: Any) -> Run:
        """Runs a playbook on the fleet."""
        return live_patching.play(name, self.fleet.inventory, self.folder, *options, **variables)


@pytest.fixture(scope="module")
def site(ssh_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(ssh_fleet(4), tmp_path_factory.mktemp("site"))


@pytest.fixture
def start(site: Site) -> Iterator[Starter]:
    """start(host, held=False): the service on that host, ended after the test."""
    with contextlib.ExitStack() as started:

        def begin(host: str, held: bool = False) -> SmallService:
            service = SmallService(site.fleet, host, site.program, held)
            started.callback(service.end)
            return service

        yield begin


def rows(run: Run) -> dict[str, tuple[str, str | None]]:
    """State and reason of every host of the report."""
    return {host["name"]: (host["state"], host["reason"]) for host in run.report["hosts"]}


def test_hosts_in_trouble_are_told_apart(site: Site, start: Starter) -> None:
    """Unreachable, without Python, partly patched, without the service: each has its own word."""
    well, held = start("host01"), start("host02", held=True)
    python = site.fleet.root("host03") / "usr/bin/python3"
    hidden = python.with_name("python3.hidden")
    broken = site.folder / "unreachable.yml"
    broken.write_text("all: {hosts: {host04: {ansible_port: 1}}}\n")
    given = site.patch()
    python.rename(hidden)
    try:
        run = site.play("patch", "-i", str(broken), wfpatch_timeout=1, **given, **EVERY_HOST)
    finally:
        hidden.rename(python)
    assert run.code != 0
    assert rows(run) == {
        "host01": ("patched", None),
        "host02": ("partial", "stragglers"),
        "host03": ("unknown", "python_missing"),
        "host04": ("unknown", "host_unreachable"),
    }
    assert well.answers() == {2}
    assert held.answers() == {2}
    assert run.report["complete"] is False
    # The same hosts again, whole and reachable, but with no such service on two of them.
    held.let_go()
    run = site.play("patch", **given, **EVERY_HOST)
    assert run.code != 0
    assert rows(run) == {
        "host01": ("patched", None),
        "host02": ("patched", None),
        "host03": ("not_affected", "no_matching_process"),
        "host04": ("not_affected", "no_matching_process"),
    }


def test_a_straggler_is_left_and_named(site: Site, start: Starter) -> None:
    """Policy `leave`: everybody else is patched, and the next run completes it."""
    held = start("host01", held=True)
    given = site.patch(timeouts={"transition": 1})
    only = ("--limit", "host01")
    run = site.play("patch", *only, **given)
    assert run.code != 0
    (process,) = run.processes("host01")
    assert (process["state"], process["reason"]) == ("partial", "stragglers")
    (straggler,) = process["threads"]["stragglers"]
    assert straggler["function"] == "answer"
    assert straggler["comm"] == small_service.COMM
    assert straggler["tid"] != process["pid"]
    assert f"straggler {straggler['tid']} counting in answer: " in run.output
    assert held.answers() == {2}
    # Who says that this is no failure gets none.
    assert site.play("patch", *only, wfpatch_accept=["partial"], **given).code == 0
    status = site.play("status", *only, wfpatch_expected=["patched"], **given)
    assert (status.code, rows(status)["host01"][0]) == (2, "partial")
    held.let_go()
    run = site.play("patch", *only, **given)
    assert (run.code, rows(run)["host01"]) == (0, ("patched", None))
    assert held.answers() == {2}
    assert held.alive()


def test_a_straggler_makes_the_host_go_back(site: Site, start: Starter) -> None:
    """Policy `revert`: the host is as before, and that is no success."""
    held = start("host01", held=True)
    given = site.patch(timeouts={"transition": 1}, stragglers="revert")
    run = site.play("patch", "--limit", "host01", **given)
    assert run.code != 0
    (process,) = run.processes("host01")
    assert (process["state"], process["reason"]) == ("vulnerable", "stragglers")
    assert held.answers() == {1}
    held.let_go()
    assert held.answers() == {1}
    assert site.play("patch", "--limit", "host01", **given).code == 0
    assert held.answers() == {2}


def test_a_failing_health_check_stops_the_roll_out(site: Site, start: Starter) -> None:
    """The canary's service is unwell after the patch: nobody else gets it."""
    first, second = start("host01"), start("host02")
    healthy = site.fleet.root("host01") / "run/healthy"
    healthy.unlink(missing_ok=True)
    (site.fleet.root("host02") / "run/healthy").touch()
    check = {"command": ["/usr/bin/test", "-e", "/run/healthy"], "timeout": 10}
    given = site.patch(health_check=check)
    both = ("--limit", "host01,host02")
    run = site.play("patch", *both, **given)
    assert run.code != 0
    assert rows(run) == {
        "host01": ("patched", "health_check_failed"),
        "host02": ("unknown", "not_reached"),
    }
    assert second.answers() == {1}
    # Memory is as it is; to go back is the operator's decision, and it works.
    assert first.answers() == {2}
    assert site.play("revert", "--limit", "host01", **given).code == 0
    assert first.answers() == {1}
    healthy.touch()
    run = site.play("patch", *both, **given)
    assert run.code == 0, run.output
    assert first.answers() == second.answers() == {2}


def test_a_second_applier_is_refused(site: Site, start: Starter) -> None:
    """While one works on the host, another may wait for it, and says so when it does not."""
    held = start("host01", held=True)
    given = site.patch(timeouts={"transition": 1})
    only = ("--limit", "host01")
    assert site.play("patch", *only, **given).code != 0
    words = (APPLIER, "--json", "apply", PATCH, "--timeout", "600")
    with subprocess.Popen(
        site.fleet.inside("host01", *words), stdout=subprocess.PIPE, text=True
    ) as working:
        lock = site.fleet.root("host01") / "var/lib/wfpatch/.lock"
        while not lock.read_text().strip().isdigit() or not locked(lock):
            assert working.poll() is None
        run = site.play("patch", *only, wfpatch_wait=0, **given)
        assert run.code != 0
        assert rows(run)["host01"][1] == "busy"
        # Reading needs no turn.
        assert rows(site.play("status", *only, **given))["host01"][0] == "partial"
        assert working.poll() is None
        held.let_go()
        result = json.loads(working.communicate(timeout=300)[0])
    assert (working.returncode, result["state"]) == (0, "patched")
    assert held.answers() == {2}


def locked(path: pathlib.Path) -> bool:
    """Whether somebody holds flock(2) on the file, as /proc/locks has it."""
    number = os.stat(path).st_ino
    lines = pathlib.Path("/proc/locks").read_text().splitlines()
    return any(f":{number} " in line for line in lines)


def test_uninstall_says_what_stays(site: Site, start: Starter) -> None:
    """One host keeps new code in force, one was reverted: both keep a region, and are named."""
    patched, reverted = start("host01"), start("host02")
    given = site.patch()
    both = ("--limit", "host01,host02")
    assert site.play("patch", *both, **given, **EVERY_HOST).code == 0
    assert site.play("revert", "--limit", "host02", **given).code == 0
    run = site.play("uninstall", *both, **given)
    assert run.code == 0, run.output
    said = (
        "counting[{}] counting: the region and the armed entries of generation {} stay; "
        "patches in force: {}"
    )
    assert said.format(patched.inner, 1, PATCH) in run.output
    assert said.format(reverted.inner, 2, "none") in run.output
    for host in ("host01", "host02"):
        root = site.fleet.root(host)
        for path in ("usr/local/sbin/wfpatch", "usr/local/lib/wfpatch", "var/lib/wfpatch"):
            assert not (root / path).exists(), path
    assert (patched.answers(), reverted.answers()) == ({2}, {1})
    assert site.play("status", *both, **given).code != 0
    # A new installation finds what is in memory, and can take it out of force.
    assert site.play("patch", *both, **given, **EVERY_HOST).code == 0
    assert site.play("revert", *both, **given, **EVERY_HOST).code == 0
    assert patched.answers() == reverted.answers() == {1}


def test_the_oldest_ansible_core(site: Site, start: Starter) -> None:
    """ansible-core 2.18 on the controller: a host is patched, patched again and reverted."""
    made = subprocess.run(
        [live_patching.TOP / "setup" / "oldest_controller"],
        check=True,
        capture_output=True,
        text=True,
    )
    commands = pathlib.Path(made.stdout.strip()) / "bin"
    service = start("host01")
    given = site.patch()
    for name, changed, answer in (("patch", True, 2), ("patch", False, 2), ("revert", True, 1)):
        run = live_patching.play(
            *(name, site.fleet.inventory, site.folder, "--limit", "host01", "-vv"),
            commands=commands,
            **given,
        )
        assert run.code == 0, run.output
        assert "ansible-playbook [core 2.18." in run.output
        assert (run.changed["host01"] > 0) is changed, run.output
        assert service.answers() == {answer}


@pytest.mark.skipif(
    live_patching.CONTROLLER != live_patching.COMMANDS,
    reason="the newest ansible-core has no connection plugin paramiko any more",
)
def test_the_paramiko_connection(
    site: Site, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way in. It knows no socket handed over, so the controller joins the network."""
    service = start("host01")
    given = site.patch()
    home = site.folder / "home"
    (home / ".ssh").mkdir(parents=True)
    known = site.fleet.place / "known_hosts"
    (home / ".ssh" / "known_hosts").write_text(known.read_text())
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ANSIBLE_PARAMIKO_LOOK_FOR_KEYS", "false")
    monkeypatch.setenv("ANSIBLE_PARAMIKO_PROXY_COMMAND", "")
    network = ("nsenter", f"--net={site.fleet.namespace}")
    run = live_patching.play(
        *("patch", site.fleet.inventory, site.folder, "--limit", "host01"),
        *("-c", "paramiko_ssh", "-vvv"),
        prefix=network,
        **given,
    )
    assert run.code == 0, run.output
    assert "ESTABLISH PARAMIKO SSH CONNECTION FOR USER: operator" in run.output
    assert service.answers() == {2}
