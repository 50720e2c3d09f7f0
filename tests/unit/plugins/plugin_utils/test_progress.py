# SPDX-License-Identifier: GPL-3.0-or-later
"""One line per step and process; silence where nobody looks on."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _progress

PROCESS = {
    "pid": 812,
    "comm": "example\x1b",
    "state": "pending",
    "reason": None,
    "message": "",
    "policy": "auto",
    "generation": 1,
    "patches": [{"id": "a", "state": "pending"}, {"id": "b", "state": "patched"}],
    "functions": [
        {"arming": "byte", "leads_to": "new"},
        {"arming": "swap", "leads_to": "new"},
        {"arming": "byte", "leads_to": "mixed"},
        {"arming": None, "leads_to": "old"},
    ],
    "threads": {
        "total": 6,
        "migrated": 5,
        "quiescent": 5,
        "stragglers": [{"tid": 9, "comm": "w", "function": "parse", "reason": "is in it"}],
    },
    "timings_us": {"load": 88, "arm": None, "transition": 3400, "longest_stop": 90},
}
RESULT = {
    "processes": [PROCESS],
    "cves": [{"id": "CVE-2026-0001", "patch": "a", "state": "pending"}],
}


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(_progress.display, "display", found.append)
    monkeypatch.setattr(_progress.display, "verbosity", 0)
    return found


WHO = "h1 example\\x1b[812] CVE-2026-0001: "


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("plan", "plan: 4 functions (byte 2, swap 1), 6 threads, policy auto"),
        ("plan_revert", "plan: goes back, 6 threads"),
        ("load", "loaded in 0.09 ms"),
        ("arm", "armed 4 functions (byte 2, swap 1)"),
        ("threads", "threads: 5 of 6 migrated, 5 quiescent, 1 stragglers"),
        ("finish", "finished: pending, transition 3.40 ms, longest stop 0.09 ms"),
        (
            "verify",
            "verified in memory: pending, generation 1, code reached: 2 new, 1 old, 1 mixed",
        ),
    ],
)
def test_lines(lines, step, line):
    _progress.Progress("h1", "always").step(step, RESULT, ["a"])
    assert lines[0] == WHO + line
    if step == "finish":
        assert lines[1] == "h1 example\\x1b[812] straggler 9 w in parse: is in it"


def test_a_refusal(lines):
    process = {**PROCESS, "state": "blocked", "reason": "gs_in_use", "message": "thread 9"}
    _progress.Progress("h1", "always").step("plan", {**RESULT, "processes": [process]}, ["b"])
    assert lines == ["h1 example\\x1b[812] b: plan: blocked, gs_in_use: thread 9"]


def test_a_refusal_to_go_back_is_told_once(lines):
    process = {**PROCESS, "state": "blocked", "reason": "still_required", "message": "by b"}
    progress = _progress.Progress("h1", "always")
    for step in ("threads", "finish"):
        progress.step(step, {**RESULT, "processes": [process]}, ["a"])
    assert lines[0] == WHO + "finish: blocked, still_required: by b"
    assert len([line for line in lines if "still_required" in line]) == 1


def test_a_plan_to_go_back_with_nothing_to_do(lines):
    process = {**PROCESS, "patches": [{"id": "a", "state": "vulnerable"}]}
    _progress.Progress("h1", "always").step(
        "plan_revert", {**RESULT, "processes": [process]}, ["a"]
    )
    assert lines == [WHO + "plan: is not in force, nothing to do"]


@pytest.mark.parametrize(
    ("mode", "terminal", "verbosity", "shown"),
    [
        ("auto", False, 0, False),
        ("auto", True, 0, True),
        ("auto", False, 1, True),
        ("never", True, 1, False),
        ("always", False, 0, True),
    ],
)
def test_who_looks_on(lines, monkeypatch, mode, terminal, verbosity, shown):
    monkeypatch.setattr(_progress, "STDOUT_IS_TERMINAL", terminal)
    monkeypatch.setattr(_progress.display, "verbosity", verbosity)
    _progress.Progress("h1", mode).step("load", RESULT, ["a"])
    assert bool(lines) is shown
