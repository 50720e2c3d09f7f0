# SPDX-License-Identifier: GPL-3.0-or-later
"""A thread that does not leave old code stays old, is named, and hinders nobody else."""

from __future__ import annotations

import pytest
from proof import call_trees
from proof.call_trees import Trees
from proof.patching import Patching, between_sweeps, told

LAST = "vulnerable"


@pytest.fixture
def world(start, tmp_path):
    """Three random threads that run trees all the time, two that wait for scripts."""
    running = start(call_trees.program(), 3, 2, "fgk")
    trees, patching = Trees(running), Patching(tmp_path, running.pid)
    trees.run(0, "fpg.k")
    trees.until_blocked(0)
    return trees, patching


def _add(patching, version=2, **fields):
    patching.add(f"fix-{version}", call_trees.patch(version, "fgk"), **fields)


def _assert_named(trees, report):
    found = [(s.tid, s.function) for s in report.threads.stragglers]
    assert found == [(trees.tid(0), "f")], told(report)
    assert report.threads.stragglers[0].comm == "proof_trees-" + report.comm[12:]
    assert report.threads.stragglers[0].reason


def test_straggler_enters_other_functions_of_the_set_as_old(world):
    """It may go on in old code for long: everything beneath the old frame is old."""
    trees, patching = world
    trees.run(1, "fpg.k.hg.pf.g.kp")
    trees.until_blocked(1)
    _add(patching)
    trees.set("expect", 2)
    assert patching.apply("fix-2", timeout=1).state == "partial"
    for times in (2, 3):
        trees.go(1)
        trees.until_blocked(1, times)
        assert patching.apply("fix-2", timeout=1).state == "partial"
    trees.go(1)
    trees.until_idle(1)
    assert {step[1] for step in trees.trace(1)} == {"1"}
    trees.go(0)
    trees.until_idle(0)
    patching.patched("fix-2")
    trees.assert_consistent()


def test_transition_completes_by_itself_when_the_thread_leaves(world):
    """One run that has time enough needs no second one."""
    trees, patching = world
    _add(patching)
    trees.set("expect", 2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        between_sweeps(monkeypatch, [lambda: None, lambda: trees.go(0)])
        patching.patched("fix-2", timeout=30)
    trees.until_idle(0)
    trees.assert_consistent()


def test_open_transition_blocks_the_next_patch_of_it(world):
    trees, patching = world
    _add(patching)
    _add(patching, 3)
    trees.set("expect", 2)
    assert patching.apply("fix-2", timeout=1).state == "partial"
    report = patching.apply("fix-3", timeout=1)
    assert report.reason == "transition_open", told(report)
    assert "fix-3" not in [patch.id for patch in report.patches if patch.state == "patched"]
    trees.go(0)
    trees.until_idle(0)
    patching.patched("fix-2")
    trees.set("expect", 3)
    patching.patched("fix-3")
    trees.assert_consistent()


def test_open_transition_can_be_reverted(world):
    """While the straggler is still there: it never was new, the others go back."""
    trees, patching = world
    _add(patching)
    trees.set("expect", 2)
    assert patching.apply("fix-2", timeout=1).state == "partial"
    trees.until_called(2, 50000)
    trees.set("expect", 1)
    patching.reverted("fix-2", timeout=20)
    new = trees.calls(2)
    trees.until_called(1, 50000)
    assert trees.calls(2) == new
    trees.go(0)
    trees.until_idle(0)
    assert trees.trace(0) == ["f1", "g1", "k1"]
    trees.set("expect", 2)
    patching.patched("fix-2")
    trees.assert_consistent()


def test_revert_of_an_open_transition_that_stays_open_is_no_tampering(world):
    """One thread is still in old code, another already in new code: neither way is at its end."""
    trees, patching = world
    _add(patching)
    trees.set("expect", 2)
    assert patching.apply("fix-2", timeout=1).state == "partial"
    trees.run(1, "fpg.k")
    trees.until_blocked(1)
    trees.set("expect", 1)
    report = patching.revert("fix-2", timeout=1)
    assert report.state in ("partial", "pending"), told(report)
    assert report.reason == "stragglers", told(report)
    assert patching.status().state == report.state
    trees.go(1)
    trees.until_idle(1)
    assert trees.trace(1) == ["f2", "g2", "k2"]
    patching.reverted("fix-2")
    trees.go(0)
    trees.until_idle(0)
    assert trees.trace(0) == ["f1", "g1", "k1"]
    trees.set("expect", 2)
    patching.patched("fix-2")
    trees.assert_consistent()


def test_thread_in_new_code_delays_a_revert(world):
    """The same the other way round: who is in new code stays new until it leaves."""
    trees, patching = world
    _add(patching)
    trees.go(0)
    trees.until_idle(0)
    trees.trace(0)
    trees.set("expect", 2)
    patching.patched("fix-2")
    trees.run(0, "fpg.k")
    trees.until_blocked(0, 2)
    trees.set("expect", 1)
    report = patching.revert("fix-2", timeout=1)
    assert report.state in ("partial", "pending"), told(report)
    _assert_named(trees, report)
    trees.go(0)
    trees.until_idle(0)
    assert trees.trace(0) == ["f2", "g2", "k2"]
    patching.reverted("fix-2")
    trees.assert_consistent()


def test_manifest_asks_for_a_revert(world):
    trees, patching = world
    _add(patching, stragglers="revert", timeouts={"transition": 1})
    trees.set("expect", 2)
    report = patching.apply("fix-2")
    assert report.reason == "stragglers", told(report)
    assert {patch.id: patch.state for patch in report.patches} == {"fix-2": LAST}
    trees.until_called(1, 50000)
    trees.go(0)
    trees.until_idle(0)
    assert {step[1] for step in trees.trace(0)} == {"1"}
    assert trees.report()["mixed"] == 0
