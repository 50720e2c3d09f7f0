# SPDX-License-Identifier: GPL-3.0-or-later
"""Rollouts by a policy: waves, health gates, what goes back, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

import live_patching
import pytest
import three_services
from live_patching import Play, Run
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet
from three_services import PATCHED, PATCHES, UNPATCHED, ThreeServices

#: In these hosts' waves: a canary, a tenth or two hosts of five, the rest.
SMALL = 5
LARGE = 100
WELL = "/run/well"
OURS = (
    "usr/local/sbin/wfpatch",
    "usr/local/lib/wfpatch",
    "var/lib/wfpatch",
    "etc/wfpatch",
)
APPLIER = "/usr/local/sbin/wfpatch"
HOST_GATE = {"name": "well", "command": ["/usr/bin/test", "-e", WELL]}


class Site:
    """Hosts with three services each, and two patches for two of the three."""

    def __init__(self, fleet: Fleet, folder: pathlib.Path) -> None:
        self.fleet, self.folder = fleet, folder
        programs = three_services.compile_services(folder)
        signer = live_patching.make_signer(folder)
        for patch in PATCHES:
            three_services.signed_patch(programs[0], folder / "bundles", signer.key, patch)
        # One that every process refuses: what it requires is nowhere.
        self.refused = three_services.signed_patch(
            programs[0], folder, signer.key, "three-more", requires=["elsewhere"]
        )
        self.given = {
            "wfpatch_patches": [str(folder / "bundles")],
            "wfpatch_signers_file": str(signer.allowed),
        }
        self.services = ThreeServices(fleet, programs)
        self.hosts = [host.name for host in fleet.hosts]
        self.waves = (
            [[self.hosts[1]], [self.hosts[0], *self.hosts[2:10]], self.hosts[10:]]
            if len(self.hosts) > 20
            else [[self.hosts[1]], [self.hosts[0], self.hosts[2]], self.hosts[3:]]
        )

    def fresh(self) -> None:
        """As if nobody had ever patched here: services new and well, nothing of ours there."""
        for host in self.hosts:
            self.services.start(host)
            (self.fleet.root(host) / WELL.lstrip("/")).touch()
            gone = self.fleet.run(host, "rm", "-rf", *(f"/{path}" for path in OURS))
            assert gone.returncode == 0, gone.stderr
        for journal in self.folder.glob("wfpatch-rollout-*"):
            journal.unlink()

    def unwell(self, host: str) -> None:
        """Its health gate will fail."""
        (self.fleet.root(host) / WELL.lstrip("/")).unlink()

    def policy(self, **fields: Any) -> dict[str, Any]:
        """Canary, second, rest, with a gate after each; `fields` replace or add."""
        second: dict[str, Any] = {"count": 2}
        if len(self.hosts) > 20:
            second = {"percent": 9}
        return {
            "schema": 1,
            "name": "two patches",
            "patches": {"all_applicable": True},
            "waves": [
                {"name": "canary", "hosts": [self.hosts[1]]},
                {"name": "second", **second},
                {"name": "rest"},
            ],
            "gates": [HOST_GATE],
            **fields,
        }

    def begin(self, policy: dict[str, Any] | None, *options: str, **variables: Any) -> Play:
        """Begins the playbook patch."""
        given = {"wfpatch_rollout": policy} if policy else {}
        return live_patching.begin(
            *("patch", self.fleet.inventory, self.folder, *options),
            **{**self.given, **given, **variables},
        )

    def play(self, policy: dict[str, Any] | None, *options: str, **variables: Any) -> Run:
        """The same to its end."""
        return self.begin(policy, *options, **variables).end()

    def require(self, hosts: Iterable[str], said: dict[str, int]) -> None:
        """The services of these hosts say this, and none was ever restarted."""
        names = list(hosts)
        assert self.services.says(names) == dict.fromkeys(names, said)
        assert all(self.services.run_on(host) for host in names)

    def untouched(self, hosts: Iterable[str]) -> bool:
        """Whether nothing of ours was ever brought to these hosts."""
        return not any((self.fleet.root(host) / path).exists() for host in hosts for path in OURS)

    @property
    def journals(self) -> list[str]:
        """What is written down of rollouts under way."""
        return [path.name for path in self.folder.glob("wfpatch-rollout-*")]


@pytest.fixture(scope="module")
def site(ssh_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(ssh_fleet(SMALL), tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def large_site(ssh_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(ssh_fleet(LARGE), tmp_path_factory.mktemp("large"))


def rows(run: Run) -> dict[str, tuple[str, str | None]]:
    """State and reason of every host of the report."""
    return {host["name"]: (host["state"], host["reason"]) for host in run.report["hosts"]}


def outcomes(run: Run) -> dict[str, str]:
    """What became of each wave."""
    return {wave["name"]: wave["outcome"] for wave in run.report["rollout"]["waves"]}


def a_gate_fails(site: Site) -> None:
    """Of the second wave's hosts one is unwell, and the policy takes all back."""
    site.fresh()
    canary, second, rest = site.waves
    site.unwell(second[-1])
    run = site.play(site.policy(on_failure="revert_all"))
    require_all_back(site, run)
    assert (site.folder / "patch.report.json").exists()
    assert len(canary) + len(second) + len(rest) == len(site.hosts)


def require_all_back(site: Site, run: Run) -> None:
    """Exactly two waves were touched, and are as before; the report says so, and the exit code."""
    canary, second, rest = site.waves
    assert run.code == 2, run.output
    site.require(site.hosts, UNPATCHED)
    assert site.untouched(rest)
    assert not site.untouched([*canary, *second])
    assert rows(run) == {
        **dict.fromkeys([*canary, *second[:-1]], ("vulnerable", "rollout_reverted")),
        second[-1]: ("vulnerable", "health_gate_failed"),
        **dict.fromkeys(rest, ("unknown", "not_reached")),
    }
    assert outcomes(run) == {"canary": "passed", "second": "failed", "rest": "not_reached"}
    assert run.report["complete"] is False
    rollout = run.report["rollout"]
    assert (rollout["stopped"], rollout["on_failure"]) == (True, "revert_all")
    assert second[-1] in rollout["why"]
    assert [wave["reverted"] for wave in rollout["waves"]] == [len(canary), len(second), 0]
    for host in [*canary, *second]:
        for process in run.processes(host):
            # Both patches came and went: what memory says now, not what was asked for.
            assert (process["state"], process["generation"]) == ("vulnerable", 4)
            assert {patch["id"] for patch in process["patches"]} == set(PATCHES)
            assert {each["leads_to"] for each in process["functions"]} == {"old"}
    assert site.journals == []


def test_a_gate_fails_in_the_second_wave(site: Site) -> None:
    a_gate_fails(site)


@pytest.mark.slow
def test_only_the_wave_goes_back(site: Site) -> None:
    """And with one failure allowed, only the host; what was there before stays."""
    site.fresh()
    canary, second, rest = site.waves
    site.unwell(second[-1])
    # One host has the patches already: no rollout brought them, so none takes them back.
    had = second[0]
    assert site.play(None, "--limit", had).code == 0
    run = site.play(site.policy(on_failure="revert_wave"))
    assert run.code == 2, run.output
    site.require([*canary, had], PATCHED)
    site.require([second[-1], *rest], UNPATCHED)
    assert outcomes(run) == {"canary": "passed", "second": "failed", "rest": "not_reached"}
    assert rows(run)[had] == ("patched", None)
    run = site.play(site.policy(on_failure="revert_wave", max_failures=1))
    assert run.code == 2, run.output
    site.require([*canary, had, *rest], PATCHED)
    site.require([second[-1]], UNPATCHED)
    assert set(outcomes(run).values()) == {"passed"}
    assert rows(run)[second[-1]] == ("vulnerable", "health_gate_failed")
    assert site.journals == []
    # By hand all of it goes back, what was there before included, in the policy's waves.
    variables = {**site.given, "wfpatch_rollout": site.policy()}
    run = live_patching.play("revert", site.fleet.inventory, site.folder, **variables)
    assert run.code == 0, run.output
    assert run.output.count("PLAY [Revert patches in the running processes") == 3
    site.require(site.hosts, UNPATCHED)


def interrupted(site: Site, interrupt: Callable[[Play], None], well: bool) -> None:
    """The run ends while the second wave is patched, and is begun again."""
    site.fresh()
    canary, second, rest = site.waves
    if not well:
        site.unwell(second[-1])
    policy = site.policy(on_failure="revert_all")
    play = site.begin(policy)
    while not any(site.services.line(host, "north")[1] != 1 for host in second):
        assert play.process.poll() is None, play.end().output
        time.sleep(0.001)
    interrupt(play)
    run = play.end()
    assert run.code not in (0, 2), run.output
    # The report of the run that was cut off claims nothing of the wave in which it was.
    assert outcomes(run) == {"canary": "passed", "second": "not_reached", "rest": "not_reached"}
    assert run.report["complete"] is False
    assert site.journals == ["wfpatch-rollout-two-patches.json"]
    assert site.untouched(rest)
    site.require(canary, PATCHED)
    run = site.play(policy)
    if not well:
        require_all_back(site, run)
        return
    assert run.code == 0, run.output
    site.require(site.hosts, PATCHED)
    assert set(rows(run).values()) == {("patched", None)}
    assert set(outcomes(run).values()) == {"passed"}
    assert site.journals == []


def control_c(play: Play) -> None:
    """As a terminal does it: to the whole process group."""
    os.killpg(play.process.pid, signal.SIGINT)


def kill(play: Play) -> None:
    """kill -9 of ansible-playbook itself; its workers do as they please."""
    play.process.kill()


def test_killed(site: Site) -> None:
    """The gate fails in the second run: what the first one brought goes back, too."""
    interrupted(site, kill, well=False)


@pytest.mark.slow
def test_interrupted_by_control_c(site: Site) -> None:
    """And the second run finds all well."""
    interrupted(site, control_c, well=True)


def test_check_mode_plans_all_waves(site: Site) -> None:
    """With --diff it says objects, functions, processes and refusals, and nothing is changed."""
    site.fresh()
    patches = [*site.given["wfpatch_patches"], str(site.refused)]
    policy = site.policy(on_failure="revert_all")
    run = site.play(policy, "--check", "--diff", wfpatch_patches=patches)
    assert run.code == 2, run.output
    assert site.untouched(site.hosts)
    assert site.journals == []
    site.require(site.hosts, UNPATCHED)
    # A refusal does not keep the plans for other hosts from being made.
    assert set(outcomes(run).values()) == {"passed"}
    assert set(rows(run).values()) == {("vulnerable", "required_patch_missing")}
    assert run.report["check_mode"] is True
    refusals = run.output.count("plan:   is refused: required_patch_missing: ")
    assert refusals == 2 * len(site.hosts)
    for host in site.hosts:
        assert {process["comm"] for process in run.processes(host)} == {"north", "south"}
        for process in run.processes(host):
            assert {each["name"] for each in process["functions"]} == {"answer", "bonus"}
    # The playbook without what is refused: the functions, and how each would be armed.
    host = site.waves[0][0]
    run = site.play(policy, "--check", "--diff", "--limit", host)
    assert run.code == 0, run.output
    for function in ("answer", "bonus"):
        assert run.output.count(f"+  {function} at 0x") == 2
    assert site.untouched([host])


@pytest.mark.slow
def test_opt_outs(site: Site) -> None:
    """A host, and on all others a service by the path of its program."""
    site.fresh()
    out, *others = site.hosts
    opt_out = {"hosts": [out], "paths": ["/usr/local/bin/south"], "processes": ["nosuch*"]}
    run = site.play(site.policy(opt_out=opt_out))
    assert run.code == 0, run.output
    assert site.untouched([out])
    site.require([out], UNPATCHED)
    site.require(others, {**PATCHED, "south": 1})
    # Left alone is no state: what is vulnerable is said to be.
    assert rows(run) == {
        out: ("unknown", "opted_out"),
        **dict.fromkeys(others, ("vulnerable", None)),
    }
    assert {host["name"] for host in run.report["hosts"] if host["opted_out"]} == {out}
    for host in others:
        assert {each["comm"]: bool(each["opted_out"]) for each in run.processes(host)} == {
            "north": False,
            "south": True,
        }
    # The same again changes nothing; without the rule the service is patched as well.
    one = others[0]
    run = site.play(site.policy(opt_out=opt_out), "--limit", one)
    assert (run.code, run.changed) == (0, {one: 0})
    assert site.play(site.policy(opt_out={"hosts": [out]}), "--limit", one).code == 0
    site.require([one], PATCHED)


@pytest.mark.slow
def test_each_gate_names_what_is_unwell(site: Site) -> None:
    """All kinds of gates, each failing on a host of its own; the failures are allowed."""
    site.fresh()
    service, url, rate, command, _ = site.hosts
    script = site.fleet.root(service) / "etc/init.d/demo"
    for host in site.hosts:
        root = site.fleet.root(host)
        script = root / "etc/init.d/demo"
        script.write_text(f"#!/bin/sh\nexit {3 if host == service else 0}\n")
        script.chmod(0o755)
        (root / "run/rate").write_text("{{ 6 * 7 }}\n0.5\n" if host == rate else "0.01\n")
        (root / "run/web").mkdir(exist_ok=True)
        if host != url:
            (root / "run/web/health").touch()
        web = "setsid python3 -m http.server -b 127.0.0.1 -d /run/web 8080 </dev/null >/dev/null"
        assert site.fleet.run(host, "sh", "-c", f"{web} 2>&1 &").returncode == 0
    # Whoever takes the applier away keeps the host from going back.
    gone = f'test "$(hostname)" != {command} || {{ rm {APPLIER}; false; }}'
    gates = [
        {"name": "runs", "service": "demo"},
        {"name": "answers", "url": "http://127.0.0.1:8080/health", "retries": 5, "delay": 1},
        {
            "name": "rate",
            "error_rate": {"command": ["cat", "/run/rate"], "at_most": "0.02"},
            "from": "host",
        },
        {"name": "says yes", "command": ["sh", "-c", gone]},
        {"name": "once", "command": ["test", "{wave}", "=", "all"], "from": "controller"},
        {"name": "for each", "command": ["test", "{host}", "!=", "{wave}"], "from": "controller"},
    ]
    waves = [{"name": "all", "soak": 1}]
    policy = site.policy(waves=waves, gates=gates, max_failures="80%", on_failure="revert_host")
    run = site.play(policy)
    assert run.code == 2, run.output
    messages = {host["name"]: host["message"] for host in run.report["hosts"]}
    for host, gate in ((service, "runs"), (url, "answers"), (rate, "rate")):
        assert rows(run)[host] == ("vulnerable", "health_gate_failed")
        assert messages[host].startswith(f"gate {gate}: ")
    # What a host says is never a template.
    assert "{{ 6 * 7 }}" in messages[rate] and "42" not in messages[rate]
    assert rows(run)[command][1] == "rollout_revert_failed"
    assert "gate says yes: " in messages[command]
    assert "applier_missing" in messages[command]
    site.require([service, url, rate], UNPATCHED)
    site.require([command, site.hosts[4]], PATCHED)
    assert rows(run)[site.hosts[4]] == ("patched", None)
    assert outcomes(run) == {"all": "passed"}
    # A gate for the whole wave ends the rollout, however many may fail.
    gates = [{"name": "errors", "error_rate": {"command": ["echo", "none"], "at_most": "1"}}]
    policy = site.policy(gates=gates, max_failures="100%")
    run = site.play(policy, "--limit", ",".join(site.hosts[2:]))
    assert run.code == 2, run.output
    assert outcomes(run) == {"second": "failed", "rest": "not_reached"}
    assert [rows(run)[host][1] for host in site.hosts[2:4]] == ["health_gate_failed"] * 2
    assert rows(run)[site.hosts[4]][1] == "not_reached"


def test_no_wave_begins_outside_the_window(site: Site) -> None:
    """Nothing is touched, every host is named, and that is no success."""
    site.fresh()
    hour = time.gmtime().tm_hour
    closed = {"from": f"{(hour + 3) % 24:02d}:00", "to": f"{(hour + 4) % 24:02d}:00"}
    run = site.play(site.policy(window={"timezone": "UTC", "open": [closed]}))
    assert run.code == 2, run.output
    assert set(rows(run).values()) == {("unknown", "maintenance_window_closed")}
    assert site.untouched(site.hosts)


def test_a_policy_that_does_not_fit_touches_nobody(site: Site) -> None:
    """Each mistake is named, before the first connection."""
    site.fresh()
    for policy, message in (
        (site.policy(waves=[{"name": "a", "hosts": ["nosuch"]}]), "waves[0].hosts: "),
        (site.policy(patches={"ids": ["nosuch"]}), "there is no patch nosuch"),
        (site.policy(opt_out={"hosts": ["all"]}), "empty_host_set"),
    ):
        run = site.play(policy)
        assert run.code != 0
        assert message in run.output
        assert set(rows(run).values()) == {("unknown", "not_reached")}
    assert site.untouched(site.hosts)


@pytest.mark.slow
def test_tags(site: Site) -> None:
    """install, apply, verify and report do that and no more."""
    site.fresh()
    host = site.waves[0][0]
    only = ("--limit", host)
    policy = site.policy()
    assert site.play(policy, *only, "--tags", "verify").code == 2
    assert site.untouched([host])
    # Nobody reports on an installation.
    run = site.begin(policy, *only, "--tags", "install").process
    assert run.wait() == 0, run.communicate()
    run.communicate()
    assert (site.fleet.root(host) / OURS[0]).exists()
    assert not (site.fleet.root(host) / "var/lib/wfpatch/bundles").exists()
    site.require([host], UNPATCHED)
    run = site.play(policy, *only, "--tags", "apply")
    assert (run.code, rows(run)) == (0, {host: ("patched", None)}), run.output
    site.require([host], PATCHED)
    for tag in ("verify", "report"):
        run = site.play(policy, *only, "--tags", tag)
        assert (run.code, run.changed) == (0, {host: 0}), run.output
        assert rows(run) == {host: ("patched", None)}
    site.unwell(host)
    policy = site.policy(on_failure="revert_all", name="another")
    site.services.start(host)
    run = site.play(policy, *only, "--skip-tags", "revert")
    assert (run.code, rows(run)) == (2, {host: ("patched", "health_gate_failed")}), run.output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_gate_fails_in_the_second_wave_of_a_hundred_hosts(large_site: Site) -> None:
    a_gate_fails(large_site)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("interrupt", "well"), [(control_c, True), (kill, False)])
def test_a_hundred_hosts_interrupted(
    large_site: Site, interrupt: Callable[[Play], None], well: bool
) -> None:
    interrupted(large_site, interrupt, well)
    assert json.loads((large_site.folder / "patch.report.json").read_text())["hosts"]
