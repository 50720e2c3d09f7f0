# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables that end the demonstration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .narration import say
from .playbooks import processes


def aligned(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows as lines with columns of equal width; numbers to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]


def longest_stop(process: dict[str, Any]) -> int | None:
    """Microseconds that the longest stopped thread of the process stood still, over the reports."""
    stops = [stop["microseconds"] for stop in process["stops"]]
    return max(stops, default=0)


def process_table(report: dict[str, Any], stops: dict[tuple[str, int], int]) -> None:
    """Host, process, patch, threads, longest stop (of all runs so far), state."""
    rows = []
    for host, process in processes(report):
        longest = stops.get((host, process["pid"]), 0)
        for patch in process["patches"]:
            rows.append(
                (
                    host,
                    f"{process['comm']}[{process['pid']}]",
                    patch["id"],
                    process["threads"]["total"],
                    f"{longest} us" if longest else "none",
                    patch["state"],
                )
            )
    header = ("host", "process", "patch", "threads", "longest stop", "state")
    for line in aligned(header, rows):
        say(line)


def latency_table(verdicts: dict[tuple[str, str], dict[str, Any]], phases: Sequence[str]) -> None:
    """Each service's quantiles by phase: the worst host's, in milliseconds."""
    rows = []
    for service in dict.fromkeys(service for _, service in verdicts):
        for phase in phases:
            found = [
                verdict["phases"][phase]
                for (_, name), verdict in verdicts.items()
                if name == service and phase in verdict["phases"]
            ]
            worst = [
                f"{max(one['latency_us'][key] for one in found) / 1000:.2f}"
                for key in ("p50", "p99", "p999", "max")
            ]
            rows.append((service, phase, sum(one["answered"] for one in found), *worst))
    header = ("service", "phase", "requests", "p50 ms", "p99 ms", "p99.9 ms", "max ms")
    for line in aligned(header, rows):
        say(line)
