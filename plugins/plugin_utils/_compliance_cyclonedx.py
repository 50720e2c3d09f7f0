# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""CycloneDX 1.6 documents with vulnerability analyses (VEX), one per host."""

from __future__ import annotations

import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_statements import (
    AFFECTED,
    FIXED,
    INVESTIGATED,
    NOT_AFFECTED,
    Statement,
    derived_uuid,
    host_key,
    host_urn,
    statements,
)

Values = dict[str, t.Any]

STATE = {
    NOT_AFFECTED: "not_affected",
    AFFECTED: "exploitable",
    FIXED: "resolved",
    INVESTIGATED: "in_triage",
}


def _analysis(statement: Statement) -> Values:
    analysis: Values = {"state": STATE[statement.status], "detail": statement.detail}
    if statement.status == NOT_AFFECTED:
        analysis["justification"] = (
            "protected_at_runtime" if statement.mitigated else "code_not_reachable"
        )
    elif statement.status == AFFECTED:
        analysis["response"] = (
            ["update"] if statement.state == "unpatchable" else ["workaround_available", "update"]
        )
    return analysis


def _vulnerability(statement: Statement, host: str, evidence: Values | None) -> Values:
    item: Values = {
        "bom-ref": statement.cve,
        "id": statement.cve,
        "ratings": [{"severity": statement.severity, "method": "other"}],
        "analysis": _analysis(statement),
        "affects": [{"ref": each.purl} for each in statement.components] or [{"ref": host}],
        "properties": [{"name": "wfpatch:state", "value": statement.state}],
    }
    if evidence is not None:
        item["properties"].append({"name": "wfpatch:boot_id", "value": evidence["host"]["boot_id"]})
    if statement.references:
        item["advisories"] = [{"url": url} for url in statement.references]
    if statement.action:
        item["recommendation"] = statement.action
    return item


def cyclonedx(report: Values, host: Values) -> Values:
    """The document of one host; its metadata's component is the host."""
    listed = statements(report, host)
    packages = {each.purl: each for statement in listed for each in statement.components}
    product = host_urn(host["name"])
    components = []
    for purl, each in sorted(packages.items()):
        component = {"type": "application", "bom-ref": purl, "name": each.name, "purl": purl}
        if each.version:
            component["version"] = each.version
        components.append(component)
    properties = [{"name": "wfpatch:scope", "value": report["scope"]}]
    if host["evidence_time"]:
        properties.append({"name": "wfpatch:evidence_time", "value": host["evidence_time"]})
        properties.append({"name": "wfpatch:evidence_expires", "value": host["expires"]})
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{derived_uuid('cyclonedx', *host_key(report, host))}",
        "version": 1,
        "metadata": {
            "timestamp": report["time"],
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "wfpatch.fleet",
                        "version": report["controller"]["collection"],
                    }
                ]
            },
            "component": {"type": "device", "bom-ref": product, "name": host["name"]},
            "properties": properties,
        },
        "components": components,
        "dependencies": [
            {"ref": product, "dependsOn": sorted(packages)},
            *({"ref": purl} for purl in sorted(packages)),
        ],
        "vulnerabilities": [_vulnerability(each, product, host["evidence"]) for each in listed],
    }
