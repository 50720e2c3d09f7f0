# SPDX-License-Identifier: GPL-3.0-or-later
"""No call tree of a thread ever has code of two versions, and no thread goes backward.

The program (programs/proof_trees.c) detects both by construction. First the detector itself is
judged, then random trees run by the million under everything that can come in between, then each
rule has a scenario of its own in which a mixture would be certain without it (test_rules.py).

WFPATCH_CONSISTENCY_ROUNDS (3; the slow test 25) is the number of times that the patch comes and
goes, WFPATCH_CONSISTENCY_CALLS (200,000; the slow test 5,000,000) that of calls to wait for
meanwhile. Both print their figures.
"""

from __future__ import annotations

import os

import pytest
from proof import call_trees
from proof.call_trees import Trees
from proof.patching import Patching

ROUNDS = int(os.environ.get("WFPATCH_CONSISTENCY_ROUNDS", "3"))
CALLS = int(os.environ.get("WFPATCH_CONSISTENCY_CALLS", "200000"))
SLOW_ROUNDS = int(os.environ.get("WFPATCH_CONSISTENCY_ROUNDS", "25"))
SLOW_CALLS = int(os.environ.get("WFPATCH_CONSISTENCY_CALLS", "5000000"))


@pytest.fixture
def world(start, tmp_path):
    """world(random threads, scripted threads, functions) -> (trees, patching)."""

    def make(random_threads, scripted_threads, functions, *flags):
        program = call_trees.program(*flags)
        running = start(program, random_threads, scripted_threads, functions)
        return Trees(running), Patching(tmp_path / "patching", running.pid)

    return make


# The judge is judged


def test_detector_sees_a_mixture_in_a_frame(world):
    trees, _ = world(0, 1, "fg", "-DMIXED")
    trees.run(0, "fpg.k")
    trees.until_blocked(0)
    trees.set("swap", "g 2")
    trees.go(0)
    trees.until_idle(0)
    report = trees.report()
    assert trees.trace(0) == ["f1", "g2", "k1"]
    assert report["mixed"] == 1
    assert report["first"] == {"id": "g", "handler": 0, "seen": 1, "caller": 1, "version": 2}


def test_detector_sees_a_mixture_behind_a_tail_jump(world):
    trees, _ = world(0, 1, "fg", "-DMIXED")
    trees.run(0, "fpt")
    trees.until_blocked(0)
    trees.set("swap", "g 2")
    trees.go(0)
    trees.until_idle(0)
    assert trees.trace(0) == ["f1", "g2"]
    assert trees.report()["mixed"] == 1


def test_detector_sees_a_mixture_in_a_signal_handler(world):
    trees, _ = world(0, 1, "fg", "-DMIXED")
    trees.run(0, "fP")
    trees.until_blocked(0)
    trees.set("swap", "g 2")
    trees.running.ask("signal 0 g")
    trees.go(0)
    trees.until_idle(0)
    assert trees.report()["mixed"] == 1


def test_detector_sees_a_thread_go_backward(world):
    trees, _ = world(0, 1, "fg", "-DMIXED")
    trees.set("expect", 2)
    for version in (2, 1):
        trees.set("swap", f"f {version}")
        trees.run(0, "f")
        trees.until_idle(0)
    report = trees.report()
    assert (report["mixed"], report["backward"]) == (0, 1)


def test_detector_sees_random_mixtures(world):
    trees, _ = world(3, 0, "fgk", "-DMIXED")
    trees.set("expect", 2)
    for name in "fgk":
        trees.set("swap", f"{name} 2")
        trees.until_called(2, 20000)
    assert trees.report()["mixed"] > 0


# Random trees


def _disturb(trees):
    trees.set("storm", 200)
    trees.set("births", 3)
    trees.set("forks", 1)


def _random_trees(world, functions, threads, rounds, calls):
    """Patch and revert in a loop: each thread changes its version once in each transition."""
    trees, patching = world(threads, 0, functions)
    _disturb(trees)
    patch = call_trees.patch(2, functions)
    patching.add("fix", patch, timeouts={"transition": 60})
    for _ in range(rounds):
        for version, act in ((2, patching.patched), (1, patching.reverted)):
            trees.set("expect", version)
            act("fix")
            trees.until_called(version, calls // rounds // 2)
    report = trees.assert_consistent()
    # 1 is the first tree of all: whoever changes in between has gone there and back.
    assert report["switches"] == [2 * rounds + 1, 2 * rounds + 1]
    assert report["children"] > 0 and report["signals"] > 0 and report["born"] > 0
    assert report["forks_mixed"] == 0
    assert sum(report["calls"]) >= calls // 2
    print(
        f"{functions}, {threads} threads: {sum(report['calls'])} calls ({report['calls']}), "
        f"{2 * rounds} transitions, {report['signals']} signals, {report['born']} threads born, "
        f"{report['children']} children; {report['mixed']} mixtures, {report['backward']} backward"
    )


@pytest.mark.parametrize("functions", ["fgk", "fgkr"])
def test_random_trees(world, functions):
    _random_trees(world, functions, 4, ROUNDS, CALLS)


@pytest.mark.slow
@pytest.mark.parametrize(("functions", "threads"), [("fgk", 4), ("fgkr", 4), ("fgk", 16)])
def test_millions_of_random_trees(world, functions, threads):
    _random_trees(world, functions, threads, SLOW_ROUNDS, SLOW_CALLS)
