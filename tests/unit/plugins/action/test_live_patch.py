# SPDX-License-Identifier: GPL-3.0-or-later
"""The action half asks once where nobody looks on, and tells what happens where somebody does."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from ansible.playbook.task import Task
from ansible_collections.wfpatch.fleet.plugins.action.live_patch import ActionModule
from ansible_collections.wfpatch.fleet.plugins.module_utils import _background
from ansible_collections.wfpatch.fleet.plugins.modules import live_patch
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _progress

WHO = {"pid": 812, "comm": "example", "patch": "example-a"}
EVENTS = [
    {"event": "plan", **WHO, "functions": 1, "ways": {"byte": 1}, "threads": 4, "policy": "auto"},
    {"event": "load", **WHO, "microseconds": 90},
    {"event": "arm", **WHO, "microseconds": 40},
]


class Modules:
    """Stands for the way to the host: runs the module here, and notes each call."""

    def __init__(self, host, run_module):
        self.host = host
        self.run_module = run_module
        self.calls = []
        self.check = False

    def __call__(self, module_name, module_args, task_vars):
        assert module_name == "wfpatch.fleet.live_patch"
        assert task_vars["inventory_hostname"] == "h1"
        self.calls.append(module_args)
        outcome = self.run_module(live_patch, check=self.check, **self.host.paths(), **module_args)
        return json.loads(json.dumps(outcome))


@pytest.fixture
def modules(host, make_patch, run_module):
    host.add(make_patch("example-a"))
    return Modules(host, run_module)


@pytest.fixture(autouse=True)
def events(tmp_path, monkeypatch):
    """Where the applier tells what happens."""
    folder = tmp_path / "run" / "events"
    monkeypatch.setattr(_background, "EVENTS", str(folder))
    monkeypatch.setattr(_background, "PATIENCE", 0.2)
    monkeypatch.setenv("FAKE_EVENTS", str(folder))
    return folder


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(_progress.display, "display", lambda text, **_how: found.append(text))
    monkeypatch.setattr(_progress, "STDOUT_IS_TERMINAL", False)
    return found


@pytest.fixture
def run(modules, lines):
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
            connection=mock.MagicMock(transport="local"),
            play_context=mock.MagicMock(check_mode=check),
            loader=mock.MagicMock(),
            templar=mock.MagicMock(),
            shared_loader_obj=None,
        )
        action._execute_module = modules
        modules.check = check
        return action.run(task_vars={"inventory_hostname": "h1"})

    return run


def test_quietly_in_one_call(run, modules, lines):
    found = run()
    assert len(modules.calls) == 1
    assert (found["changed"], found["state"], found["verified"]) == (True, "patched", True)
    assert lines == []


def test_a_host_that_is_asked_tells_the_same(run, modules, lines, host, events):
    host.tell(events=[json.dumps(event) for event in EVENTS])
    found = run(progress="always")
    assert (found["changed"], found["state"], found["verified"]) == (True, "patched", True)
    who = "h1 example[812] example-a: "
    assert lines == [
        "h1 is asked over Ansible's own connection: the connection is local, not ssh",
        who + "plan: 1 function (byte 1), 4 threads, policy auto",
        who + "loaded in 0.09 ms",
        who + "armed in 0.04 ms",
        who + "verified in memory: patched, generation 1, code reached: 1 new",
    ]
    # Begun once, and asked from where the last answer ended.
    assert [call.get("offset") for call in modules.calls][:2] == [None, 0]
    assert len({call["events"] for call in modules.calls}) == 1
    assert list(events.iterdir()) == []


def test_what_an_applier_says_that_ends_at_once(run, modules, lines, host):
    host.tell(exit={"apply": [3, "gs_in_use"]})
    found = run(progress="always")
    assert (found["failed"], found["reason"]) == (True, "gs_in_use")
    assert found["result"]["message"] == "told to end with gs_in_use"


def test_what_a_host_tells_must_fit(run, lines, host):
    """A host may say what it likes: none of it reaches the terminal as it is."""
    wrong = [
        "no JSON",
        "[" * 5000,
        "[]",
        json.dumps({"event": "plan"}),
        json.dumps({**EVENTS[1], "event": "explode"}),
        json.dumps({**EVENTS[1], "patch": "../../x"}),
        json.dumps({**EVENTS[1], "more": 1}),
        json.dumps({**EVENTS[1], "microseconds": "1"}),
    ]
    loud = json.dumps({**EVENTS[1], "comm": "\x1b[2J{{ 1 + 1 }}"})
    host.tell(events=[*wrong, loud])
    assert not run(progress="always").get("failed")
    assert lines[1:-1] == ["h1 \\x1b[2J{{ 1 + 1 }}[812] example-a: loaded in 0.09 ms"]


def test_a_plan_is_told(run, modules, lines):
    run(check=True, progress="always")
    run(progress="always", plan=True)
    assert (
        lines[0] == "h1 example[812] example-a: plan: 1 function (byte 1), 4 threads, policy auto"
    )
    assert not any(call.get("events") for call in modules.calls)
    run()
    del lines[:]
    run(check=True, progress="always")
    assert lines == ["h1 example[812] example-a: plan: is patched, nothing to do"]
    del lines[:]
    run(check=True, progress="always", state="reverted")
    assert lines == ["h1 example[812] example-a: plan: goes back, 4 threads"]


@pytest.mark.parametrize("progress", ["always", "never"])
def test_memory_that_says_otherwise(run, host, progress):
    host.tell(exit={"verify": [5, "tampered"]})
    found = run(progress=progress)
    assert found["failed"]
    assert (found["reason"], found["verified"]) == ("tampered", False)
    assert "live memory read once more shows tampered" in found["msg"]


def test_without_a_second_reading(run, host):
    host.tell(exit={"verify": [5, "tampered"]})
    assert run(verify=False)["verified"] is None


@pytest.mark.parametrize("progress", ["always", "never"])
def test_an_answer_that_does_not_fit_the_schema(run, modules, host, progress):
    host.tell(spoil={"cves": "none"})
    found = run(progress=progress, verify=False)
    assert found["failed"]
    assert found["reason"] == "result_invalid"
    assert "cves" in found["msg"]
    assert "result" not in found


@pytest.mark.parametrize("given", ["events", "background", "offset"])
def test_what_only_the_action_half_may_say(run, modules, given):
    run(**{given: "1"})
    assert all(given not in call for call in modules.calls)
