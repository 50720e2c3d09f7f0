# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""JUnit XML: a suite per host, a case per CVE and per outdated image, for CI servers."""

from __future__ import annotations

import re
import typing as t
from xml.sax.saxutils import escape, quoteattr

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_statements import (
    AFFECTED,
    INVESTIGATED,
    Statement,
    statements,
)

Values = dict[str, t.Any]

#: What XML 1.0 has no place for, not even as a reference (section 2.2).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _attributes(**values: t.Any) -> str:
    return "".join(f" {name}={quoteattr(_clean(str(value)))}" for name, value in values.items())


def _case(host: str, name: str, tag: str, kind: str, text: str) -> str:
    head = f"    <testcase{_attributes(classname=host, name=name, time='0')}"
    if not tag:
        return f"{head}>\n      <system-out>{escape(_clean(text))}</system-out>\n    </testcase>\n"
    return (
        f"{head}>\n      <{tag}{_attributes(type=kind, message=text[:500])}>"
        f"{escape(_clean(text))}</{tag}>\n    </testcase>\n"
    )


def _cve_case(host: str, statement: Statement) -> tuple[str, str]:
    tag = {AFFECTED: "failure", INVESTIGATED: "error"}.get(statement.status, "")
    return tag, _case(host, statement.cve, tag, statement.state, statement.detail)


def _suite(report: Values, host: Values) -> tuple[str, dict[str, int]]:
    cases = [_cve_case(host["name"], each) for each in statements(report, host)]
    for process in (host["evidence"] or {}).get("processes", ()):
        for item in process["objects"]:
            if item["outdated"]:
                tag = "failure" if item["flagged"] else ""
                name = f"outdated {process['comm']}[{process['pid']}] {item['path']}"
                text = f"its file was {item['file']}; build {item['build_id']} runs"
                text += "" if item["flagged"] else ", patched in memory for the CVEs in question"
                cases.append((tag, _case(host["name"], name, tag, "outdated", text)))
    counts = {
        "tests": len(cases),
        "failures": sum(tag == "failure" for tag, _text in cases),
        "errors": sum(tag == "error" for tag, _text in cases),
    }
    facts: Values = {"state": host["state"], "opted_out": host["opted_out"], "stale": host["stale"]}
    if host["evidence"]:
        facts["boot_id"] = host["evidence"]["host"]["boot_id"]
    properties = "".join(
        f"      <property{_attributes(name=name, value=value)}/>\n" for name, value in facts.items()
    )
    when = (host["evidence_time"] or report["time"]).removesuffix("Z")
    head = _attributes(name=host["name"], **counts, skipped=0, time="0", timestamp=when)
    return (
        f"  <testsuite{head}>\n    <properties>\n{properties}    </properties>\n"
        f"{''.join(text for _tag, text in cases)}  </testsuite>\n",
        counts,
    )


def junit(report: Values) -> str:
    """The document as text."""
    suites = [_suite(report, host) for host in report["hosts"]]
    totals = {
        name: sum(counts[name] for _text, counts in suites)
        for name in ("tests", "failures", "errors")
    }
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<testsuites{_attributes(name='wfpatch compliance', **totals, time='0')}>\n"
        f"{''.join(text for text, _counts in suites)}</testsuites>\n"
    )
