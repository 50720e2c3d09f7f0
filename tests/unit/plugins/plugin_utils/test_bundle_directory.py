# SPDX-License-Identifier: GPL-3.0-or-later
"""manifest.yml, bundle.json and patch.elf of a patch say the same, or the patch is refused."""

from __future__ import annotations

import base64
import json

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._bundle_directory import (
    read_bundle_directory,
)


def test_a_sound_patch(make_patch):
    folder = make_patch("example-a", health_check={"command": ["true", "ä"], "timeout": 1})
    patch, violations = read_bundle_directory(str(folder))
    assert violations == []
    assert patch.id == "example-a"
    assert patch.cves == ("CVE-2026-0001",)
    payload = patch.payload()
    assert base64.b64decode(payload["bundle"]) == (folder / "bundle.json").read_bytes()
    assert base64.b64decode(payload["patch"]) == (folder / "patch.elf").read_bytes()


def refused(folder):
    patch, violations = read_bundle_directory(str(folder))
    assert patch is None
    return [str(violation) for violation in violations]


def test_manifest_that_was_edited_after_signing(make_patch):
    folder = make_patch()
    source = folder / "manifest.yml"
    text = source.read_text().replace("transition: 30", "transition: 60")
    source.write_text(text.replace("- 1:1.0-1", "- 1:1.0-1\n  - 1:1.0-2"))
    found = refused(folder)
    assert len(found) == 2
    line = 1 + text.splitlines().index("  transition: 60") + 1
    assert found[1].startswith(f"{source}:{line}: timeouts.transition: says 60, but bundle.json")
    assert "target.versions" in found[0]


def test_bundle_that_is_not_canonical(make_patch):
    folder = make_patch()
    bundle = folder / "bundle.json"
    bundle.write_text(json.dumps(json.loads(bundle.read_bytes())))
    assert "not in canonical form" in refused(folder)[0]
    bundle.write_text("{")
    assert "is not JSON" in refused(folder)[0]


def test_bundle_with_a_number_in_place_of_a_truth_value(make_patch):
    folder = make_patch()
    bundle = folder / "bundle.json"
    bundle.write_bytes(bundle.read_bytes().replace(b'"schema":1', b'"schema":true'))
    assert "schema: says 1, but bundle.json says true" in refused(folder)[0]


def test_patch_elf_that_was_altered(make_patch):
    folder = make_patch()
    (folder / "patch.elf").write_bytes(b"\x7fELFexample-b")
    assert ["artifact.sha256" in text for text in refused(folder)] == [True]
    (folder / "patch.elf").write_bytes(b"\x7fELF")
    assert len(refused(folder)) == 2


@pytest.mark.parametrize("name", ["manifest.yml", "bundle.json", "bundle.json.sig", "patch.elf"])
def test_missing_files(make_patch, name):
    folder = make_patch()
    (folder / name).unlink()
    found = refused(folder)
    assert len(found) == 1
    assert found[0].startswith(f"{folder / name}: does not exist")


def test_everything_that_is_wrong_at_once(make_patch):
    folder = make_patch()
    (folder / "bundle.json.sig").write_text("signed, honestly")
    (folder / "patch.elf").unlink()
    source = folder / "manifest.yml"
    source.write_text(source.read_text().replace("policy: auto", "policy: fast\nextra: 1"))
    assert len(refused(folder)) == 4


def test_a_manifest_that_is_not_utf8(make_patch):
    folder = make_patch()
    (folder / "manifest.yml").write_bytes(b"a: b\nc: \xff\n")
    assert refused(folder) == [f"{folder / 'manifest.yml'}:2: is not UTF-8"]
