# SPDX-License-Identifier: GPL-3.0-or-later
"""A wave's failures end the rollout or not, and hosts go back or not, as the policy says."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_judgement import (
    HostOutcome,
    judge,
    to_revert_at_end,
)

UNWELL = {"reason": "health_gate_failed", "msg": "gate g:\n no"}
PATCHED = ("p1", "p2")


def outcome(name, failure=None, brought=PATCHED, reverted=False):
    return HostOutcome(name, failure, True, brought, reverted)


def fleet(**failures):
    """Two hosts of the first wave, three of the second, one that was not reached."""
    hosts = [outcome(name, failures.get(name)) for name in ("a", "b", "c", "d")]
    # One that had the patches before.
    hosts.append(outcome("e", failures.get("e"), ()))
    return [*hosts, HostOutcome("z")]


def plan(on_failure, allowed=0):
    return {"on_failure": on_failure, "failures_allowed": allowed}


SECOND = ("c", "d", "e")


@pytest.mark.parametrize(
    ("on_failure", "here", "at_end"),
    [
        ("stop", [], []),
        ("revert_host", ["c"], []),
        ("revert_wave", ["c", "d"], []),
        ("revert_all", ["c", "d"], ["a", "b", "c", "d"]),
    ],
)
def test_what_goes_back_when_a_host_is_one_too_many(on_failure, here, at_end):
    outcomes = fleet(c=UNWELL)
    verdict = judge(plan(on_failure), outcomes, SECOND)
    assert verdict.stop
    assert verdict.failed == ("c",)
    assert verdict.revert == {name: list(PATCHED) for name in here}
    assert verdict.why == "1 of 6 hosts failed (c: health_gate_failed: gate g: no)"
    assert sorted(to_revert_at_end(plan(on_failure), outcomes)) == at_end


@pytest.mark.parametrize(
    ("on_failure", "here"),
    [("stop", []), ("revert_host", ["c"]), ("revert_wave", ["c"]), ("revert_all", ["c"])],
)
def test_a_failure_that_is_allowed_takes_back_its_own_host_alone(on_failure, here):
    verdict = judge(plan(on_failure, 1), fleet(c=UNWELL), SECOND)
    assert not verdict.stop
    assert sorted(verdict.revert) == here
    assert verdict.why == ""


def test_failures_of_all_waves_count():
    assert not judge(plan("stop", 2), fleet(a=UNWELL, c=UNWELL), SECOND).stop
    verdict = judge(plan("stop", 1), fleet(a=UNWELL, c=UNWELL), SECOND)
    assert verdict.stop
    assert verdict.failed == ("c",)


def test_a_gate_of_the_whole_wave_ends_it_however_many_may_fail():
    of_wave = {**UNWELL, "wave": True}
    assert judge(plan("stop", 6), fleet(c=of_wave, d=of_wave, e=of_wave), SECOND).stop
    # That of an earlier wave did not, or this one would not have begun.
    assert not judge(plan("stop", 6), fleet(a=of_wave), SECOND).stop


def test_what_went_back_does_not_go_back_again():
    outcomes = [outcome("a"), outcome("c", UNWELL, reverted=True)]
    assert judge(plan("revert_all"), outcomes, ("c",)).revert == {}
    assert sorted(to_revert_at_end(plan("revert_all"), outcomes)) == ["a"]


def test_nobody_failed():
    verdict = judge(plan("revert_all"), fleet(), SECOND)
    assert (verdict.stop, verdict.failed, verdict.revert) == (False, (), {})
