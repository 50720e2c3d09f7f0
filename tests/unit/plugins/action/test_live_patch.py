# SPDX-License-Identifier: GPL-3.0-or-later
"""The action half goes step by step where somebody looks on, and has memory read again."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from unittest import mock

import pytest
from ansible.playbook.task import Task
from ansible_collections.wfpatch.fleet.plugins.action.live_patch import ActionModule
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _progress
from ansible_collections.wfpatch.fleet.tests.unit.conftest import FAKE_APPLIER

INFO = "wfpatch.fleet.live_patch_info"


class Modules:
    """Stands for the modules on the host: calls the stand-in applier, and notes each call."""

    def __init__(self, host):
        self.host = host
        self.calls = []
        self.spoil = lambda name, args, outcome: outcome

    def __call__(self, module_name, module_args, task_vars):
        name = module_name.rpartition(".")[2]
        plan = module_args.get("plan")
        self.calls.append((name, "plan" if plan else module_args.get("until", "")))
        words = ["verify"] if module_name == INFO else ["plan" if plan else "apply"]
        if not plan and "until" in module_args:
            words += ["--until", module_args["until"]]
        paths = ["--store", str(self.host.store), "--allowed-signers", "/nowhere"]
        command = [sys.executable, str(FAKE_APPLIER), "--json", *paths, *words]
        done = subprocess.run(command + module_args["ids"], check=False, capture_output=True)
        result = json.loads(done.stdout)
        outcome = {
            "changed": result["changed"] and name == "live_patch",
            "state": result["state"],
            "reason": result["reason"],
            "exit_code": done.returncode,
            "result": result,
            "msg": result["message"],
        }
        bad = done.returncode not in ((0, 3, 4, 7) if module_name == INFO else (0,))
        if bad and not (done.returncode == 4 and module_args.get("until")):
            outcome["failed"] = True
        return self.spoil(name, module_args, outcome)


@pytest.fixture
def modules(host, make_patch):
    host.add(make_patch("example-a"))
    return Modules(host)


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(_progress.display, "display", found.append)
    monkeypatch.setattr(_progress, "STDOUT_IS_TERMINAL", False)
    return found


@pytest.fixture
def run(modules, lines, tmp_path):
    def run(check=False, **args):
        task = mock.MagicMock(spec=Task)
        task.async_val = False
        task.args = {"ids": ["example-a"], **args}
        if "src" in args:
            del task.args["ids"]
        task.check_mode = check
        task.diff = False
        action = ActionModule(
            task,
            connection=mock.MagicMock(),
            play_context=mock.MagicMock(check_mode=check),
            loader=mock.MagicMock(),
            templar=mock.MagicMock(),
            shared_loader_obj=None,
        )
        action._execute_module = modules
        return action.run(task_vars={"inventory_hostname": "h1"})

    return run


def test_quietly_in_one_call(run, modules, lines):
    found = run()
    assert modules.calls == [("live_patch", ""), ("live_patch_info", "")]
    assert (found["changed"], found["state"], found["verified"]) == (True, "patched", True)
    assert found["result"]["processes"][0]["stops_count"] == 1
    assert lines == []


def test_step_by_step(run, modules, lines):
    found = run(progress="always")
    assert [step for _name, step in modules.calls] == ["plan", "load", "arm", "finish", "", ""]
    assert (found["changed"], found["state"], found["verified"]) == (True, "patched", True)
    assert [line.split(": ")[1].split()[0] for line in lines] == [
        "plan",
        "loaded",
        "armed",
        "threads",
        "finished",
        "verified",
    ]
    assert all(line.startswith("h1 example[812] CVE-2026-0001: ") for line in lines)
    process = found["result"]["processes"][0]
    assert process["stops_count"] == 4
    assert found["result"]["before"]["state"] == "vulnerable"
    assert found["result"]["after"]["state"] == "patched"


def test_nothing_to_do(run, modules, lines):
    run()
    modules.calls.clear()
    found = run(progress="always")
    assert [step for _name, step in modules.calls] == ["plan", "", ""]
    assert found["changed"] is False
    assert lines[0].endswith("plan: is patched, nothing to do")


def test_an_applier_without_steps(run, modules, host):
    host.tell(until=False)
    found = run(progress="always")
    assert [step for _name, step in modules.calls] == ["plan", "load", "", ""]
    assert (found["changed"], found["state"]) == (True, "patched")


def test_a_refusal_while_planning(run, modules, host):
    host.tell(exit={"plan": [3, "gs_in_use"], "apply": [3, "gs_in_use"]})
    found = run(progress="always")
    assert found["failed"]
    assert found["reason"] == "gs_in_use"
    assert not any(step in ("load", "arm") for _name, step in modules.calls)


def test_a_failure_on_the_way_keeps_that_something_changed(run, modules):
    def spoil(_name, args, outcome):
        if args.get("until") == "arm":
            return {"failed": True, "msg": "lost", "reason": "thread_gone", "changed": False}
        return outcome

    modules.spoil = spoil
    found = run(progress="always")
    assert found["failed"]
    assert found["reason"] == "thread_gone"
    assert found["changed"] is True


def test_patches_take_their_steps_one_after_the_other(run, modules, lines, make_patch):
    modules.host.add(make_patch("example-b", "CVE-2026-0002", requires=["example-a"]))
    seen = []

    def spoil(_name, args, outcome):
        seen.append((args.get("until", "plan" if args.get("plan") else ""), args["ids"]))
        return outcome

    modules.spoil = spoil
    both = ["example-a", "example-b"]
    found = run(progress="always", ids=both)
    steps = ["load", "arm", "finish"]
    assert seen == [
        ("plan", both),
        *((step, [patch_id]) for patch_id in both for step in steps),
        ("", both),
        ("", both),
    ]
    assert (found["changed"], found["state"], found["verified"]) == (True, "patched", True)
    armed = [line for line in lines if ": armed" in line]
    assert ["CVE-2026-0001" in armed[0], "CVE-2026-0002" in armed[1]] == [True, True]
    seen.clear()
    modules.host.tell(processes=[{"pid": 8, "comm": "example", "patches": ["example-a"]}])
    run(progress="always", ids=both)
    assert ("load", ["example-a"]) not in seen
    assert ("load", ["example-b"]) in seen


def test_stragglers_are_not_waited_for_twice(run, modules):
    def spoil(_name, args, outcome):
        if args.get("until") == "finish":
            outcome.update(failed=True, exit_code=4, reason="stragglers", state="partial")
        return outcome

    modules.spoil = spoil
    found = run(progress="always")
    assert found["failed"]
    assert found["reason"] == "stragglers"
    assert [step for _name, step in modules.calls] == ["plan", "load", "arm", "finish"]


def test_memory_that_says_otherwise(run, modules, host):
    host.tell(exit={"verify": [5, "tampered"]})
    found = run()
    assert found["failed"]
    assert (found["reason"], found["verified"], found["changed"]) == ("tampered", False, True)


def test_another_state_on_second_reading(run, modules):
    def spoil(name, _args, outcome):
        if name == "live_patch_info":
            outcome["state"] = outcome["result"]["state"] = "vulnerable"
        return outcome

    modules.spoil = spoil
    found = run()
    assert found["failed"]
    assert "shows the state vulnerable" in found["msg"]
    assert found["verified"] is False


def test_without_a_second_reading(run, modules):
    assert "verified" not in run(verify=False)
    assert modules.calls == [("live_patch", "")]


@pytest.mark.parametrize("progress", ["always", "never"])
def test_an_answer_that_does_not_fit_the_schema(run, modules, host, progress):
    host.tell(spoil={"warnings": "none"})
    found = run(progress=progress)
    assert found["failed"]
    assert found["reason"] == "result_invalid"
    assert "warnings" in found["msg"]
    assert "result" not in found


def test_check_mode_plans_with_what_would_be_pushed(run, modules, make_patch):
    seen = []

    def spoil(_name, args, outcome):
        seen.append(copy.deepcopy(args))
        return outcome

    modules.spoil = spoil
    folder = make_patch("example-b")
    modules.host.add(folder)
    run(check=True, src=[str(folder)], progress="always")
    assert [args["ids"] for args in seen] == [["example-b"]]
    assert seen[0]["payloads"][0]["id"] == "example-b"


def test_patches_are_validated_first(run, modules, make_patch):
    folder = make_patch("example-b")
    source = folder / "manifest.yml"
    source.write_text(source.read_text().replace("policy: auto", "policy: fast"))
    found = run(src=[str(folder)])
    assert found["failed"]
    assert found["reason"] == "manifest_invalid"
    assert len(found["violations"]) == 1
    assert modules.calls == []


def test_what_only_the_action_half_may_say(run, modules):
    seen = []

    def spoil(_name, args, outcome):
        seen.append(args)
        return outcome

    modules.spoil = spoil
    run(staged="/tmp/mine", payloads=[{}])
    assert all("staged" not in args and "payloads" not in args for args in seen)
