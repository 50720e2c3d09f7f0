# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence of a made-up fleet in which every state occurs, and every text is as bad as may be.

What a host says is hostile: names of processes, files, units and users that are markup, formulas of
spreadsheets, lines of other formats. Evidence that fits its schema may hold all of it.
"""

from __future__ import annotations

import datetime
from typing import Any

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_report import (
    HostRow,
    compliance_report,
    time_text,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import problems

#: Every state, in the order in which hosts are made of them.
STATES = (
    *("patched", "vulnerable", "pending", "partial", "blocked"),
    *("unpatchable", "fixed", "not_affected", "unknown"),
)
CVES = ("CVE-2026-0001", "CVE-2026-0002")
HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '=HYPERLINK("http://example.org","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\"' onmouseover='document.title=1' x='",
    "]]></system-out><failure/>",
    'a"} 1\\nwfpatch_hosts{state="x',
    "</script><script>document.title='owned'</script>",
    "{{ lookup('pipe', 'id') }} %s %n \\",
    "\u202egpj.exe \ufeff \ud7ff \U0001f4a9 \ufffe",
)
CONTROLLER = {
    "hostname": "controller",
    "ansible": "2.19.0",
    "collection": "0.1.0",
    "publisher": "Tests & <Sons>",
    "namespace": "https://example.org/",
}


def text(number: int, place: int) -> str:
    """What a host says in some place of its evidence."""
    return HOSTILE[(number + place) % len(HOSTILE)]


def reading(number: int, state: str) -> dict[str, Any]:
    """What live memory says of an image, with a straggler where there is one."""
    stragglers = []
    if state == "partial":
        stragglers = [
            {
                "tid": 1001,
                "comm": text(number, 3),
                "function": text(number, 4),
                "reason": text(number, 5),
            }
        ]
    return {
        "pid": 1000,
        "start_time": 1,
        "comm": text(number, 0),
        "exe": f"/{text(number, 1)}",
        "object": {
            "name": "served",
            "build_id": "ab" * 20,
            "path": f"/{text(number, 1)}",
            "deleted": False,
        },
        "generation": 1,
        "state": state,
        "reason": "stragglers" if stragglers else None,
        "message": text(number, 6) if stragglers else "",
        "backend": "ptrace",
        "policy": "auto",
        "patches": [{"id": "served-fix", "state": state}],
        "functions": [
            {
                "name": text(number, 7),
                "patch": "served-fix",
                "entry": 4096,
                "arming": "byte",
                "leads_to": "new",
                "address": 8192,
            }
        ],
        "threads": {
            "total": 2,
            "migrated": 1,
            "quiescent": 1,
            "stragglers": stragglers,
        },
        "timings_us": {"load": None, "arm": None, "transition": None, "longest_stop": None},
        "stops": [],
        "stops_count": 0,
    }


def process(number: int, states: dict[str, str], outdated: bool = False) -> dict[str, Any]:
    """A process whose one image is in that state with regard to each CVE."""
    worst = next(iter(states.values()))
    closed = all(state in ("patched", "fixed") for state in states.values())
    return {
        "pid": 1000,
        "start_time": 1,
        "comm": text(number, 0),
        "exe": f"/{text(number, 1)}",
        "uid": 33,
        "user": text(number, 2),
        "unit": f"{text(number, 3)}.service",
        "opted_out": None,
        "threads": [
            {"tid": 1000, "comm": text(number, 0)},
            {"tid": 1001, "comm": text(number, 3)},
        ],
        "objects": [
            {
                "path": f"/{text(number, 1)}",
                "build_id": "ab" * 20,
                "file": "replaced" if outdated else "same",
                "file_build_id": "cd" * 20 if outdated else "ab" * 20,
                "package": {
                    "name": "served",
                    "version": "1.0-1",
                    "installed": "1.0-2" if outdated else "1.0-1",
                    "architecture": "amd64",
                    "purl": "pkg:deb/debian/served@1.0-1?arch=amd64&distro=debian-12",
                },
                "reading": None
                if worst in ("fixed", "unknown", "unpatchable")
                else reading(number, worst),
                "cves": [
                    {
                        "id": cve,
                        "state": state,
                        "patch": None if state in ("fixed", "unpatchable") else "served-fix",
                        "reason": {"blocked": "seccomp_forbids", "unknown": "tampered"}.get(state),
                        "message": text(number, 8) if state == "unpatchable" else "",
                        "ground": "version" if state == "fixed" else None,
                    }
                    for cve, state in states.items()
                    if state != "not_affected"
                ],
                "unexplained": ["stranger"] if outdated else [],
                "outdated": outdated,
                "flagged": outdated and not closed,
            }
        ],
    }


def evidence(
    number: int,
    processes: list[dict[str, Any]],
    states: dict[str, str],
    ended: datetime.datetime,
) -> dict[str, Any]:
    """A host's evidence. What it holds fits the schema."""
    document = {
        "schema": 1,
        "begun": ended.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "ended": ended.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "applier": {"version": "0.1.0", "backend": "ptrace"},
        "host": {
            "boot_id": f"1f0e3dad-9990-4345-b743-{number:012x}",
            "hostname": text(number, 0),
            "kernel": "6.1.0-18-amd64",
            "machine": "x86_64",
            "system": {"id": "debian", "version": "12", "name": text(number, 9)},
        },
        "packages": "dpkg",
        "patches": [
            {
                "id": "served-fix",
                "digest": "ef" * 32,
                "signer": text(number, 2),
                "summary": text(number, 3),
                "released": "2026-01-15",
                "cves": [CVES[0]],
                "object": "served",
                "build_ids": ["ab" * 20],
                "package": "served",
                "versions": ["1.0-1"],
            }
        ],
        "refused": [],
        "opted_out": False,
        "cves": [
            {
                "id": cve,
                "severity": "high" if cve == CVES[0] else "low",
                "references": ["https://example.org/?a=1&b=2"] if cve == CVES[0] else [],
                "patches": ["served-fix"] if cve == CVES[0] else [],
                "state": states[cve],
            }
            for cve in CVES
        ],
        "processes": processes,
    }
    found = problems("evidence", document)
    assert not found, found
    return document


def rows(now: datetime.datetime) -> list[HostRow]:
    """A host in each state of the first CVE, and: one that cannot be reached, one whose evidence is
    old, one that is outdated."""
    clock = {"offset_us": -1_500_000, "uncertainty_us": 20_000}
    moment = now - datetime.timedelta(seconds=62) + datetime.timedelta(microseconds=-1_500_000)
    made = []
    for number, state in enumerate(STATES):
        states = {CVES[0]: state, CVES[1]: "not_affected"}
        processes = [] if state == "not_affected" else [process(number, states)]
        made.append(
            HostRow(
                f"{state.replace('_', '-')}.example.org",
                evidence(number, processes, states, moment),
                clock,
                None,
                "",
                state == "vulnerable",
                None,
            )
        )
    states = {CVES[0]: "vulnerable", CVES[1]: "not_affected"}
    made.append(
        HostRow(
            "outdated.example.org",
            evidence(23, [process(23, states, outdated=True)], states, moment),
            clock,
            None,
            "",
            False,
            None,
        )
    )
    states = {CVES[0]: "patched", CVES[1]: "not_affected"}
    made.append(
        HostRow(
            "stale.example.org",
            evidence(21, [process(21, states)], states, moment - datetime.timedelta(days=2)),
            clock,
            None,
            "",
            False,
            None,
        )
    )
    made.append(
        HostRow(
            "gone <b>&\"' ../../etc",
            None,
            None,
            "host_unreachable",
            HOSTILE[0],
            False,
            time_text(now - datetime.timedelta(days=3)),
        )
    )
    return made


def report(now: datetime.datetime, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """The report of that fleet; it fits its schema."""
    rules = {"services": [], "processes": [HOSTILE[2]], "users": [], "paths": []}
    made = compliance_report(rows(now), CONTROLLER, 86400, rules, earlier, now)
    found = problems("compliance", made)
    assert not found, found
    return made


def with_history(now: datetime.datetime, count: int) -> dict[str, Any]:
    """A report that has ``count`` earlier ones."""
    made = None
    for days in range(count, -1, -1):
        made = report(now - datetime.timedelta(days=days), made)
    assert made is not None
    return made
