# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The compliance report of a fleet out of each host's evidence. See schemas/compliance.schema.json.

Every other format is made from this document alone.
"""

from __future__ import annotations

import collections
import copy
import datetime
import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._clock_offset import parse_time
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_opt_out import opted_out_by
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._fleet_report import STATES, worst

Values = dict[str, t.Any]

SEVERITIES = ("low", "medium", "high", "critical")
SCOPE = (
    "This report covers the CVEs that the manifests of live patches, and advisories given to it, "
    "name. It is no vulnerability scanner. States are read from live memory; what is patched is "
    "mitigated in memory until the process restarts, and its package is upgraded as usual."
)
#: Summaries of earlier reports that are kept for trends.
KEPT_HISTORY = 400
NO_MANIFEST = "manifest_missing"
STALE = "evidence_stale"


def time_text(moment: datetime.datetime) -> str:
    """A time as reports have it: UTC, whole seconds."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def evidence_time(evidence: Values, clock: Values) -> datetime.datetime:
    """When the evidence was complete, by the controller's clock."""
    offset = datetime.timedelta(microseconds=clock["offset_us"])
    return parse_time(evidence["ended"]) - offset


def process_states(process: Values) -> dict[str, str]:
    """CVE -> state of a process: that of its worst image."""
    found: dict[str, list[str]] = {}
    for item in process["objects"]:
        for cve in item["cves"]:
            found.setdefault(cve["id"], []).append(cve["state"])
    return {cve: worst(states) for cve, states in found.items()}


def named_cves(manifests: t.Iterable[Values], advisories: t.Iterable[Values]) -> dict[str, Values]:
    """The CVEs that the run itself was given: they stand in the report though no host can tell."""
    found: dict[str, Values] = {}

    def note(cve: str, severity: str, references: list[str], patch: str | None, name: str) -> None:
        known = found.setdefault(
            cve, {"severity": severity, "references": [], "patches": [], "packages": []}
        )
        known["severity"] = max(known["severity"], severity, key=SEVERITIES.index)
        for field, items in (
            ("references", references),
            ("patches", [patch] if patch else []),
            ("packages", [name]),
        ):
            known[field] += [item for item in items if item not in known[field]]

    for manifest in manifests:
        for cve in manifest["cves"]:
            note(
                cve["id"],
                cve["severity"],
                cve["references"],
                manifest["id"],
                manifest["target"]["package"],
            )
    for advisory in advisories:
        note(advisory["cve"], advisory["severity"], [], None, advisory["package"])
    return found


def fleet_cves(evidence: t.Sequence[Values], named: t.Mapping[str, Values]) -> dict[str, Values]:
    """Every CVE that the run or any host's evidence names, with the highest severity that any gives
    it.
    """
    found: dict[str, Values] = copy.deepcopy(dict(named))
    for each in evidence:
        packages = {patch["id"]: patch["package"] for patch in each["patches"]}
        for cve in each["cves"]:
            known = found.setdefault(
                cve["id"],
                {"severity": cve["severity"], "references": [], "patches": [], "packages": []},
            )
            known["severity"] = max(known["severity"], cve["severity"], key=SEVERITIES.index)
            for name, items in (
                ("references", cve["references"]),
                ("patches", cve["patches"]),
                ("packages", [packages[patch] for patch in cve["patches"] if patch in packages]),
            ):
                known[name] += [item for item in items if item not in known[name]]
        for process in each["processes"]:
            for item in process["objects"]:
                for cve in item["cves"]:
                    names = found[cve["id"]]["packages"] if cve["id"] in found else []
                    if item["package"] and item["package"]["name"] not in names:
                        names.append(item["package"]["name"])
    return dict(sorted(found.items()))


class HostRow:
    """What is said of one host: its evidence, or why there is none."""

    def __init__(
        self,
        name: str,
        evidence: Values | None,
        clock: Values | None,
        reason: str | None,
        message: str,
        opted_out: bool,
        last_evidence: str | None,
    ) -> None:
        self.name, self.evidence, self.clock = name, evidence, clock
        self.reason, self.message = reason, message
        self.opted_out, self.last_evidence = opted_out, last_evidence


def _host(
    row: HostRow,
    cves: t.Mapping[str, Values],
    rules: t.Mapping[str, list[str]],
    now: datetime.datetime,
    limit: int,
) -> Values:
    gathered = expires = None
    stale = False
    reason, message = row.reason, row.message
    if row.evidence is not None and row.clock is not None:
        moment = evidence_time(row.evidence, row.clock)
        until = moment + datetime.timedelta(seconds=limit)
        gathered, expires, stale = time_text(moment), time_text(until), now > until
        if stale:
            reason = STALE
            message = f"the evidence of {gathered} is older than its limit of {limit} s"
    processes = row.evidence["processes"] if row.evidence is not None else []
    opted_out = row.opted_out or (row.evidence is not None and row.evidence["opted_out"])
    by = [{"pid": process["pid"], "by": opted_out_by(process, rules)} for process in processes]
    opted = [each for each in by if each["by"] is not None]
    out = {each["pid"] for each in opted}
    known = {} if row.evidence is None or stale else {c["id"]: c for c in row.evidence["cves"]}
    states = []
    for cve in cves:
        found = known.get(cve)
        state = found["state"] if found else "unknown"
        concerned = [
            process["pid"] for process in processes if process_states(process).get(cve) == state
        ]
        states.append(
            {
                "id": cve,
                "state": state,
                "reason": None if found else reason or NO_MANIFEST,
                "opted_out": opted_out or (bool(concerned) and out.issuperset(concerned)),
            }
        )
    if not states and reason is None:
        # Nothing was looked for: that is no good news.
        reason, message = NO_MANIFEST, "no manifest at hand names a CVE"
    return {
        "name": row.name,
        "state": worst(each["state"] for each in states),
        "reason": reason,
        "message": message,
        "opted_out": opted_out,
        "opted_out_processes": opted,
        "evidence_time": gathered,
        "expires": expires,
        "stale": stale,
        "last_evidence": gathered or row.last_evidence,
        "clock": row.clock,
        "cves": states,
        "flagged": sum(item["flagged"] for p in processes for item in p["objects"]),
        "evidence": row.evidence,
    }


def summary(report: Values) -> Values:
    """What a later report's trends remember of this one."""
    return {
        "time": report["time"],
        "states": report["states"],
        "cves": {cve["id"]: cve["states"] for cve in report["cves"]},
        "flagged": sum(host["flagged"] for host in report["hosts"]),
    }


def _patches(evidence: t.Sequence[Values]) -> list[Values]:
    found = {patch["digest"]: patch for each in evidence for patch in each["patches"]}
    return sorted(found.values(), key=lambda patch: (patch["id"], patch["digest"]))


def compliance_report(
    rows: t.Sequence[HostRow],
    controller: Values,
    limit: int,
    rules: t.Mapping[str, list[str]],
    earlier: Values | None,
    now: datetime.datetime,
    named: t.Mapping[str, Values] | None = None,
) -> Values:
    """The report. ``limit``: seconds for which evidence counts; ``earlier``: the report before;
    ``named``: see named_cves().
    """
    evidence = [row.evidence for row in rows if row.evidence is not None]
    cves = fleet_cves(evidence, named or {})
    if earlier is not None:
        # A CVE does not vanish with the only host that could tell of it.
        for cve in earlier["cves"] if any(row.evidence is None for row in rows) else ():
            cves.setdefault(
                cve["id"],
                {name: cve[name] for name in ("severity", "references", "patches", "packages")},
            )
    hosts = [_host(row, cves, rules, now, limit) for row in rows]
    listed = []
    for cve, known in sorted(cves.items()):
        counted = collections.Counter(
            each["state"] for host in hosts for each in host["cves"] if each["id"] == cve
        )
        listed.append({"id": cve, **known, "states": dict(sorted(counted.items()))})
    history: list[Values] = []
    if earlier is not None:
        history = [*earlier["history"], summary(earlier)][-KEPT_HISTORY:]
    return {
        "schema": 1,
        "time": time_text(now),
        "scope": SCOPE,
        "controller": controller,
        "evidence_limit": limit,
        "complete": all(host["evidence"] is not None for host in hosts),
        "state": worst(host["state"] for host in hosts),
        "states": dict(sorted(collections.Counter(host["state"] for host in hosts).items())),
        "cves": listed,
        "patches": _patches(evidence),
        "hosts": hosts,
        "history": history,
    }


__all__ = ["STATES", "HostRow", "compliance_report", "process_states", "summary", "time_text"]
