# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts are grouped by the states of their CVEs, by the filter and by constructed groups alike."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wfpatch.fleet.plugins.filter.cve_groups import FilterModule, cve_groups

FLEET = pathlib.Path(__file__).resolve().parents[4]
FACTS = {
    "state": "vulnerable",
    "cves": {"CVE-2026-0001": "patched", "CVE-2026-0002": "vulnerable"},
}
GROUPS = [
    "wfpatch_CVE_2026_0001_patched",
    "wfpatch_CVE_2026_0002_vulnerable",
    "wfpatch_state_vulnerable",
]


def test_the_filter_is_there():
    assert FilterModule().filters() == {"cve_groups": cve_groups}


def test_of_facts_and_of_results():
    assert cve_groups(FACTS) == GROUPS
    cves = [{"id": cve, "state": state, "patch": "a"} for cve, state in FACTS["cves"].items()]
    result = {"state": "vulnerable", "cves": cves}
    assert cve_groups(result) == GROUPS
    assert cve_groups({"state": "vulnerable", "result": result, "changed": False}) == GROUPS
    assert cve_groups({"state": "not_affected"}, "x y") == ["x_y_state_not_affected"]


@pytest.mark.parametrize("value", [None, {}, [], {"failed": True}, "patched"])
def test_what_says_nothing(value):
    with pytest.raises(AnsibleFilterError, match="has no state"):
        cve_groups(value)


def test_constructed_groups_from_cached_facts(tmp_path):
    """The inventory that docs/watch.md shows."""
    page = (FLEET / "docs" / "watch.md").read_text(encoding="utf-8")
    (shown,) = [
        text.partition("\n```")[0]
        for text in page.split("```yaml\n")
        if text.startswith("plugin: ansible.builtin.constructed")
    ]
    (tmp_path / "cves.constructed.yml").write_text(shown)
    (tmp_path / "hosts.yml").write_text("all: {hosts: {web1: , web2: }}\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(tmp_path / "cache"),
    }

    def run(command, *words):
        program = os.path.join(os.path.dirname(sys.executable), command)
        return subprocess.run(
            [program, "-i", str(tmp_path / "hosts.yml"), *words],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    facts = json.dumps({"cacheable": True, "ansible_local": {"wfpatch": FACTS}})
    run("ansible", "web1", "-m", "ansible.builtin.set_fact", "-a", facts)
    inventory = run("ansible-inventory", "-i", str(tmp_path / "cves.constructed.yml"), "--list")
    found = json.loads(inventory)
    for group in GROUPS:
        assert found[group]["hosts"] == ["web1"], inventory
