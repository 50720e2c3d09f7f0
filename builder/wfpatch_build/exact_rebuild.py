# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds a Debian source package as Debian did, so that its binaries are the stock ones again.

What comes out of it: the symbol table of the unstripped binary, the argument lists of all compiler
calls, and a tree in which single objects can be compiled anew. Debian's builders unpack below
/build/reproducible-path; dpkg-buildpackage sets SOURCE_DATE_EPOCH from the changelog.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wfpatch_build.build_tree import BuildTree
from wfpatch_build.cache import entry, key_of
from wfpatch_build.chroot import LOG_DIRECTORY, LOG_NAME, package_chroot
from wfpatch_build.errors import Refusal
from wfpatch_build.sandbox import Sandbox

_BUILD_ROOT = "/build/reproducible-path"
_LAYOUT = 1


@dataclass(frozen=True)
class ExactRebuild:
    """A built source package. ``build`` is its tree; ``staged`` the directories of its binary
    packages' files as they were packed."""

    build: BuildTree
    staged: tuple[Path, ...]

    def staged_file(self, path: str) -> Path | None:
        """The rebuilt file that is installed as ``path`` (absolute), links resolved."""
        for root in self.staged:
            found = root / path.lstrip("/")
            if found.is_symlink():
                target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(found)))
                return self.staged_file(target)
            if found.is_file():
                return found
        return None


def rebuild(suite: str, source_files: Sequence[Path]) -> ExactRebuild:
    """Build the source package whose files these are (.dsc first), or take it from the cache."""
    root = package_chroot(suite, source_files)
    dsc = source_files[0]
    name = f"{dsc.stem}-{key_of(_LAYOUT, root.parent.name, dsc.read_text(errors='replace'))}"
    with entry("build", name.replace("~", "_")) as (directory, complete):
        parent, log = directory / "parent", directory / "log"
        if not complete:
            parent.mkdir()
            log.mkdir()
            _build(root, parent, log, source_files)
        tree = _source_directory(parent)
    environment = {"DEB_BUILD_OPTIONS": f"nocheck parallel={os.cpu_count() or 1}"}
    build = BuildTree(
        tree=tree,
        path=f"{_BUILD_ROOT}/{tree.name}",
        sandbox=Sandbox(root, environment=environment),
        log=log / LOG_NAME,
        objects=directory / "objects",
    )
    staged = sorted(p.parent for p in (tree / "debian").glob("*/DEBIAN"))
    return ExactRebuild(build, tuple(staged))


def _source_directory(parent: Path) -> Path:
    """The unpacked source; hidden directories are variants that another builder works on."""
    return next(p for p in sorted(parent.iterdir()) if p.is_dir() and p.name[0] != ".")


def _build(root: Path, parent: Path, log: Path, source_files: Sequence[Path]) -> None:
    for file in source_files:
        shutil.copyfile(file, parent / file.name)
    sandbox = Sandbox(
        root,
        binds=((parent, _BUILD_ROOT), (log, LOG_DIRECTORY)),
        environment={"DEB_BUILD_OPTIONS": f"nocheck parallel={os.cpu_count() or 1}"},
    )
    unpack = ["dpkg-source", "--no-check", "-x", source_files[0].name]
    sandbox.check("build_failed", "unpacking the source package", unpack, _BUILD_ROOT)
    tree = _source_directory(parent)
    done = sandbox.run(
        ["dpkg-buildpackage", "-b", "-uc", "-us"],
        f"{_BUILD_ROOT}/{tree.name}",
        log=log / "build.log",
    )
    if done.returncode:
        text = (log / "build.log").read_text(errors="replace")
        kept = log.parent.with_name(f"{log.parent.name}.failed.log")
        kept.write_text(text)
        raise Refusal(
            "build_failed",
            f"dpkg-buildpackage failed ({done.returncode}); the log is {kept}; its end:\n"
            + "\n".join(text.splitlines()[-15:]),
        )
    for file in parent.iterdir():
        if not file.is_dir() and not re.search(r"\.(dsc|buildinfo)$", file.name):
            file.unlink()


def installed_elf_files(rebuilt: ExactRebuild) -> Iterator[Path]:
    """All ELF files in the staged packages, debug symbols left out."""
    for root in rebuilt.staged:
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and "/usr/lib/debug/" not in str(path):
                with path.open("rb") as stream:
                    if stream.read(4) == b"\x7fELF":
                        yield path
