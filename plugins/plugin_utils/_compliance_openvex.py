# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""OpenVEX documents (specification 0.2.0), one per host."""

from __future__ import annotations

import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_statements import (
    AFFECTED,
    NOT_AFFECTED,
    derived_uuid,
    host_key,
    host_purl,
    statements,
)

Values = dict[str, t.Any]

CONTEXT = "https://openvex.dev/ns/v0.2.0"


def openvex(report: Values, host: Values) -> Values:
    """The document of one host; the product is the host, each subcomponent a package."""
    listed = []
    for statement in statements(report, host):
        product: Values = {
            "@id": host_purl(host["name"]),
            "identifiers": {"purl": host_purl(host["name"])},
        }
        if statement.components:
            product["subcomponents"] = [
                {"@id": each.purl, "identifiers": {"purl": each.purl}}
                for each in statement.components
            ]
        item: Values = {
            "vulnerability": {"name": statement.cve},
            "timestamp": host["evidence_time"] or report["time"],
            "products": [product],
            "status": statement.status,
            "status_notes": f"wfpatch state: {statement.state}. {statement.detail}",
        }
        if statement.status == NOT_AFFECTED:
            item["justification"] = (
                "inline_mitigations_already_exist"
                if statement.mitigated
                else "vulnerable_code_not_in_execute_path"
            )
            item["impact_statement"] = statement.detail
        elif statement.status == AFFECTED:
            item["action_statement"] = statement.action
        listed.append(item)
    return {
        "@context": CONTEXT,
        "@id": f"urn:uuid:{derived_uuid('openvex', *host_key(report, host))}",
        "author": report["controller"]["publisher"],
        "role": "Operator",
        "timestamp": report["time"],
        "version": 1,
        "tooling": f"wfpatch.fleet {report['controller']['collection']}",
        "statements": listed,
    }
