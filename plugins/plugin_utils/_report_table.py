# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A report as a table for people: host, process, patch, generation, threads, longest stop,
state.
"""

from __future__ import annotations

import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._fleet_report import NOT_REACHED
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._printable import printable
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._progress import milliseconds

HEAD = ("host", "process", "patch", "generation", "threads", "longest stop", "state")
MAX_CELL = 60
MAX_NAMES = 10

Values = dict[str, t.Any]


def _threads(threads: Values) -> str:
    text = f"{threads['migrated']}/{threads['total']}"
    if threads["stragglers"]:
        text += f", {len(threads['stragglers'])} stragglers"
    return text


def _process_rows(host: str, process: Values) -> t.Iterator[tuple[str, ...]]:
    for patch in process["patches"] or [{"id": "-", "state": process["state"]}]:
        yield (
            host,
            f"{process['comm']}[{process['pid']}]",
            patch["id"],
            str(process["generation"]),
            _threads(process["threads"]),
            milliseconds(process["timings_us"]["longest_stop"]),
            patch["state"],
        )


def _rows(report: Values) -> t.Iterator[tuple[str, ...]]:
    for host in report["hosts"]:
        if host["reason"] == NOT_REACHED:
            continue
        processes = host["result"]["processes"] if host["result"] else []
        for process in processes:
            yield from _process_rows(host["name"], process)
        if not processes:
            yield (host["name"], "-", "-", "-", "-", "-", host["state"])


def _remarks(report: Values) -> t.Iterator[str]:
    for host in report["hosts"]:
        if host["reason"] and host["reason"] != NOT_REACHED:
            yield f"{host['name']}: {host['reason']}: {host['message']}"
        for process in host["result"]["processes"] if host["result"] else ():
            who = f"{host['name']} {process['comm']}[{process['pid']}]"
            if process["reason"] and process["message"] != host["message"]:
                yield f"{who}: {process['reason']}: {process['message']}"
            for straggler in process["threads"]["stragglers"]:
                where = f" in {straggler['function']}" if straggler["function"] else ""
                yield (
                    f"{who}: straggler {straggler['tid']} {straggler['comm']}{where}: "
                    f"{straggler['reason']}"
                )
    waiting = [host["name"] for host in report["hosts"] if host["reason"] == NOT_REACHED]
    if waiting:
        more = f" and {len(waiting) - MAX_NAMES} more" if len(waiting) > MAX_NAMES else ""
        yield f"not reached: {', '.join(waiting[:MAX_NAMES])}{more}"


def report_table(report: Values) -> str:
    """The table, remarks below it, and a line with the number of hosts per state. Everything a
    host said is made printable.
    """
    rows = [HEAD, *(tuple(printable(cell, MAX_CELL) for cell in row) for row in _rows(report))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.extend(printable(remark, 1000) for remark in _remarks(report))
    counts = ", ".join(f"{count} {state}" for state, count in report["states"].items())
    rollout = report["rollout"]
    for wave in rollout["waves"] if rollout else ():
        told = f"wave {wave['name']}: {wave['outcome']}, {wave['hosts']} hosts"
        told += f", {wave['failed']} failed" if wave["failed"] else ""
        lines.append(told + (f", {wave['reverted']} reverted" if wave["reverted"] else ""))
    planned = " (check mode: nothing was changed)" if report["check_mode"] else ""
    lines.append(f"{len(report['hosts'])} hosts: {counts}{planned}")
    return "\n".join(lines)
