# SPDX-License-Identifier: GPL-3.0-or-later
"""All violations of a manifest are listed, with their lines."""

from __future__ import annotations

import copy

import pytest
import yaml
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._canonical_json import canonical_json
from ansible_collections.wfpatch.fleet.plugins.plugin_utils.validation import validate_manifest
from ansible_collections.wfpatch.fleet.tests.unit.conftest import manifest


def violations(value):
    text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False)
    return validate_manifest(text, "manifest.yml")[1]


def test_a_valid_manifest():
    value = manifest(health_check={"command": ["true"], "timeout": 5}, requires=["other"])
    text = yaml.safe_dump(value, sort_keys=False)
    document, found = validate_manifest(text, "manifest.yml")
    assert found == []
    assert canonical_json(document.data) == canonical_json(value)


def test_every_violation_is_listed_with_its_line():
    value = manifest()
    del value["summary"], value["timeouts"]
    value["cves"][0]["severity"] = "urgent"
    value["policy"] = "fast"
    value["requires"] = ["Upper"]
    value["surplus"] = 1
    value["target"]["build_ids"] = ["xyz", 7]
    text = yaml.safe_dump(value, sort_keys=False)
    lines = text.splitlines()
    found = violations(text)
    assert {violation.path for violation in found} == {
        "summary",
        "timeouts",
        "cves[0].severity",
        "policy",
        "requires[0]",
        "surplus",
        "target.build_ids[0]",
        "target.build_ids[1]",
    }
    for violation in found:
        if violation.path not in ("summary", "timeouts"):
            last = violation.path.rpartition(".")[2].partition("[")[0]
            value_line = lines[violation.line - 1]
            assert last in value_line or value_line.strip().startswith("- "), str(violation)
    assert found == sorted(found)
    severity = next(violation for violation in found if violation.path == "cves[0].severity")
    assert lines[severity.line - 1].strip() == "severity: urgent"
    assert str(severity) == (
        f"manifest.yml:{severity.line}: cves[0].severity: "
        "'urgent' is not one of low, medium, high, critical"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("id",), "example-a\n"),
        (("id",), "../etc"),
        (("id",), ".hidden"),
        (("id",), "a" * 129),
        (("schema",), 2),
        (("schema",), True),
        (("summary",), "with \x1b[31m colour"),
        (("summary",), ""),
        (("released",), "2026-1-5"),
        (("released",), "2026-02-30"),
        (("cves", 0, "id"), "CVE-26-1"),
        (("cves", 0, "references", 0), "javascript:alert(1)"),
        (("target", "build_ids"), []),
        (("target", "object"), "a/b"),
        (("target", "architecture"), "arm64"),
        (("artifact", "file"), "../patch.elf"),
        (("artifact", "sha256"), "0" * 63),
        (("artifact", "size"), 0),
        (("timeouts", "transition"), 0),
        (("timeouts", "transition"), "30"),
        (("health_check",), {"command": [], "timeout": 5}),
        (("health_check",), "true"),
        (("stack_switching",), None),
        (("requires",), ["example-a"]),
        (("supersedes",), ["example-a"]),
        (("conflicts",), ["x", "x"]),
    ],
)
def test_what_is_refused(path, value):
    changed = copy.deepcopy(manifest())
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    found = violations(changed)
    assert len(found) == 1, [str(each) for each in found]
    assert found[0].path.startswith(str(path[0]))
    assert found[0].line > 0


def test_sense_beyond_the_schema():
    twice = [*manifest()["cves"], *manifest()["cves"]]
    found = violations(manifest(requires=["other"], conflicts=["other"], cves=twice))
    assert [violation.path for violation in found] == ["cves[1].id", "conflicts[0]"]


def test_problems_of_the_yaml_are_violations_too():
    text = yaml.safe_dump(manifest(), sort_keys=False).replace("transition: 30", "transition: 30.0")
    found = violations(text)
    assert "can be read in more than one way" in str(found[0]) + str(found[-1])
    assert violations("- a\n- b\n")[0].message.startswith("a mapping is expected")
    assert violations("")[0].message == "the document is empty"
