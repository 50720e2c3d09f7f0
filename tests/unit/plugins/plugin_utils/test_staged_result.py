# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps done by calls of their own add up to one result."""

from __future__ import annotations

import copy

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._staged_result import merge_results


def summary(state, *pids):
    return {"state": state, "processes": [{"pid": pid, "object": "o"} for pid in pids]}


def step(changed, timings, stops, generation, pid=7, state="patched"):
    process = {
        "pid": pid,
        "start_time": 1,
        "object": {"build_id": "b", "path": "/p"},
        "generation": generation,
        "timings_us": dict(
            zip(("load", "arm", "transition", "longest_stop"), timings, strict=True)
        ),
        "stops": [{"tid": 7, "purpose": "x", "microseconds": each} for each in stops],
        "stops_count": len(stops),
    }
    return {
        "changed": changed,
        "state": state,
        "before": summary("vulnerable" if generation == 1 else state, pid),
        "after": summary(state, pid),
        "cves": [{"id": "CVE", "patch": f"p{pid}", "state": state}],
        "warnings": ["slow"],
        "processes": [process, {**copy.deepcopy(process), "pid": 100 + generation}],
    }


def test_merge():
    first = step(True, (80, None, None, 80), [80], 1)
    second = step(False, (None, 20, 3000, 30), [30, 10], 2)
    originals = copy.deepcopy((first, second))
    merged = merge_results(first, second)
    assert (first, second) == originals
    assert merged["changed"] is True
    assert merged["before"] == summary("vulnerable", 7)
    assert merged["warnings"] == ["slow"]
    process, other = merged["processes"]
    assert process["generation"] == 2
    assert process["timings_us"] == {"load": 80, "arm": 20, "transition": 3000, "longest_stop": 80}
    assert [stop["microseconds"] for stop in process["stops"]] == [80, 30, 10]
    assert process["stops_count"] == 3
    assert other["stops_count"] == 2


def test_a_step_of_another_process_loses_nothing():
    """Patches of two services: the second one's steps do not name the first one's process."""
    first = step(True, (80, 1, 2, 80), [80], 1, pid=7, state="partial")
    second = step(True, (90, 1, 2, 70), [70], 1, pid=8)
    originals = copy.deepcopy((first, second))
    merged = merge_results(first, second, keep=True)
    assert (first, second) == originals
    assert [process["pid"] for process in merged["processes"]] == [7, 8, 101]
    assert merged["before"] == summary("vulnerable", 7, 8)
    assert sorted(each["pid"] for each in merged["after"]["processes"]) == [7, 8]
    assert merged["state"] == merged["after"]["state"] == "partial"
    assert [cve["patch"] for cve in merged["cves"]] == ["p7", "p8"]
    # What looks at all of them has the last word on which are there, but not on their stops.
    last = step(False, (None, None, None, None), [], 2, pid=7)
    last["processes"][1]["pid"] = 8
    final = merge_results(merged, last)
    assert [process["pid"] for process in final["processes"]] == [7, 8]
    assert [stop["microseconds"] for stop in final["processes"][0]["stops"]] == [80]
    assert [stop["microseconds"] for stop in final["processes"][1]["stops"]] == [70]
