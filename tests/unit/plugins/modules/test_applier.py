# SPDX-License-Identifier: GPL-3.0-or-later
"""The applier is installed as it is on the controller, and removed without a rest."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest
from ansible_collections.wfpatch.fleet.plugins.module_utils import _watch_unit
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
            "unit_folder": str(root / "etc/systemd/system"),
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


def test_what_is_there_already_is_not_started_to_say_so(place, tmp_path):
    """A host with nothing to do costs no start of the applier, nor of its Python."""
    packed = tmp_path / "packed"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("wfpatch/__init__.py", '__version__ = "1.2.3"\n')
        archive.writestr("__main__.py", 'print(\'{"version": "1.2.3"}\')\n')
    started = tmp_path / "started"
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\necho >>{started}\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    first = place(packed, interpreter=str(interpreter))
    assert (first["changed"], first["version"]) == (True, "1.2.3")
    times = started.read_text()
    assert times
    second = place(packed, interpreter=str(interpreter))
    assert (second["changed"], second["version"]) == (False, "1.2.3")
    assert started.read_text() == times


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


def test_revoked_keys(place):
    revoked = b"SSHKRL\n\0\xff"
    given = {"revoked": base64.b64encode(revoked).decode()}
    assert place(**given)["changed"]
    path = place.root / "etc/wfpatch/revoked_keys"
    assert path.read_bytes() == revoked
    assert not place(**given)["changed"]
    assert not place()["changed"], "it is left as it is"
    place(state="absent")
    assert tree(place.root) == []


def test_facts(place):
    file = place.root / "etc/facts.d/wfpatch.fact"
    assert place(facts_file=str(file))["paths"][-1] == str(file)
    assert not place(facts_file=str(file))["changed"]
    (place.root / "sbin/wfpatch").write_text("#!/bin/sh\necho oops >&2; exit 1\n")
    assert json.loads(subprocess.check_output([file])) == {}
    (place.root / "sbin/wfpatch").write_text('#!/bin/sh\nprintf \'"%s"\' "$*"\n')
    root = place.root
    assert json.loads(subprocess.check_output([file])) == (
        f"--store {root}/var/wfpatch --allowed-signers {root}/etc/wfpatch/allowed_signers "
        "--json facts"
    )
    place(state="absent", facts_file=str(file))
    assert tree(place.root) == []


SYSTEMCTL = """#!/bin/sh
# Remembers what it was told; is-enabled and is-active answer by the last of it.
cd "$(dirname "$0")" || exit 1
case $1 in
is-enabled) test -e enabled ;;
is-active) test -e active ;;
enable) touch enabled; echo "$*" >> told ;;
disable) rm -f enabled; echo "$*" >> told ;;
restart) test ! -e broken || { echo no such luck >&2; exit 5; }; touch active; echo "$*" >> told ;;
stop) rm -f active; echo "$*" >> told ;;
*) echo "$*" >> told ;;
esac
"""


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """A stand-in for systemctl: told() lists what it was told since the last call."""
    folder = tmp_path / "systemd"
    folder.mkdir()
    (folder / "systemctl").write_text(SYSTEMCTL)
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(_watch_unit, "BOOTED", str(folder))

    def told():
        path = folder / "told"
        words = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return words

    told.folder = folder
    return told


UNIT = "etc/systemd/system/wfpatch-watch.service"
ON = ["daemon-reload", "enable wfpatch-watch.service", "restart wfpatch-watch.service"]


def test_the_watch(place, systemd, tmp_path):
    planned = place(watch=True, check=True)
    assert planned["services"] == [
        "wfpatch-watch.service: enabled",
        "wfpatch-watch.service: started",
    ]
    assert systemd() == [] and tree(place.root) == []
    assert place(watch=True)["services"] == planned["services"]
    assert systemd() == ON
    text = (place.root / UNIT).read_text()
    (command,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    root = place.root
    assert command == (
        f'ExecStart="{root}/sbin/wfpatch" "--store" "{root}/var/wfpatch" '
        f'"--allowed-signers" "{root}/etc/wfpatch/allowed_signers" "watch"'
    )
    assert not place(watch=True)["changed"]
    assert not place()["changed"], "not given: it is left as it is"
    assert systemd() == []

    more = place(watch=True, watch_arguments=["--policy", 'a%b"$c'])
    assert more["services"] == ["wfpatch-watch.service: restarted"]
    assert (place.root / UNIT).read_text().count('"--policy" "a%%b\\"$$c"') == 1
    assert systemd() == ["daemon-reload", "restart wfpatch-watch.service"]

    newer = tmp_path / "newer"
    newer.write_text(FAKE_APPLIER.read_text() + "\n# newer\n")
    replaced = place(newer, watch=True, watch_arguments=["--policy", 'a%b"$c'])
    assert replaced["services"] == ["wfpatch-watch.service: restarted"]
    assert systemd() == ["restart wfpatch-watch.service"]

    planned = place(watch=False, check=True)
    assert planned["services"] == [
        "wfpatch-watch.service: stopped",
        "wfpatch-watch.service: disabled",
    ]
    assert systemd() == []
    assert place(watch=False)["services"] == planned["services"]
    assert systemd()[:2] == ["stop wfpatch-watch.service", "disable wfpatch-watch.service"]
    assert not (place.root / UNIT).exists()
    assert not place(watch=False)["changed"]


def test_the_watch_goes_with_the_applier(place, systemd):
    place(watch=True)
    systemd()
    removed = place(state="absent")
    assert str(place.root / UNIT) in removed["paths"]
    assert systemd()[:2] == ["stop wfpatch-watch.service", "disable wfpatch-watch.service"]
    assert tree(place.root) == []


def test_a_watch_that_does_not_start(place, systemd):
    (systemd.folder / "broken").touch()
    found = place(watch=True)
    assert (found["reason"], found["failed"]) == ("watch_failed", True)
    assert "no such luck" in found["msg"]


def test_a_host_without_systemd(place, monkeypatch, tmp_path):
    monkeypatch.setattr(_watch_unit, "BOOTED", str(tmp_path / "none"))
    found = place(watch=True)
    assert (found["reason"], found["failed"]) == ("watch_unsupported", True)
    assert not place(watch=False)["changed"]
    assert not (place.root / UNIT).exists()
