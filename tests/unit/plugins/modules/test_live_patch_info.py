# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from memory is returned; only what was tampered with, or not read, fails."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.modules import live_patch_info


@pytest.fixture
def info(host, make_patch, run_module):
    host.add(make_patch("example-a"))

    def run(**options):
        return run_module(live_patch_info, **host.paths(), **options)

    return run


def test_states(info, host):
    found = info()
    assert (found["state"], found["changed"], found["exit_code"]) == ("vulnerable", False, 3)
    assert "failed" not in found
    assert (found["cves"], found["opted_out"]) == ({"CVE-2026-0001": "vulnerable"}, 0)
    assert found["patches"] == {"example-a": "vulnerable"}
    host.tell(processes=[{"pid": 1, "comm": "example", "patches": ["example-a"]}])
    assert info()["cves"] == {"CVE-2026-0001": "patched"}
    assert info(verify=False)["state"] == "patched"
    assert info(check=True)["state"] == "patched"


@pytest.mark.parametrize(
    ("exit_code", "reason", "fails"),
    [
        (1, "memory_unreadable", True),
        (2, "usage", True),
        (4, "stragglers", False),
        (5, "tampered", True),
        (6, "busy", True),
        (7, "no_matching_process", False),
    ],
)
def test_ends(info, host, exit_code, reason, fails):
    host.tell(exit={"verify": [exit_code, reason]})
    found = info()
    assert found.get("failed", False) is fails
    assert found["reason"] == reason
    assert found["result"]["reason"] == reason


def test_tampering_can_be_reported_only(info, host):
    host.tell(exit={"verify": [5, "tampered"]})
    found = info(tampered="report")
    assert "failed" not in found
    assert found["reason"] == "tampered"


def test_no_applier(info, host):
    host.program.unlink()
    found = info()
    assert found["failed"]
    assert found["reason"] == "applier_missing"


def test_several_patches_for_a_cve():
    pairs = [("CVE-2026-0001", "not_affected"), ("CVE-2026-0001", "patched"), ("b", "vulnerable")]
    expected = {"CVE-2026-0001": "patched", "b": "vulnerable"}
    assert live_patch_info.states(pairs) == live_patch_info.states(reversed(pairs)) == expected
    process = {"patches": [{"id": "a", "state": "vulnerable"}], "opted_out": "host"}
    result = {"processes": [process, {**process, "opted_out": None}], "cves": []}
    assert live_patch_info.overview(result)["opted_out"] == 1
