# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The fleet's report out of what each host's tasks returned. See schemas/report.schema.json."""

from __future__ import annotations

import collections
import datetime
import typing as t

Values = dict[str, t.Any]

#: A fleet takes its worst host: the later in this order, the worse. The applier orders processes
#: in the same way.
STATES = (
    "not_affected",
    "fixed",
    "patched",
    "unknown",
    "pending",
    "partial",
    "unpatchable",
    "blocked",
    "vulnerable",
)

UNREACHABLE = "host_unreachable"
NOT_REACHED = "not_reached"
MAX_MESSAGE = 65536


def worst(states: t.Iterable[str]) -> str:
    """The worst of the states; ``unknown`` when there are none."""
    return max(states, key=STATES.index, default="unknown")


def plain(value: t.Any) -> t.Any:
    """The value as JSON types without what Ansible adds to them."""
    if isinstance(value, t.Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    return str(value)


def host_row(name: str, outcome: Values | None, failure: Values | None, alive: bool) -> Values:
    """One host's item of the report. ``alive``: Ansible has not given the host up."""
    last = failure or outcome
    result = next(
        (
            plain(each["result"])
            for each in (failure, outcome)
            if each and isinstance(each.get("result"), t.Mapping)
        ),
        None,
    )
    if last is None:
        reason: str | None = NOT_REACHED if alive else UNREACHABLE
        message = "the run did not come to this host" if alive else "the host could not be reached"
    elif last.get("unreachable"):
        reason, message = UNREACHABLE, str(last.get("msg") or "the host could not be reached")
    else:
        reason = last.get("reason") or (result or {}).get("reason")
        message = str(last.get("msg") or "")
        if failure and not reason:
            reason = "task_failed"
    return {
        "name": name,
        "state": result["state"] if result else "unknown",
        "reason": None if reason is None else str(reason),
        "message": message[:MAX_MESSAGE],
        "verified": (plain(outcome.get("verified")) if outcome else None),
        "result": result,
    }


def patch_ids(rows: t.Iterable[Values]) -> list[str]:
    """Every patch of which a result speaks, sorted."""
    found = set()
    for row in rows:
        result = row["result"]
        if result:
            found.update(
                patch["id"] for process in result["processes"] for patch in process["patches"]
            )
            found.update(cve["patch"] for cve in result["cves"])
    return sorted(found)


def fleet_report(action: str, check_mode: bool, rows: list[Values]) -> Values:
    """The report of a run."""
    states = collections.Counter(row["state"] for row in rows)
    return {
        "schema": 1,
        "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "action": action,
        "check_mode": check_mode,
        "complete": all(row["reason"] not in (NOT_REACHED, UNREACHABLE) for row in rows),
        "state": worst(states),
        "patches": patch_ids(rows),
        "states": dict(sorted(states.items())),
        "hosts": rows,
    }
