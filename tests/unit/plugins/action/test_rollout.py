# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts told decides how a rollout goes on, and what is written down of it."""

from __future__ import annotations

from unittest import mock

import pytest
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible_collections.wfpatch.fleet.plugins.action.rollout import ActionModule

GROUPS = {"all": ["a", "b", "c", "d", "out"]}
POLICY = {
    "schema": 1,
    "name": "of a month",
    "patches": {"severity": "high"},
    "waves": [{"name": "canary", "hosts": ["b"]}, {"name": "rest", "soak": 1}],
    "on_failure": "revert_all",
    "opt_out": {"hosts": ["out"]},
}
UNWELL = {"reason": "health_gate_failed", "msg": "gate g", "wave": False}
SELECTED = {"patches": [{"id": "p1"}, {"id": "p2"}]}


@pytest.fixture
def hosts():
    """The variables of each host, as its tasks would leave them."""
    return {host: {"patch_manifests": SELECTED} for host in GROUPS["all"]}


@pytest.fixture
def run(monkeypatch, hosts):
    monkeypatch.setattr(context, "CLIARGS", ImmutableDict(subset=None))

    def run(state, host="a", check=False, alive=("a", "b", "c", "d"), **args):
        task = mock.MagicMock(spec=Task)
        task.async_val = False
        task.check_mode = check
        task.args = {"state": state, **args}
        action = ActionModule(task, mock.Mock(), mock.Mock(), DataLoader(), mock.Mock(), None)
        variables = {
            "groups": GROUPS,
            "hostvars": hosts,
            "inventory_hostname": host,
            "ansible_play_hosts": list(alive),
        }
        return action.run(task_vars=variables)

    return run


@pytest.fixture
def plan(run, tmp_path):
    return run("plan", policy=POLICY, hosts=["all"], journal=str(tmp_path / "j-{name}.json"))


def patched(host, *patches):
    """A reading of a host with one process."""
    found = [{"id": each, "state": "patched"} for each in patches]
    return {"result": {"processes": [{"patches": found}]}}


def test_the_plan(plan, tmp_path):
    assert [(wave["name"], wave["hosts"]) for wave in plan["waves"]] == [
        ("canary", ["b"]),
        ("rest", ["a", "c", "d"]),
    ]
    assert (plan["hosts"], plan["opted_out"]) == (["b", "a", "c", "d", "out"], ["out"])
    assert plan["journal"] == str(tmp_path / "j-of-a-month.json")
    assert (plan["opt_outs"], plan["opt_outs_managed"]) == ([], True)


def test_a_plan_without_a_policy(run):
    plan = run("plan", hosts=["all,!out"])
    assert (plan["hosts"], plan["waves"], plan["on_failure"]) == (["a", "b", "c", "d"], [], "stop")


def test_a_policy_that_is_wrong(run):
    outcome = run("plan", policy={**POLICY, "waves": []}, hosts=["all"], journal="/j")
    assert (outcome["failed"], outcome["reason"]) == (True, "rollout_policy_invalid")
    assert outcome["violations"]


def test_the_wave_of_a_host(run, plan):
    wave = run("wave", plan=plan, host="b", hosts=["b"])
    assert (wave["go"], wave["wave"], wave["soak"]) == (True, "canary", 0)
    assert run("wave", plan=plan, host="c", hosts=["a", "c"])["soak"] == 1


def test_only_what_was_brought_goes_back(run, plan, hosts, tmp_path):
    hosts["b"]["patch_before"] = patched("b", "p1")
    for host in "acd":
        hosts[host]["patch_before"] = patched(host)
    run("record", plan=plan, hosts=["b"])
    hosts["b"]["patch_verdict"] = run("verdict", plan=plan, host="b", hosts=["b"])
    assert hosts["b"]["patch_verdict"]["final"] and not hosts["b"]["patch_verdict"]["stop"]
    run("record", plan=plan, hosts=["a", "c", "d"])
    # An interrupted run has brought a patch meanwhile: it was not there before.
    hosts["a"]["patch_before"] = patched("a", "p1", "p2")
    run("record", plan=plan, hosts=["a", "c", "d"])
    first = run("verdict", plan=plan, host="a", hosts=["a", "c", "d"])
    assert (first["stop"], first["final"], first["revert"]) == (False, False, {})
    hosts["c"]["report_failure"] = UNWELL
    verdict = run("verdict", plan=plan, host="a", hosts=["a", "c", "d"], asked=True)
    assert (verdict["stop"], verdict["final"], verdict["unwell"]) == (True, True, ["c"])
    assert verdict["revert"] == {host: ["p1", "p2"] for host in "acd"}
    assert run("verdict", plan=plan, hosts=["a", "c", "d"], check=True)["revert"] == {}
    for host in "acd":
        hosts[host].update(patch_verdict=verdict, patch_reverted=host != "d")
    end = run("end", plan=plan)
    assert (end["stop"], end["attention"], end["failures"]) == (True, True, {})
    assert end["revert"] == {"b": ["p2"], "d": ["p1", "p2"]}
    # As long as something is due, the next run has to know.
    assert (tmp_path / "j-of-a-month.json").exists()
    for host in "bd":
        hosts[host]["patch_reverted"] = True
    run("end", plan=plan)
    assert list(tmp_path.iterdir()) == []


def test_hosts_that_ansible_has_lost_have_failed(run, plan, hosts):
    verdict = run("verdict", plan=plan, host="a", hosts=["a", "c"], alive=["a", "b", "c"])
    assert (verdict["stop"], verdict["unwell"]) == (True, ["d"])
    assert "d: host_unreachable" in verdict["why"]


def test_hosts_in_another_state_than_expected_have_failed(run, plan, hosts):
    hosts["b"]["patch_outcome"] = {"state": "partial"}
    given = {"plan": plan, "host": "b", "hosts": ["b"]}
    assert not run("verdict", **given)["stop"]
    assert run("verdict", expected=["patched"], **given)["stop"]


def test_a_rollout_that_went_well(run, plan, hosts):
    for host in "abcd":
        hosts[host]["patch_verdict"] = {"stop": False, "revert": {}}
    end = run("end", plan=plan)
    assert (end["stop"], end["attention"], end["revert"]) == (False, False, {})


def test_a_window_that_closed(run, plan, hosts):
    closed = {**plan, "window": {"timezone": "UTC", "open": []}}
    assert run("wave", plan=closed, host="a", hosts=["a"])["go"] is False
    assert run("wave", plan=closed, host="a", hosts=["a"], check=True)["go"] is True
    hosts["b"]["patch_verdict"] = {"stop": False, "revert": {}}
    for host in "acd":
        hosts[host]["patch_wave"] = {"go": False}
    end = run("end", plan=closed)
    assert end["attention"]
    assert {host: each["reason"] for host, each in end["failures"].items()} == dict.fromkeys(
        "acd", "maintenance_window_closed"
    )
