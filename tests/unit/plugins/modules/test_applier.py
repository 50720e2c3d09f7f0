# SPDX-License-Identifier: GPL-3.0-or-later
"""The applier is installed as it is on the controller, and removed without a rest."""

from __future__ import annotations

import hashlib
import os
import sys

import pytest
from ansible_collections.wfpatch.fleet.plugins.modules import applier
from ansible_collections.wfpatch.fleet.tests.unit.conftest import FAKE_APPLIER


@pytest.fixture
def place(tmp_path, run_module, monkeypatch):
    """A host's root folder with a function that runs the module there."""
    monkeypatch.setattr(applier.os, "geteuid", lambda: 0)
    root = tmp_path / "root"
    root.mkdir()

    def run(source=FAKE_APPLIER, staged=True, **options):
        options = {
            "src": str(source),
            "digest": hashlib.sha256(source.read_bytes()).hexdigest(),
            "staged": str(source) if staged else None,
            "interpreter": sys.executable,
            "signers": "a@b ssh-ed25519 AAAA\n",
            "program": str(root / "sbin/wfpatch"),
            "library": str(root / "lib/wfpatch"),
            "store": str(root / "var/wfpatch"),
            "allowed_signers": str(root / "etc/wfpatch/allowed_signers"),
            **options,
        }
        return run_module(applier, **options)

    run.root = root
    return run


def tree(root):
    return sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _folders, names in os.walk(root)
        for name in names
    )


INSTALLED = ["etc/wfpatch/allowed_signers", "lib/wfpatch/wfpatch", "sbin/wfpatch"]


def test_install_twice_and_remove(place):
    asked = place(staged=False)
    assert asked["_wanted"]
    assert tree(place.root) == []
    first = place()
    assert first["changed"]
    assert first["version"] == "0.1.0"
    assert tree(place.root) == INSTALLED
    assert first["diff"]["after"].splitlines() == first["paths"]
    for path in ("lib/wfpatch/wfpatch", "sbin/wfpatch"):
        assert (place.root / path).stat().st_mode & 0o7777 == 0o755
    second = place(staged=False)
    assert not second["changed"]
    assert second["version"] == "0.1.0"
    (place.root / "var/wfpatch/bundles/a").mkdir(parents=True)
    (place.root / "var/wfpatch/wanted.json").write_text("{}")
    planned = place(state="absent", check=True)
    assert planned["changed"]
    assert len(planned["paths"]) == 5
    removed = place(state="absent")
    assert removed["paths"] == planned["paths"]
    assert tree(place.root) == []
    assert sorted(os.listdir(place.root / "var")) == []
    assert not place(state="absent")["changed"]


def test_check_mode_changes_nothing(place):
    planned = place(staged=False, check=True)
    assert planned["changed"]
    assert "version" not in planned
    assert os.listdir(place.root) == []


def test_what_differs_is_replaced(place, tmp_path):
    place()
    (place.root / "sbin/wfpatch").write_text("#!/bin/sh\n")
    (place.root / "lib/wfpatch/wfpatch").chmod(0o777)
    (place.root / "etc/wfpatch/allowed_signers").write_text("somebody else\n")
    assert [os.path.basename(path) for path in place()["paths"]] == [
        "wfpatch",
        "allowed_signers",
    ]
    newer = tmp_path / "newer"
    newer.write_text(FAKE_APPLIER.read_text() + "\n# newer\n")
    assert place(newer, staged=False)["_wanted"]
    assert [os.path.relpath(path, place.root) for path in place(newer)["paths"]] == [
        "lib/wfpatch/wfpatch"
    ]


def test_signers_are_left_alone_when_not_given(place):
    place()
    (place.root / "etc/wfpatch/allowed_signers").write_text("mine\n")
    assert not place(signers=None)["changed"]


def test_files_of_others_are_kept(place):
    place()
    (place.root / "var/wfpatch/notes").write_text("mine\n")
    place(state="absent")
    assert tree(place.root) == ["var/wfpatch/notes"]


def test_an_old_python(place, tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\necho 3.8\n")
    old.chmod(0o755)
    found = place(interpreter=str(old))
    assert found["reason"] == "python_too_old"
    assert found["msg"].endswith("is 3.8")
    assert place(interpreter=str(tmp_path / "none"))["reason"] == "python_missing"
    assert tree(place.root) == []


def test_an_applier_that_does_not_start(place, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("raise SystemExit(1)\n")
    assert place(broken)["reason"] == "result_invalid"


def test_not_root(place, monkeypatch):
    monkeypatch.setattr(applier.os, "geteuid", lambda: 1000)
    assert place()["reason"] == "no_permission"


def test_without_the_action_half(place):
    assert "action half" in place(digest=None)["msg"]
