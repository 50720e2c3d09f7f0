# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches come after those that they require."""

from __future__ import annotations

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._bundle_directory import BundleDirectory
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._requirements import apply_order


def patch(patch_id, requires=(), conflicts=(), content=b""):
    value = {"id": patch_id, "requires": list(requires), "conflicts": list(conflicts), "cves": []}
    return BundleDirectory(f"/{patch_id}", value, patch_id.encode() + content, b"", b"")


def order(*patches):
    ordered, violations = apply_order(list(patches))
    return [each.id for each in ordered], [violation.message for violation in violations]


def test_order():
    patches = [patch("c", ["b", "elsewhere"]), patch("x"), patch("b", ["a"]), patch("a")]
    assert order(*patches) == (["x", "a", "b", "c"], [])


def test_a_patch_that_is_named_twice_is_one():
    assert order(patch("a"), patch("a")) == (["a"], [])


def test_two_patches_of_one_name():
    assert "with other contents" in order(patch("a"), patch("a", content=b"!"))[1][0]


def test_circle():
    _ids, violations = order(patch("a", ["b"]), patch("b", ["a"]), patch("c"))
    assert violations == ["these patches require each other in a circle: a, b"]


def test_conflict():
    _ids, violations = order(patch("a", conflicts=["b", "elsewhere"]), patch("b"))
    assert violations == ["a conflicts with b, which is asked for too"]
