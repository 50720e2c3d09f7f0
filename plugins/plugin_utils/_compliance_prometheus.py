# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prometheus' text format, for the node exporter's textfile collector."""

from __future__ import annotations

import collections
import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._clock_offset import parse_time
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_report import process_states

Values = dict[str, t.Any]
Sample = tuple[dict[str, str], int | float]


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _family(name: str, help_text: str, samples: t.Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        listed = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{listed}}} {value}" if listed else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _processes(report: Values) -> t.Iterator[Sample]:
    for host in report["hosts"]:
        counted: collections.Counter[tuple[str, str]] = collections.Counter()
        for process in (host["evidence"] or {}).get("processes", ()):
            counted.update(process_states(process).items())
        for (cve, state), count in sorted(counted.items()):
            yield {"host": host["name"], "cve": cve, "state": state}, count


def _seconds(text: str) -> int:
    return int(parse_time(text).timestamp())


def prometheus(report: Values) -> str:
    """All metrics. A state is a label: a series is there for the state that holds."""
    hosts = report["hosts"]
    timed = [host for host in hosts if host["evidence_time"]]
    families = (
        _family(
            "wfpatch_host_cve_state",
            "The state of a CVE on a host: 1 for the state that holds.",
            (
                ({"host": h["name"], "cve": row["id"], "state": row["state"]}, 1)
                for h in hosts
                for row in h["cves"]
            ),
        ),
        _family(
            "wfpatch_hosts",
            "Hosts by the state of their worst CVE.",
            (({"state": state}, count) for state, count in report["states"].items()),
        ),
        _family(
            "wfpatch_processes",
            "Processes by CVE and state, of those that map an affected object or a namesake.",
            _processes(report),
        ),
        _family(
            "wfpatch_outdated_images",
            "Running images that are outdated and not patched in memory.",
            (({"host": h["name"]}, h["flagged"]) for h in hosts if h["evidence"]),
        ),
        _family(
            "wfpatch_opted_out_hosts",
            "Hosts that are opted out of patching.",
            [({}, sum(host["opted_out"] for host in hosts))],
        ),
        _family(
            "wfpatch_evidence_timestamp_seconds",
            "When a host's evidence was gathered.",
            (({"host": h["name"]}, _seconds(h["evidence_time"])) for h in timed),
        ),
        _family(
            "wfpatch_evidence_expires_timestamp_seconds",
            "When a host's evidence counts no more.",
            (({"host": h["name"]}, _seconds(h["expires"])) for h in timed),
        ),
        _family(
            "wfpatch_clock_offset_seconds",
            "How far a host's clock is ahead of the controller's.",
            (
                ({"host": h["name"]}, h["clock"]["offset_us"] / 1_000_000)
                for h in hosts
                if h["clock"]
            ),
        ),
        _family(
            "wfpatch_report_timestamp_seconds",
            "When the report was written.",
            [({}, _seconds(report["time"]))],
        ),
    )
    return "".join(families)
