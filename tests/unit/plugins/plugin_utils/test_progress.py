# SPDX-License-Identifier: GPL-3.0-or-later
"""One line per change; silence where nobody looks on."""

from __future__ import annotations

import json

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _progress

WHO = {"pid": 812, "comm": "example\x1b", "patch": "a"}
STRAGGLER = {"tid": 9, "comm": "w", "function": "parse", "reason": "is in it"}
LOAD = {"event": "load", **WHO, "microseconds": 88}
THREADS = {"event": "threads", **WHO, "done": 6, "total": 6, "waiting": 0, "stragglers": []}
END = {
    "event": "end",
    **WHO,
    "state": "patched",
    "reason": None,
    "message": "",
    "changed": True,
    "generation": 1,
    "migrated": 5,
    "quiescent": 6,
    "total": 6,
    "waiting": 0,
    "stragglers": [],
    "transition_us": 3400,
    "longest_stop_us": 90,
}
PARTIAL = {
    **END,
    "state": "partial",
    "reason": "stragglers",
    "message": "one is late",
    "waiting": 1,
    "stragglers": [STRAGGLER],
}


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(_progress.display, "display", found.append)
    monkeypatch.setattr(_progress.display, "verbosity", 0)
    return found


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (LOAD, "loaded in 0.09 ms"),
        ({**LOAD, "event": "arm", "microseconds": None}, "armed in -"),
        (THREADS, "threads: 6 of 6 done"),
        (
            {**THREADS, "done": 5, "waiting": 1, "stragglers": [STRAGGLER]},
            "threads: 5 of 6 done, 1 straggler: 9 w in parse: is in it",
        ),
        (
            END,
            "finished: patched, 6 of 6 threads quiescent, transition 3.40 ms, longest stop 0.09 ms",
        ),
        ({**END, "changed": False}, "is patched, nothing to do"),
        (PARTIAL, "partial, stragglers: one is late"),
        ({**END, "event": "revert", "changed": False}, "is not in force, nothing to do"),
        (
            {**END, "event": "revert", "state": "vulnerable"},
            "revert: finished: vulnerable, 6 of 6 threads quiescent, transition 3.40 ms, "
            "longest stop 0.09 ms",
        ),
    ],
)
def test_lines(lines, event, line):
    _progress.Progress("h1", "always").hear(json.dumps(event))
    assert lines[0] == "h1 example\\x1b[812] a: " + line


def test_each_straggler_that_is_left_has_a_line(lines):
    _progress.Progress("h1", "always").hear(json.dumps(PARTIAL))
    assert lines[1:] == ["h1 example\\x1b[812] a: straggler 9 w in parse: is in it"]


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
    _progress.Progress("h1", mode).hear(json.dumps(LOAD))
    assert bool(lines) is shown
