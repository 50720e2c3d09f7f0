# SPDX-License-Identifier: GPL-3.0-or-later
"""Variants of a built source tree: the same files with patches applied.

A variant shares all untouched files with the built tree by hard links, generated ones included, so
that one object can be compiled in it as in the tree itself. Line numbers stay those of the tree.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from wfpatch_build.compile_log import SOURCE_SUFFIXES
from wfpatch_build.errors import Refusal
from wfpatch_build.line_numbers import with_line_numbers_of

_NUMBERED_SUFFIXES = (
    *(s for s in SOURCE_SUFFIXES if s not in (".S", ".s", ".sx")),
    *(".h", ".hh", ".hpp", ".hxx", ".inc", ".inl"),
)
_FILE_LINE = re.compile(rb"(?m)^(?:---|\+\+\+) ([^\t\r\n]+)")


def link_copy(tree: Path, variant: Path, links: bool = True) -> None:
    """A copy of ``tree`` whose files are hard links; whole copies without ``links``, or where hard
    links do not reach."""
    if links:
        done = subprocess.run(
            ["cp", "-al", str(tree), str(variant)], capture_output=True, check=False
        )
        if done.returncode == 0:
            return
        shutil.rmtree(variant, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(tree), str(variant)], check=True)


def touched_files(patch: bytes, strip: int = 1) -> list[str]:
    """Paths that a unified diff names, leading components stripped as `patch -p` does."""
    found: dict[str, None] = {}
    for match in _FILE_LINE.finditer(patch):
        name = match[1].decode("utf-8", "surrogateescape").strip()
        if name != "/dev/null":
            parts = name.split("/")[strip:]
            if parts and ".." not in parts:
                found["/".join(parts)] = None
    return list(found)


def apply_patch(variant: Path, patch: Path, strip: int = 1) -> list[str]:
    """Apply one unified diff exactly (no fuzz); returns the files it names.

    Raises Refusal("patch_does_not_apply").
    """
    data = patch.read_bytes()
    names = touched_files(data, strip)
    for name in names:
        _own(variant / name)
    try:
        done = subprocess.run(
            [
                "patch",
                f"-p{strip}",
                "--fuzz=0",
                "--forward",
                "--batch",
                "--force",
                "--reject-file=-",
            ]
            + ["--no-backup-if-mismatch", "--directory", str(variant)],
            input=data,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise Refusal("tool_missing", "the program `patch` is needed") from error
    if done.returncode or not names:
        raise Refusal(
            "patch_does_not_apply",
            f"{patch} does not apply to the source (no fuzz is allowed):\n"
            + (done.stdout + done.stderr).decode("utf-8", "replace").strip(),
            patch=str(patch),
        )
    return names


def patched_variant(tree: Path, variant: Path, patches: Sequence[Path]) -> list[str]:
    """Make ``variant`` = ``tree`` + ``patches`` in order; returns the changed files, sorted."""
    link_copy(tree, variant)
    touched: set[str] = set()
    for patch in patches:
        touched.update(apply_patch(variant, patch))
    keep_line_numbers(tree, variant, touched)
    return sorted(touched)


def other_tree(tree: Path, other: Path, variant: Path) -> list[str]:
    """Make ``variant`` = the built ``tree`` with all sources of ``other`` that differ put in.

    Files that only the built tree has stay: it cannot be told which of them are generated.
    """
    link_copy(tree, variant)
    touched = []
    for root, directories, files in os.walk(other):
        directories[:] = [d for d in directories if d not in (".git", ".hg", ".svn")]
        for file in files:
            theirs = Path(root) / file
            name = str(theirs.relative_to(other))
            ours = variant / name
            if theirs.is_symlink() or _is_compiled(theirs):
                continue
            if ours.exists() and filecmp.cmp(theirs, ours, shallow=False):
                continue
            ours.parent.mkdir(parents=True, exist_ok=True)
            ours.unlink(missing_ok=True)
            shutil.copyfile(theirs, ours)
            touched.append(name)
    keep_line_numbers(tree, variant, touched)
    return sorted(touched)


def _is_compiled(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(8)
    return head[:4] == b"\x7fELF" or head in (b"!<arch>\n", b"!<thin>\n")


def keep_line_numbers(tree: Path, variant: Path, names: Iterable[str]) -> None:
    """Give the changed source files of ``variant`` the line numbers of ``tree``."""
    for name in names:
        old, new = tree / name, variant / name
        if name.endswith(_NUMBERED_SUFFIXES) and old.is_file() and new.is_file():
            text = with_line_numbers_of(old, new)
            _own(new)
            new.write_text(text, errors="surrogateescape")


def _own(file: Path) -> None:
    """Make a hard-linked file a file of its own, so that writing it leaves the tree alone."""
    if file.is_file() and not file.is_symlink() and file.stat().st_nlink > 1:
        copy = file.with_name(f".{file.name}.own")
        shutil.copy2(file, copy)
        os.replace(copy, file)
