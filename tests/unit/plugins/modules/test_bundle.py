# SPDX-License-Identifier: GPL-3.0-or-later
"""Bundles enter the store verified and whole, or not at all."""

from __future__ import annotations

import os

import pytest
from ansible_collections.wfpatch.fleet.plugins.modules import bundle
from ansible_collections.wfpatch.fleet.tests.unit.conftest import payload


@pytest.fixture
def push(host, run_module):
    def run(*folders, **options):
        payloads = [payload(folder) for folder in folders]
        src = [str(folder) for folder in folders]
        options = {"src": src, "payloads": payloads, **host.paths(), **options}
        return run_module(bundle, **options)

    return run


def stored(host):
    folder = host.store / "bundles"
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_push_twice(push, host, make_patch):
    folders = [make_patch("example-a"), make_patch("example-b")]
    planned = push(*folders, check=True)
    assert planned["changed"]
    assert stored(host) == []
    first = push(*folders)
    assert first["changed"]
    assert [each["id"] for each in first["bundles"]] == ["example-a", "example-b"]
    assert first["diff"] == planned["diff"]
    assert stored(host) == ["example-a", "example-b"]
    for name in ("bundle.json", "bundle.json.sig", "patch.elf"):
        there = host.store / "bundles" / "example-a" / name
        assert there.read_bytes() == (folders[0] / name).read_bytes()
        assert there.stat().st_mode & 0o777 == 0o644
    second = push(*folders)
    assert not second["changed"]
    assert second["diff"]["before"] == second["diff"]["after"]


def test_a_newer_bundle_replaces_the_older_one(push, host, make_patch, tmp_path):
    old = make_patch("example-a")
    push(old)
    old.rename(tmp_path / "old")
    new = make_patch("example-a", summary="Another text")
    assert push(new)["changed"]
    assert (host.store / "bundles/example-a/bundle.json").read_bytes() == (
        new / "bundle.json"
    ).read_bytes()
    assert stored(host) == ["example-a"]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("field", ["bundle", "signature", "patch"])
def test_what_does_not_verify_stays_outside(push, host, make_patch, field, check):
    sound = payload(make_patch())
    other = payload(make_patch("example-b"))
    found = push(src=["x"], payloads=[{**sound, field: other[field]}], check=check)
    assert found["failed"]
    assert found["reason"] in ("signature_invalid", "bundle_altered")
    assert found["result"]["state"] == "blocked"
    assert stored(host) == []


def test_an_unknown_signer(push, host, make_patch):
    host.allowed_signers.write_text("")
    assert push(make_patch())["reason"] == "signature_invalid"
    assert stored(host) == []


@pytest.mark.parametrize("patch_id", ["../../evil", ".hidden", "a/b", "", "a\n"])
def test_an_id_is_no_path(push, host, make_patch, patch_id):
    sound = payload(make_patch())
    found = push(src=["x"], payloads=[{**sound, "id": patch_id}])
    assert found["reason"] == "usage"
    assert stored(host) == []


def test_without_an_applier(push, host, make_patch):
    folder = make_patch()
    host.program.unlink()
    assert push(folder)["reason"] == "applier_missing"
    planned = push(folder, check=True)
    assert planned["changed"]


def test_without_the_action_half(push):
    assert "action half" in push(src=["x"], payloads=None)["msg"]


def test_remove(push, host, make_patch, run_module):
    push(make_patch("example-a"), make_patch("example-b"))
    options = {"state": "absent", "ids": ["example-a", "nosuch"], **host.paths()}
    assert run_module(bundle, check=True, **options)["changed"]
    removed = run_module(bundle, **options)
    assert [(each["id"], each["changed"]) for each in removed["bundles"]] == [
        ("example-a", True),
        ("nosuch", False),
    ]
    assert stored(host) == ["example-b"]
    assert not run_module(bundle, **options)["changed"]
    assert run_module(bundle, **{**options, "ids": [".."]})["reason"] == "usage"


def test_contents_are_kept_out_of_logs():
    options = bundle.payloads_spec()["options"]
    assert [name for name, spec in options.items() if spec.get("no_log")] == [
        "bundle",
        "signature",
        "patch",
    ]


def test_what_nobody_needs_goes(push, host, make_patch, run_module):
    push(make_patch("example-a"), make_patch("example-b"))
    host.tell(garbage=["example-a"])
    given = {"state": "absent", "unneeded": True, **host.paths()}
    planned = run_module(bundle, check=True, **given)
    assert planned["changed"] and stored(host) == ["example-a", "example-b"]
    done = run_module(bundle, **given)
    assert done["bundles"] == [{"id": "example-a", "changed": True, "digest": None}]
    assert done["diff"]["before"] == "example-a ab12\n" == planned["diff"]["before"]
    assert stored(host) == ["example-b"]
    assert not run_module(bundle, **given)["changed"]
    neither = run_module(bundle, state="absent", **host.paths())
    assert neither["failed"] and "unneeded" in neither["msg"]
    host.program.unlink()
    assert run_module(bundle, **given)["reason"] == "applier_missing"
