# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps done by calls of their own add up to one result."""

from __future__ import annotations

import copy

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._staged_result import merge_results


def step(changed, timings, stops, generation):
    process = {
        "pid": 7,
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
        "before": {"generation": generation - 1},
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
    assert merged["before"] == {"generation": 0}
    assert merged["warnings"] == ["slow"]
    process, other = merged["processes"]
    assert process["generation"] == 2
    assert process["timings_us"] == {"load": 80, "arm": 20, "transition": 3000, "longest_stop": 80}
    assert [stop["microseconds"] for stop in process["stops"]] == [80, 30, 10]
    assert process["stops_count"] == 3
    assert other["stops_count"] == 2
