# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""OSCAL assessment results: an observation per host and CVE, a finding per CVE.

The control is NIST SP 800-53's SI-2, flaw remediation, unless the operator names another.
"""

from __future__ import annotations

import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_statements import (
    AFFECTED,
    INVESTIGATED,
    STATUS,
    derived_uuid,
    host_urn,
    statements,
)

Values = dict[str, t.Any]

OSCAL_VERSION = "1.1.3"
#: Names of our own properties belong to this namespace.
PROPERTIES = "https://wfpatch.invalid/ns/oscal"


def _property(name: str, value: t.Any) -> Values:
    # An OSCAL property's value is a text without a blank at either end, and never empty.
    return {"name": name, "ns": PROPERTIES, "value": str(value).strip() or "none"}


def _observations(report: Values, host: Values, uuid: t.Callable[..., str]) -> list[Values]:
    subject = {
        "subject-uuid": uuid("host", host["name"]),
        "type": "inventory-item",
        "title": host["name"],
    }
    listed = []
    for statement in statements(report, host):
        item: Values = {
            "uuid": uuid("observation", host["name"], statement.cve),
            "title": f"{statement.cve} on {host['name']}",
            "description": statement.detail,
            "props": [
                _property("state", statement.state),
                _property("cve", statement.cve),
                _property("severity", statement.severity),
            ],
            "methods": ["TEST"],
            "types": ["finding"],
            "subjects": [subject],
            "collected": host["evidence_time"] or report["time"],
        }
        if host["expires"]:
            item["expires"] = host["expires"]
        if statement.action:
            item["remarks"] = statement.action
        listed.append(item)
    return listed


def _finding(report: Values, cve: Values, control: str, uuid: t.Callable[..., str]) -> Values:
    bad = [
        host["name"]
        for host in report["hosts"]
        for row in host["cves"]
        if row["id"] == cve["id"] and STATUS[row["state"]] in (AFFECTED, INVESTIGATED)
    ]
    counts = ", ".join(f"{count} {state}" for state, count in cve["states"].items())
    return {
        "uuid": uuid("finding", cve["id"]),
        "title": f"{cve['id']} over {len(report['hosts'])} hosts",
        "description": f"Hosts by state: {counts}.",
        "target": {
            "type": "objective-id",
            "target-id": control,
            "status": {
                "state": "not-satisfied" if bad else "satisfied",
                "reason": "fail" if bad else "pass",
            },
        },
        "related-observations": [
            {"observation-uuid": uuid("observation", host["name"], cve["id"])}
            for host in report["hosts"]
        ],
    }


def _inventory_item(host: Values, uuid: t.Callable[..., str]) -> Values:
    evidence = host["evidence"]
    facts = [_property("urn", host_urn(host["name"])), _property("state", host["state"])]
    if evidence:
        facts += [
            _property("boot-id", evidence["host"]["boot_id"]),
            _property("kernel", evidence["host"]["kernel"]),
            _property("applier", evidence["applier"]["version"]),
            _property("clock-offset-us", host["clock"]["offset_us"]),
        ]
    if host["opted_out"]:
        facts.append(_property("opted-out", "yes"))
    return {
        "uuid": uuid("host", host["name"]),
        "description": f"Host {host['name']} of the inventory",
        "props": facts,
    }


def oscal(report: Values, control: str, plan: str) -> Values:
    """The document. ``control``: the id of the assessed objective; ``plan``: the address of the
    assessment plan that the results belong to.
    """

    def uuid(*parts: str) -> str:
        return derived_uuid("oscal", report["controller"]["namespace"], report["time"], *parts)

    party = uuid("party")
    result: Values = {
        "uuid": uuid("result"),
        "title": "Live patches in force",
        "description": report["scope"],
        "start": report["time"],
        "end": report["time"],
        "local-definitions": {
            "inventory-items": [_inventory_item(host, uuid) for host in report["hosts"]]
        },
        "reviewed-controls": {
            "control-selections": [
                {"include-controls": [{"control-id": control.removesuffix("_obj")}]}
            ]
        },
    }
    observations = [item for host in report["hosts"] for item in _observations(report, host, uuid)]
    if observations:
        result["observations"] = observations
        result["findings"] = [_finding(report, cve, control, uuid) for cve in report["cves"]]
    return {
        "assessment-results": {
            "uuid": uuid("document"),
            "metadata": {
                "title": "Live patches in force: assessment results",
                "last-modified": report["time"],
                "version": report["time"],
                "oscal-version": OSCAL_VERSION,
                "props": [_property("collection", report["controller"]["collection"])],
                "roles": [{"id": "assessor", "title": "Assessor"}],
                "parties": [
                    {
                        "uuid": party,
                        "type": "organization",
                        "name": report["controller"]["publisher"],
                    }
                ],
                "responsible-parties": [{"role-id": "assessor", "party-uuids": [party]}],
            },
            "import-ap": {"href": plan},
            "results": [result],
        }
    }
