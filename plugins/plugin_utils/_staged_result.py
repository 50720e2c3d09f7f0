# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""One result out of those of several calls that did one step each."""

from __future__ import annotations

import copy
import typing as t

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


def merge_results(earlier: dict[str, t.Any], later: dict[str, t.Any]) -> dict[str, t.Any]:
    """The later result with the earlier one's ``before``, and times and stops of both. Neither
    is changed.
    """
    merged = copy.deepcopy(later)
    merged["changed"] = earlier["changed"] or later["changed"]
    merged["before"] = copy.deepcopy(earlier["before"])
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
    return merged
