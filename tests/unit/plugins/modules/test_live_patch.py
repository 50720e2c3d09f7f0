# SPDX-License-Identifier: GPL-3.0-or-later
"""The module calls the applier, and what the applier says decides what the task says."""

from __future__ import annotations

import json

import pytest
from ansible_collections.wfpatch.fleet.plugins.modules import live_patch
from ansible_collections.wfpatch.fleet.tests.unit.conftest import FAKE_APPLIER, payload


@pytest.fixture
def live(host, make_patch, run_module):
    """Runs the module for two patches that are in the store."""
    host.add(make_patch("example-a"))
    host.add(make_patch("example-b", "CVE-2026-0002", requires=["example-a"]))

    def run(**options):
        options = {"ids": ["example-a", "example-b"], **host.paths(), **options}
        return run_module(live_patch, **options)

    return run


def test_apply_twice_and_revert(live, host):
    first = live()
    assert first["changed"]
    assert first["state"] == "patched"
    assert first["exit_code"] == 0
    assert host.processes[0]["patches"] == ["example-a", "example-b"]
    assert first["diff"]["before"] == (
        "state: vulnerable\n"
        "example[812] example: vulnerable, generation 0, patches in force: none\n"
    )
    assert "patches in force: example-a, example-b" in first["diff"]["after"]
    second = live()
    assert not second["changed"]
    assert second["diff"]["before"] == second["diff"]["after"]
    third = live(state="reverted", ids=["example-b"])
    assert third["changed"]
    assert host.processes[0]["patches"] == ["example-a"]
    assert not live(state="reverted", ids=["example-b"])["changed"]


def test_check_mode_changes_nothing(live, host):
    planned = live(check=True)
    assert planned["changed"]
    assert planned["diff"]["after"] == (
        "state: patched\n"
        "example[812] example: patched, generation 2, patches in force: example-a, example-b\n"
        "  parse_0 at 0x1000: new code, armed by byte\n"
        "  parse_1 at 0x1010: new code, armed by byte\n"
    )
    assert host.processes[0]["patches"] == []
    live()
    planned = live(check=True, state="reverted", ids=["example-b"])
    assert planned["changed"]
    assert planned["diff"]["after"].endswith("patches in force: example-a\n")
    assert host.processes[0]["patches"] == ["example-a", "example-b"]


def test_opt_outs_are_written_before_anything_is_applied(live, host):
    rules = [{"kind": "user", "pattern": "nobody"}, {"kind": "path", "pattern": "/opt/*"}]
    file = host.store / "opt-outs.json"
    assert live(check=True, opt_out=rules)["changed"]
    assert not file.exists()
    live()
    assert not file.exists()
    # They alone are a change; the same again is none, and saying nothing leaves them.
    assert live(opt_out=rules)["changed"]
    assert json.loads(file.read_text()) == {"schema": 1, "rules": rules}
    assert not live(opt_out=rules)["changed"]
    assert not live()["changed"]
    live(state="reverted", opt_out=[])
    assert json.loads(file.read_text())["rules"] == rules
    assert live(opt_out=[])["changed"]
    assert json.loads(file.read_text())["rules"] == []


def test_no_opt_outs_need_no_file(live, host):
    live(opt_out=[])
    assert not (host.store / "opt-outs.json").exists()


def test_check_mode_on_a_host_without_anything(host, make_patch, run_module):
    folder = make_patch()
    host.program.unlink()
    host.allowed_signers.write_text("")
    options = {"ids": ["example-a"], **host.paths()}
    assert run_module(live_patch, check=True, **options)["reason"] == "applier_missing"
    planned = run_module(
        live_patch,
        check=True,
        payloads=[payload(folder)],
        signers="signer@example ssh-ed25519 AAAA\n",
        staged=str(FAKE_APPLIER),
        **options,
    )
    assert planned["changed"], planned
    assert not (host.store / "bundles").exists()
    assert host.processes[0]["patches"] == []


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [
        (1, "injection_failed"),
        (2, "usage"),
        (3, "old_code_mismatch"),
        (4, "stragglers"),
        (5, "tampered"),
        (6, "busy"),
        (7, "no_matching_process"),
    ],
)
def test_every_other_end_is_a_failure_that_says_why(live, host, exit_code, reason):
    host.tell(exit={"apply": [exit_code, reason]})
    found = live()
    assert found["failed"]
    assert found["reason"] == reason
    assert found["exit_code"] == exit_code
    assert found["msg"] == f"told to end with {reason}"


@pytest.mark.parametrize(
    ("exit_code", "reason", "accept"),
    [(4, "stragglers", ["partial"]), (7, "no_matching_process", ["not_affected"])],
)
def test_states_that_are_accepted(live, host, exit_code, reason, accept):
    host.tell(exit={"apply": [exit_code, reason]})
    assert "failed" not in live(accept=accept, verify=False)
    assert live(accept=["pending"], verify=False)["failed"]


def test_memory_is_read_once_more_after_a_change(live, host):
    unpatched = host.processes
    assert live()["verified"] is True
    host.tell(exit={"verify": [5, "tampered"]})
    # Nothing was changed: what apply said is what memory says.
    again = live()
    assert (again["changed"], again["verified"]) == (False, None)
    assert "failed" not in again
    host.tell(processes=unpatched)
    found = live()
    assert found["failed"]
    assert (found["changed"], found["reason"], found["verified"]) == (True, "tampered", False)
    assert found["result"]["message"] == "told to end with tampered"
    assert live(check=True)["verified"] is None


def test_another_state_on_a_second_reading(live, host):
    """A process loses its patch between the two."""
    real = host.program.read_text()
    host.program.write_text(
        real.replace(
            "exec ",
            f'case " $* " in *" verify "*) echo "$LOST" >{host.store}/fake.json;; esac\nexec ',
        )
    )
    lost = json.dumps({"processes": [{"pid": 812, "comm": "example", "patches": []}]})
    host.program.write_text(host.program.read_text().replace("$LOST", lost.replace('"', '\\"')))
    found = live()
    assert (found.get("failed"), found["verified"]) == (True, False)
    assert "but live memory read once more shows the state vulnerable" in found["msg"]


def test_a_blocked_host_is_never_accepted(live, host):
    host.tell(exit={"apply": [3, "gs_in_use"]})
    assert live(accept=["pending", "partial", "not_affected"])["failed"]


def test_a_step_leaves_the_transition_open(live):
    step = live(until="arm")
    assert "failed" not in step
    assert (step["state"], step["exit_code"]) == ("pending", 4)
    assert live()["state"] == "patched"


def test_a_host_without_such_a_process(live, host):
    host.tell(processes=[])
    found = live()
    assert found["failed"]
    assert found["reason"] == "no_matching_process"
    assert live(check=True)["reason"] == "no_matching_process"
    assert "failed" not in live(accept=["not_affected"])
    assert "failed" not in live(accept=["not_affected"], check=True)


def test_no_patches_named(live):
    assert live(ids=[])["failed"]


def test_command_line():
    params = {
        "state": "applied",
        "ids": ["a", "b"],
        "pids": [3, 4],
        "policy": "global",
        "backend": "auto",
        "timeout": 9,
        "until": "load",
        "wait": 5,
        "include_init": False,
        "events": None,
    }
    wait = ["--wait", "5"]
    rest = ["--pid", "3", "--pid", "4", "--policy", "global", "--backend", "auto", "--timeout", "9"]
    apply = [*wait, "apply", *rest, "--until", "load", "--", "a", "b"]
    assert live_patch.words(params, False) == apply
    assert live_patch.words(params, True) == [*wait, "plan", *rest, "--", "a", "b"]
    params["include_init"] = True
    assert live_patch.words(params, True) == [
        *wait,
        "plan",
        *rest,
        "--include-init",
        "--",
        "a",
        "b",
    ]
    params.update(state="reverted", events="e" * 32)
    told = ["--events", "e" * 32]
    assert live_patch.words(params, False) == [*wait, "revert", *rest, *told, "--", "b", "a"]
    params.update(state="applied", include_init=False)
    assert live_patch.words(params, False) == [
        *(*wait, "apply", *rest, *told, "--until", "load", "--", "a", "b"),
    ]
    assert live_patch.words(params, True) == [*wait, "plan", *rest, "--", "a", "b"]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"schema": 2}', '{"schema": 1}'])
def test_an_applier_that_says_nothing_sensible(live, host, text):
    host.program.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\necho oops >&2\nexit 1\n")
    found = live()
    assert found["failed"]
    assert found["reason"] == "result_invalid"
