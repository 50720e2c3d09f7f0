# SPDX-License-Identifier: GPL-3.0-or-later
"""setup/collection places the tracked files, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path):
    """A small checkout with the script, its files tracked."""
    top = tmp_path / "checkout"
    (top / "setup").mkdir(parents=True)
    shutil.copy(TOP / "setup" / "collection", top / "setup" / "collection")
    (top / "plugins").mkdir()
    (top / "plugins" / "a name with spaces.py").write_text("one\n")
    (top / "going").write_text("two\n")
    (top / ".gitignore").write_text("/dist/\n/.work/\n")
    git(top, "init", "--quiet")
    git(top, "add", "--all")
    (top / "untracked").write_text("three\n")
    return top


def git(top, *words):
    subprocess.run(["git", "-C", str(top), *words], check=True, capture_output=True)


def place(top, *words):
    done = subprocess.run(
        [str(top / "setup" / "collection"), *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()) / "ansible_collections" / "wfpatch" / "fleet"


def test_it_copies_what_is_tracked(checkout):
    fleet = place(checkout)
    assert fleet == checkout / ".work" / "collections" / "ansible_collections" / "wfpatch" / "fleet"
    assert not any(part.is_symlink() for part in (fleet, *fleet.parents))
    assert (fleet / "plugins" / "a name with spaces.py").read_text() == "one\n"
    assert not (fleet / "untracked").exists()
    assert not (fleet / "dist").exists()
    assert os.access(fleet / "setup" / "collection", os.X_OK)


def test_it_follows_changes_and_deletions(checkout):
    place(checkout)
    (checkout / "plugins" / "a name with spaces.py").write_text("changed\n")
    (checkout / "going").unlink()
    (checkout / "dist").mkdir()
    (checkout / "dist" / "wfpatch").write_text("applier\n")
    fleet = place(checkout)
    (fleet / "tests" / "output").mkdir(parents=True)
    fleet = place(checkout)
    assert (fleet / "plugins" / "a name with spaces.py").read_text() == "changed\n"
    assert not (fleet / "going").exists()
    assert (fleet / "dist" / "wfpatch").read_text() == "applier\n"
    assert (fleet / "tests" / "output").is_dir()
    assert sorted(p.name for p in fleet.parent.iterdir()) == [".lock", "fleet"]


def test_another_collections_path(checkout, tmp_path):
    fleet = place(checkout, str(tmp_path / "collections"))
    assert fleet.parents[2] == tmp_path / "collections"
    assert (fleet / "going").exists()


def test_outside_a_checkout_it_says_so(checkout):
    shutil.rmtree(checkout / ".git")
    done = subprocess.run(
        [str(checkout / "setup" / "collection")],
        capture_output=True,
        text=True,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(checkout.parent)},
    )
    assert done.returncode == 1
    assert "is no git checkout" in done.stderr


def test_what_is_built_has_all_that_hosts_get(tmp_path):
    """ansible-galaxy leaves out what galaxy.yml says, and keeps modes."""
    fleet = place(TOP, str(tmp_path / "collections"))
    subprocess.run(
        [Path(sys.executable).with_name("ansible-galaxy"), "collection", "build", str(fleet)]
        + ["--output-path", str(tmp_path)],
        check=True,
        capture_output=True,
        env={**os.environ, "ANSIBLE_HOME": str(tmp_path / "home")},
    )
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        modes = {member.name: member.mode for member in archive.getmembers()}
    sources = {f"kmod/{path.name}" for path in (TOP / "kmod").glob("*.[ch]")} & set(tracked(TOP))
    assert len(sources) > 5
    expected = {
        "kmod/Kbuild",
        "kmod/dkms.conf",
        "kmod/wfpatch.rules",
        "kmod/include/uapi/wfpatch.h",
    }
    assert sources | expected <= set(modes)
    assert modes["kmod/dkms_sign"] & 0o100


def tracked(top):
    listed = subprocess.run(
        ["git", "-C", str(top), "ls-files"], check=True, capture_output=True, text=True
    )
    return listed.stdout.splitlines()
