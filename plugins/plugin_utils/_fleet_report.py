# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The fleet's report out of what each host's tasks returned. See schemas/report.schema.json."""

from __future__ import annotations

import collections
import datetime
import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._failure_reason import said_no_room

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
OPTED_OUT = "opted_out"
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


def host_row(
    name: str,
    outcome: Values | None,
    failure: Values | None,
    alive: bool,
    wave: str | None = None,
    opted_out: bool = False,
    reverted: bool = False,
) -> Values:
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
    if last is None and opted_out:
        reason: str | None = OPTED_OUT
        message = "the rollout policy takes no part of this host"
    elif last is None:
        reason = NOT_REACHED if alive else UNREACHABLE
        message = "the run did not come to this host" if alive else "the host could not be reached"
    elif last.get("unreachable"):
        reason, message = UNREACHABLE, str(last.get("msg") or "the host could not be reached")
        if said_no_room(last):
            # Ansible counts a host as unreachable on which it can make no folder for a file.
            reason = "disk_full"
    else:
        reason = last.get("reason") or (result or {}).get("reason")
        message = str(last.get("msg") or "")
        if failure and not reason:
            reason = "disk_full" if said_no_room(last) else "task_failed"
    return {
        "name": name,
        "state": result["state"] if result else "unknown",
        "reason": None if reason is None else str(reason),
        "message": message[:MAX_MESSAGE],
        "verified": (plain(outcome.get("verified")) if outcome else None),
        "wave": wave,
        "opted_out": opted_out,
        "reverted": reverted,
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


def rollout_summary(plan: Values, verdicts: dict[str, Values], rows: list[Values]) -> Values | None:
    """How the waves of a plan went; None without a policy. ``verdicts``: by host, of its wave."""
    if not plan.get("waves"):
        return None
    by_name = {row["name"]: row for row in rows}
    waves = []
    stopped: Values = {}
    for wave in plan["waves"]:
        verdict = next((verdicts[host] for host in wave["hosts"] if verdicts.get(host)), None)
        outcome = "not_reached"
        if verdict is not None:
            outcome = "passed" if verdict["final"] else "begun"
            outcome = "failed" if verdict["stop"] else outcome
            stopped = verdict if verdict["stop"] else stopped
        own = [by_name[host] for host in wave["hosts"] if host in by_name]
        waves.append(
            {
                "name": wave["name"],
                "outcome": outcome,
                "hosts": len(wave["hosts"]),
                "failed": len(verdict["unwell"]) if verdict else 0,
                "reverted": sum(row["reverted"] for row in own),
            }
        )
    return {
        "name": plan["name"],
        "on_failure": plan["on_failure"],
        "stopped": bool(stopped),
        "why": str(stopped.get("why", ""))[:MAX_MESSAGE],
        "waves": waves,
    }


def fleet_report(
    action: str, check_mode: bool, rows: list[Values], rollout: Values | None = None
) -> Values:
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
        "rollout": rollout,
        "hosts": rows,
    }
