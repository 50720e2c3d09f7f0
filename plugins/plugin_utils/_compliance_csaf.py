# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""CSAF 2.0 documents of the profile VEX, one per host."""

from __future__ import annotations

import re
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

HOST = "host"
STATUS_LIST = {
    NOT_AFFECTED: "known_not_affected",
    AFFECTED: "known_affected",
    FIXED: "fixed",
    INVESTIGATED: "under_investigation",
}


def csaf_file_name(tracking_id: str) -> str:
    """The file's name (CSAF 2.0, section 5.1)."""
    return re.sub(r"[^+\-a-z0-9]+", "_", tracking_id.lower()) + ".json"


def _product(purl: str, numbers: t.Mapping[str, int]) -> str:
    return f"{HOST}-{numbers[purl]}"


def _tree(host: Values, listed: t.Sequence[Statement], numbers: t.Mapping[str, int]) -> Values:
    packages = {each.purl: each for statement in listed for each in statement.components}
    name = host["name"]
    tree: Values = {
        "full_product_names": [
            {
                "product_id": HOST,
                "name": name,
                "product_identification_helper": {
                    "x_generic_uris": [{"namespace": "urn:wfpatch:host", "uri": host_urn(name)}]
                },
            },
            *(
                {
                    "product_id": f"package-{numbers[purl]}",
                    "name": f"{each.name} {each.version or '(any version)'}",
                    "product_identification_helper": {"purl": purl},
                }
                for purl, each in packages.items()
            ),
        ]
    }
    if packages:
        tree["relationships"] = [
            {
                "category": "installed_on",
                "product_reference": f"package-{numbers[purl]}",
                "relates_to_product_reference": HOST,
                "full_product_name": {
                    "product_id": _product(purl, numbers),
                    "name": f"{each.name} {each.version or '(any version)'} on {name}",
                },
            }
            for purl, each in packages.items()
        ]
    return tree


def _vulnerability(statement: Statement, numbers: t.Mapping[str, int], when: str) -> Values:
    products = [_product(each.purl, numbers) for each in statement.components] or [HOST]
    item: Values = {
        "cve": statement.cve,
        "notes": [
            {
                "category": "details",
                "title": "Evidence",
                "text": f"wfpatch state: {statement.state}. {statement.detail}",
            }
        ],
        "product_status": {STATUS_LIST[statement.status]: products},
    }
    if statement.references:
        item["references"] = [
            {"category": "external", "summary": f"{statement.cve}: {url}", "url": url}
            for url in statement.references
        ]
    if statement.status == NOT_AFFECTED:
        item["flags"] = [
            {
                "label": "inline_mitigations_already_exist"
                if statement.mitigated
                else "vulnerable_code_not_in_execute_path",
                "product_ids": products,
                "date": when,
            }
        ]
        item["threats"] = [
            {
                "category": "impact",
                "details": statement.detail,
                "product_ids": products,
                "date": when,
            }
        ]
    elif statement.status == AFFECTED:
        item["remediations"] = [
            {
                "category": "mitigation",
                "details": statement.action,
                "product_ids": products,
                "date": when,
            }
        ]
        item["threats"] = [
            {
                "category": "impact",
                "details": f"Severity by the patch's manifest: {statement.severity}.",
                "product_ids": products,
            }
        ]
    return item


def csaf(report: Values, host: Values) -> Values:
    """The document of one host; products are the host and packages installed on it."""
    listed = statements(report, host)
    purls = sorted({each.purl for statement in listed for each in statement.components})
    numbers = {purl: number for number, purl in enumerate(purls, 1)}
    when = host["evidence_time"] or report["time"]
    controller = report["controller"]
    return {
        "document": {
            "category": "csaf_vex",
            "csaf_version": "2.0",
            "lang": "en",
            "title": f"Live patches on {host['name']}",
            "publisher": {
                "category": "user",
                "name": controller["publisher"],
                "namespace": controller["namespace"],
            },
            "notes": [{"category": "general", "title": "Scope", "text": report["scope"]}],
            "tracking": {
                "id": f"wfpatch-{derived_uuid('csaf', *host_key(report, host))}",
                "status": "final",
                "version": "1",
                "initial_release_date": report["time"],
                "current_release_date": report["time"],
                "revision_history": [
                    {"number": "1", "date": report["time"], "summary": "Read from live memory."}
                ],
                "generator": {
                    "date": report["time"],
                    "engine": {"name": "wfpatch.fleet", "version": controller["collection"]},
                },
            },
        },
        "product_tree": _tree(host, listed, numbers),
        "vulnerabilities": [_vulnerability(each, numbers, when) for each in listed],
    }
