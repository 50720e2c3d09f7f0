# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""One result out of those of several calls that did one step each."""

from __future__ import annotations

import copy
import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._fleet_report import worst

#: As many stops as a result may list.
MAX_STOPS = 4096


def _key(process: dict[str, t.Any]) -> tuple[t.Any, ...]:
    return (
        process["pid"],
        process["start_time"],
        process["object"]["build_id"],
        process["object"]["path"],
    )


def _sum(left: int | None, right: int | None) -> int | None:
    return right if left is None else left if right is None else left + right


def _longest(left: int | None, right: int | None) -> int | None:
    return right if left is None else left if right is None else max(left, right)


def merge_results(
    earlier: dict[str, t.Any], later: dict[str, t.Any], keep: bool = False
) -> dict[str, t.Any]:
    """The later result with the earlier one's ``before``, and times and stops of both. Neither
    is changed.

    ``keep``: the later call looked at other patches only. Then what the earlier one said of
    processes that the later one does not name still holds.
    """
    merged = copy.deepcopy(later)
    merged["changed"] = earlier["changed"] or later["changed"]
    merged["before"] = _both(earlier["before"], later["before"])
    merged["warnings"] = [
        *earlier["warnings"],
        *(text for text in later["warnings"] if text not in earlier["warnings"]),
    ]
    known = {_key(process): process for process in earlier["processes"]}
    for process in merged["processes"]:
        other = known.get(_key(process))
        if other is None:
            continue
        timings = process["timings_us"]
        for name in ("load", "arm", "transition"):
            timings[name] = _sum(other["timings_us"][name], timings[name])
        timings["longest_stop"] = _longest(
            other["timings_us"]["longest_stop"], timings["longest_stop"]
        )
        process["stops"] = [*other["stops"], *process["stops"]][:MAX_STOPS]
        process["stops_count"] += other["stops_count"]
    if keep:
        _keep(earlier, merged)
    return merged


def _keep(earlier: dict[str, t.Any], merged: dict[str, t.Any]) -> None:
    named = {_key(process) for process in merged["processes"]}
    missing = [process for process in earlier["processes"] if _key(process) not in named]
    merged["processes"] = [*copy.deepcopy(missing), *merged["processes"]]
    merged["after"] = _both(merged["after"], earlier["after"])
    patches = {cve["patch"] for cve in merged["cves"]}
    merged["cves"] = [
        *(cve for cve in copy.deepcopy(earlier["cves"]) if cve["patch"] not in patches),
        *merged["cves"],
    ]
    merged["state"] = worst((earlier["state"], merged["state"]))


def _both(first: dict[str, t.Any], second: dict[str, t.Any]) -> dict[str, t.Any]:
    """Two summaries as one; of a process that both name, the first one's word counts."""
    named = {(each["pid"], each["object"]) for each in first["processes"]}
    added = [each for each in second["processes"] if (each["pid"], each["object"]) not in named]
    states = [first["state"], *([second["state"]] if added else [])]
    return copy.deepcopy({"state": worst(states), "processes": [*first["processes"], *added]})
