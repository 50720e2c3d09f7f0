# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the compliance report; its formats are tested in tests/compliance."""

from __future__ import annotations

import datetime

import pytest
from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._advisories import (
    AdvisoriesInvalid,
    read_advisories,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._checked_result import check_evidence
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._clock_offset import clock_offset
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._collection_version import (
    collection_version,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_csv import cell
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_opt_out import (
    check_rules,
    opted_out_by,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_report import (
    HostRow,
    compliance_report,
    named_cves,
)
from ansible_collections.wfpatch.fleet.tests.unit.conftest import manifest

BEGUN = datetime.datetime(2026, 1, 15, 10, tzinfo=datetime.UTC)


def at(seconds):
    return BEGUN + datetime.timedelta(seconds=seconds)


def text(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize("ahead", [0, 3600, -90, 0.25])
def test_the_clock_is_known_within_its_uncertainty(ahead):
    """A host that takes 1 s between 2 s on the way there and 3 s on the way back."""
    evidence = {"begun": text(at(2 + ahead)), "ended": text(at(3 + ahead))}
    found = clock_offset(evidence, at(0), at(6))
    assert abs(found["offset_us"] - ahead * 1_000_000) <= found["uncertainty_us"]
    assert found["uncertainty_us"] == 2_500_000


PROCESS = {
    "comm": "served",
    "exe": "/usr/sbin/served",
    "unit": "served@1.service",
    "user": "www-data",
    "uid": 33,
    "opted_out": None,
    "objects": [{"path": "/usr/lib/libserved.so.1"}],
}


@pytest.mark.parametrize(
    ("kind", "pattern", "expected"),
    [
        ("services", "served@*", True),
        ("services", "served@1", True),
        ("services", "served", False),
        ("processes", "serve?", True),
        ("users", "www-data", True),
        ("users", "33", True),
        ("users", "3", False),
        ("paths", "/usr/lib/*", True),
        ("paths", "/usr/sbin/served", True),
        ("paths", "served", False),
    ],
)
def test_opt_outs(kind, pattern, expected):
    rules = check_rules({kind: [pattern]})
    found = opted_out_by(PROCESS, rules)
    assert found == (f"{kind}={pattern}" if expected else None)
    assert opted_out_by({**PROCESS, "opted_out": "user www-data"}, rules) == "user www-data"


@pytest.mark.parametrize("rules", [{"hostz": []}, {"users": "root"}, {"users": [None]}])
def test_opt_outs_that_are_none(rules):
    with pytest.raises(AnsibleError):
        check_rules(rules)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        ("\t=1", "'\t=1"),
        ("plain", "plain"),
        (-1, "-1"),
        (None, ""),
        (True, "yes"),
    ],
)
def test_cells(value, expected):
    assert cell(value) == expected


def test_evidence_that_does_not_fit_is_taken_out():
    found = check_evidence({"evidence": {"schema": 1}, "clock": {}})
    assert (found["failed"], found["reason"], "evidence" in found) == (
        True,
        "result_invalid",
        False,
    )
    assert check_evidence({"failed": True, "msg": "x"}) == {"failed": True, "msg": "x"}


def test_advisories_are_validated_with_their_lines(tmp_path):
    path = tmp_path / "advisories.yml"
    path.write_text("---\nschema: 1\nadvisories: []\n")
    assert read_advisories(str(path)) == '{"advisories":[],"schema":1}'
    path.write_text("---\nschema: 1\nschema: 1\nadvisories: []\n")
    with pytest.raises(AdvisoriesInvalid, match=r"advisories\.yml:3: "):
        read_advisories(str(path))
    path.write_text("---\nschema: 1\nadvisories: [{cve: x}]\n")
    with pytest.raises(AdvisoriesInvalid) as invalid:
        read_advisories(str(path))
    assert invalid.value.result()["reason"] == "manifest_invalid"
    with pytest.raises(AnsibleError, match="cannot be read"):
        read_advisories(str(tmp_path / "none"))


def test_the_version_is_the_collections():
    assert collection_version() != "unknown"


def test_what_the_run_was_given_stands_in_the_report_though_no_host_can_tell():
    named = named_cves(
        [manifest()],
        [{"cve": "CVE-2026-0001", "severity": "critical", "package": "other"}],
    )
    row = HostRow("web1", None, None, "host_unreachable", "no route", False, None)
    made = compliance_report([row], {}, 60, {}, None, BEGUN, named)
    (cve,) = made["cves"]
    assert (cve["id"], cve["severity"]) == ("CVE-2026-0001", "critical")
    assert (cve["packages"], cve["patches"]) == (["example", "other"], ["example-a"])
    assert cve["states"] == {"unknown": 1}
    assert made["hosts"][0]["cves"][0]["reason"] == "host_unreachable"
    assert named["CVE-2026-0001"]["packages"] == ["example", "other"]
