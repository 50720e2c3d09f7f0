# SPDX-License-Identifier: GPL-3.0-or-later
"""The packed applier: one file, always the same, that starts on the oldest and newest Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
#: Debian releases and the Python each has: the floor, and the newest that is tried.
PYTHONS = {"bullseye": "3.9", "trixie": "3.13"}


def pack(checkout: Path, output: Path, **environment: str) -> None:
    subprocess.run(
        [sys.executable, str(checkout / "setup" / "pack_applier.py"), str(output)],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    output = tmp_path_factory.mktemp("dist") / "wfpatch"
    pack(TOP, output)
    return output


def test_equal_sources_give_equal_bytes(packed, tmp_path):
    # Elsewhere, later, in another order of directory entries, under another mask and time zone.
    other = tmp_path / "elsewhere"
    for part in ("applier", "plugins", "setup", "requirements"):
        shutil.copytree(TOP / part, other / part, ignore=shutil.ignore_patterns("__pycache__"))
    previous = os.umask(0o077)
    try:
        pack(other, tmp_path / "wfpatch", TZ="Pacific/Kiritimati")
    finally:
        os.umask(previous)
    assert (tmp_path / "wfpatch").read_bytes() == packed.read_bytes()
    assert (tmp_path / "wfpatch").stat().st_mode & 0o777 == 0o755


def test_a_changed_source_changes_the_file(packed, tmp_path):
    other = tmp_path / "elsewhere"
    for part in ("applier", "plugins", "setup", "requirements"):
        shutil.copytree(TOP / part, other / part, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "applier" / "wfpatch" / "errors.py").open("a") as stream:
        stream.write("# changed\n")
    pack(other, tmp_path / "wfpatch")
    assert (tmp_path / "wfpatch").read_bytes() != packed.read_bytes()


def test_it_holds_sources_and_the_licence_of_what_it_bundles(packed):
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
    assert names == sorted(names)
    assert "elftools/LICENSE" in names
    assert not [name for name in names if name.endswith(".pyc")]
    own = {str(p.relative_to(TOP / "applier")) for p in (TOP / "applier").rglob("*.py")}
    assert own <= set(names)


def start(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_ignores_the_callers_python_settings(packed, tmp_path):
    (tmp_path / "elftools.py").write_text("raise SystemExit('not the bundled one')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert "usage" in start([str(packed), "--help"], env=environment, cwd=tmp_path).lower()


@pytest.mark.skipif(os.geteuid() != 0, reason="a root of another Debian release is made as root")
@pytest.mark.parametrize("suite", PYTHONS)
def test_it_starts_on_other_pythons(packed, suite):
    made = subprocess.run(
        [str(TOP / "setup" / "root"), suite, "python3"],
        check=True,
        capture_output=True,
        text=True,
    )
    root = made.stdout.strip()
    told = start(["chroot", root, "python3", "-c", "import sys; print(sys.version)"])
    assert told.startswith(PYTHONS[suite] + ".")
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-euc",
         'mount --bind "$1" "$2/mnt"; exec chroot "$2" python3 -I /mnt/wfpatch --help',
         "start", str(packed.parent), root],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
