# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a report says of one host and one CVE in the words of VEX: the part that OpenVEX, CSAF and
CycloneDX have in common.

A document speaks of one host only: of a fleet, "not affected" would silence a scanner on hosts that
are.
"""

from __future__ import annotations

import typing as t
import uuid
from dataclasses import dataclass
from urllib.parse import quote

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_report import process_states

Values = dict[str, t.Any]

#: Whatever is derived from a report has the same id each time it is derived.
NAMESPACE = uuid.UUID("6f5d3a0e-4f0f-5f6e-9d6b-0d9a3c1f7b52")

NOT_AFFECTED, AFFECTED, FIXED = "not_affected", "affected", "fixed"
INVESTIGATED = "under_investigation"
STATUS = {
    "patched": NOT_AFFECTED,
    "not_affected": NOT_AFFECTED,
    "fixed": FIXED,
    "pending": AFFECTED,
    "partial": AFFECTED,
    "blocked": AFFECTED,
    "unpatchable": AFFECTED,
    "vulnerable": AFFECTED,
    "unknown": INVESTIGATED,
}
ACTION = {
    "pending": "A live patch is being applied and not every thread runs it yet. Run the roll-out "
    "again to complete it, or upgrade the package and restart the processes.",
    "partial": "Some threads or processes have the live patch and some have not. Run the roll-out "
    "again when the threads that are named have left the old code, or upgrade the package and "
    "restart the processes.",
    "blocked": "The live patch would be refused. See to the reason, or upgrade the package and "
    "restart the processes.",
    "unpatchable": "No live patch can exist. Upgrade the package and restart the processes.",
    "vulnerable": "Apply the live patch, or upgrade the package and restart the processes.",
}


@dataclass(frozen=True)
class Component:
    """A package as a document names it, by its package URL."""

    purl: str
    name: str
    version: str | None


@dataclass(frozen=True)
class Statement:
    """One CVE on one host. ``detail`` is the impact or, for what is affected, what was found."""

    cve: str
    severity: str
    references: tuple[str, ...]
    state: str
    status: str
    mitigated: bool
    detail: str
    action: str
    components: tuple[Component, ...]


def host_urn(name: str) -> str:
    """The host as the product of a document."""
    return f"urn:wfpatch:host:{quote(name, safe='.-_~')}"


def host_purl(name: str) -> str:
    """The same as a package URL: readers of OpenVEX take no other name of a product."""
    return f"pkg:generic/wfpatch-host/{quote(name, safe='.-_~')}"


def derived_uuid(*parts: str) -> str:
    """A UUID (RFC 9562, version 5) of what the parts name."""
    return str(uuid.uuid5(NAMESPACE, "\0".join(parts)))


def host_key(report: Values, host: Values) -> tuple[str, ...]:
    """What sets a host's document apart from all others, those of earlier reports included."""
    evidence = host["evidence"]
    boot = evidence["host"]["boot_id"] if evidence else ""
    return (report["controller"]["namespace"], host["name"], boot, report["time"])


def _images(host: Values, cve: str) -> list[tuple[Values, Values, Values]]:
    evidence = host["evidence"]
    return [
        (process, item, state)
        for process in (evidence["processes"] if evidence else ())
        for item in process["objects"]
        for state in item["cves"]
        if state["id"] == cve
    ]


def _reasons(host: Values, cve: str) -> list[str]:
    return sorted({state["reason"] for _p, _i, state in _images(host, cve) if state["reason"]})


def _components(host: Values, cve: Values) -> tuple[Component, ...]:
    found = {}
    for _process, item, _state in _images(host, cve["id"]):
        package = item["package"]
        if package:
            found[package["purl"]] = Component(package["purl"], package["name"], package["version"])
    if not found:
        evidence = host["evidence"]
        system = evidence["host"]["system"]["id"] if evidence else ""
        kind = {"dpkg": "deb", "rpm": "rpm"}.get(evidence["packages"] if evidence else None)
        for name in cve["packages"]:
            # Nobody runs it: the package is named without a version.
            prefix = f"pkg:{kind}/{quote(system.lower())}" if kind and system else "pkg:generic"
            purl = f"{prefix}/{quote(name, safe='')}"
            found[purl] = Component(purl, name, None)
    return tuple(found[purl] for purl in sorted(found))


def _when(host: Values) -> str:
    evidence = host["evidence"]
    if not evidence:
        last = host["last_evidence"]
        return f"the last evidence is of {last}" if last else "there never was evidence"
    return (
        f"evidence of {host['evidence_time']}, boot {evidence['host']['boot_id']}, "
        f"applier {evidence['applier']['version']}"
    )


def _counts(host: Values, cve: str) -> str:
    states = [
        process_states(process)[cve]
        for process in (host["evidence"] or {}).get("processes", ())
        if cve in process_states(process)
    ]
    return ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))


def _detail(host: Values, cve: Values, state: str, row: Values) -> str:
    when = _when(host)
    images = _images(host, cve["id"])
    patches = sorted({found["patch"] for _p, _i, found in images if found["patch"]})
    by = f" by {', '.join(patches)}" if patches else ""
    if state == "patched":
        return (
            f"Mitigated in memory until restart{by}: every thread of every process that maps an "
            f"affected build runs the fix, as read from live memory ({when}). The package on disk "
            "may still be an affected version; a process that is started from it anew is "
            "vulnerable until it is patched."
        )
    if state == "not_affected":
        return f"No running process maps an affected object ({when})."
    if state == "fixed":
        return f"Every process that maps the object runs a fixed build ({when})."
    if state == "unknown":
        why = ", ".join([row["reason"]] if row["reason"] else _reasons(host, cve["id"]))
        return f"There is no evidence: {why or 'unknown'} ({when})."
    reasons = _reasons(host, cve["id"])
    opted = " An operator has opted these processes out." if row["opted_out"] else ""
    because = f", reason {', '.join(reasons)}" if reasons else ""
    return f"State {state}{because}: processes {_counts(host, cve['id'])} ({when}).{opted}"


def statements(report: Values, host: Values) -> list[Statement]:
    """What is said of every CVE of the report on that host, by CVE."""
    states = {row["id"]: row for row in host["cves"]}
    result = []
    for cve in report["cves"]:
        row = states[cve["id"]]
        state = row["state"]
        result.append(
            Statement(
                cve["id"],
                cve["severity"],
                tuple(cve["references"]),
                state,
                STATUS[state],
                state == "patched",
                _detail(host, cve, state, row),
                ACTION.get(state, ""),
                _components(host, cve),
            )
        )
    return result
