# SPDX-License-Identifier: GPL-3.0-or-later
"""A policy selects by id, CVE, severity and day of release, and never nothing."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._bundle_directory import BundleDirectory
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_patches import select_patches
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_policy import PolicyInvalid


def patch(patch_id, severity, released, cve="", requires=(), supersedes=()):
    manifest = {
        "id": patch_id,
        "cves": [{"id": cve or f"CVE-2026-{patch_id}", "severity": severity}] if severity else [],
        "released": released,
        "requires": list(requires),
        "supersedes": list(supersedes),
    }
    return BundleDirectory(f"/{patch_id}", manifest, b"", b"", b"")


PATCHES = [
    patch("old", "low", "2026-01-01"),
    patch("base", "low", "2026-01-10"),
    patch("fix", "high", "2026-01-15", requires=["base", "elsewhere"]),
    patch("late", "critical", "2026-02-01", requires=["fix"], supersedes=["old"]),
    patch("bug", "", "2026-01-20"),
]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"ids": ["bug", "old"]}, ["old", "bug"]),
        ({"cves": ["CVE-2026-old"]}, ["old"]),
        # what is required comes along
        ({"severity": "high", "released_before": "2026-02-01"}, ["base", "fix"]),
        ({"severity": "critical"}, ["base", "fix", "late"]),
        # what is superseded does not
        ({"all_applicable": True}, ["base", "fix", "late", "bug"]),
        (
            {"all_applicable": True, "released_before": "2026-02-01"},
            ["old", "base", "fix", "bug"],
        ),
        (
            {"severity": "high", "ids": ["bug"], "released_before": "2026-01-21"},
            ["base", "fix", "bug"],
        ),
    ],
)
def test_selection(wanted, expected):
    assert [each.id for each in select_patches(PATCHES, wanted)] == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"ids": ["nosuch"]}, "patches.ids: there is no patch nosuch; there are: old, base,"),
        ({"cves": ["CVE-2026-9"]}, "patches.cves: no patch is for CVE-2026-9"),
        ({"ids": ["old"], "released_before": "2026-01-01"}, "patches: none of 5 patches is"),
    ],
)
def test_what_cannot_be_had(wanted, message):
    with pytest.raises(PolicyInvalid) as caught:
        select_patches(PATCHES, wanted)
    assert caught.value.violations[0].startswith(message)


def test_a_required_patch_that_came_too_late():
    patches = [patch("a", "low", "2026-01-01", requires=["b"]), patch("b", "low", "2026-03-01")]
    with pytest.raises(PolicyInvalid, match="a requires b, which was released on 2026-03-01"):
        select_patches(patches, {"ids": ["a"], "released_before": "2026-02-01"})
