# SPDX-License-Identifier: GPL-3.0-or-later
"""A report knows every host of the play, and its table drives no terminal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._fleet_report import (
    STATES,
    fleet_report,
    host_row,
    worst,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._report_table import report_table
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import load_schema, problems
from ansible_collections.wfpatch.fleet.tests.unit.conftest import FAKE_APPLIER


@pytest.fixture
def result(host, make_patch):
    host.add(make_patch())
    arguments = ["--json", "--store", str(host.store)]
    arguments += ["--allowed-signers", str(host.allowed_signers), "apply", "example-a"]
    command = [sys.executable, str(FAKE_APPLIER), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def test_states_are_those_of_the_schema():
    assert sorted(STATES) == sorted(load_schema("result")["$defs"]["state"]["enum"])
    assert worst(["patched", "vulnerable", "fixed"]) == "vulnerable"
    assert worst([]) == "unknown"


def test_every_host_has_a_row(result):
    outcome = {"result": result, "state": "patched", "verified": True, "reason": None, "msg": ""}
    refused = {"failed": True, "reason": "signature_invalid", "msg": "bad signature"}
    strange = {"failed": True, "msg": "a template failed"}
    lost = {"unreachable": True, "msg": "no route"}
    rows = [
        host_row("well", outcome, None, True),
        host_row("refused", None, refused, True),
        host_row("strange", None, strange, True),
        host_row("lost", lost, lost, True),
        host_row("dropped", None, None, False),
        host_row("later", None, None, True),
    ]
    report = fleet_report("patch", False, rows)
    assert problems("report", report) == []
    assert [(row["state"], row["reason"], row["verified"]) for row in rows] == [
        ("patched", None, True),
        ("unknown", "signature_invalid", None),
        ("unknown", "task_failed", None),
        ("unknown", "host_unreachable", None),
        ("unknown", "host_unreachable", None),
        ("unknown", "not_reached", None),
    ]
    assert report["complete"] is False
    assert report["state"] == "unknown"
    assert report["states"] == {"patched": 1, "unknown": 5}
    assert report["patches"] == ["example-a"]
    table = report_table(report)
    assert "not reached: later" in table
    assert "refused: signature_invalid: bad signature" in table
    assert table.endswith("6 hosts: 1 patched, 5 unknown")


def test_a_failure_after_a_result_shows_the_failure(result):
    outcome = {"result": result, "verified": True}
    failure = {
        "failed": True,
        "reason": "tampered",
        "msg": "memory says otherwise",
        "result": {**result, "state": "unknown", "reason": "tampered"},
    }
    row = host_row("h", {**outcome, "verified": False}, failure, True)
    assert (row["state"], row["reason"], row["verified"]) == ("unknown", "tampered", False)
    assert problems("report", fleet_report("patch", False, [row])) == []


def test_table(result):
    process = result["processes"][0]
    process["comm"] = "evil\x1b[2J"
    process["threads"] = {
        "total": 4,
        "migrated": 3,
        "quiescent": 3,
        "stragglers": [{"tid": 9, "comm": "w\x1b", "function": "parse", "reason": "is in it"}],
    }
    report = fleet_report("patch", False, [host_row("h", {"result": result}, None, True)])
    table = report_table(report)
    assert "\x1b" not in table
    head, _rule, row, straggler, counts = table.splitlines()
    assert head.split() == [
        "host",
        "process",
        "patch",
        "generation",
        "threads",
        "longest",
        "stop",
        "state",
    ]
    assert row.split() == [
        "h",
        "evil\\x1b[2J[812]",
        "example-a",
        "1",
        "3/4,",
        "1",
        "stragglers",
        "0.08",
        "ms",
        "patched",
    ]
    assert straggler == "h evil\\x1b[2J[812]: straggler 9 w\\x1b in parse: is in it"
    assert counts == "1 hosts: 1 patched"


def test_report_of_no_host_does_not_fit():
    assert problems("report", fleet_report("status", False, []))


def test_a_host_without_room_is_told_from_one_that_cannot_be_reached():
    lost = {"unreachable": True, "msg": "mkdir: cannot create: No space left on device"}
    row = host_row("a", None, lost, False)
    assert (row["state"], row["reason"]) == ("unknown", "disk_full")
    row = host_row("a", None, {**lost, "msg": "Connection refused"}, False)
    assert row["reason"] == "host_unreachable"
    row = host_row("a", None, {"failed": True, "msg": "No space left on device"}, True)
    assert row["reason"] == "disk_full"
