# SPDX-License-Identifier: GPL-3.0-or-later
"""Ruff's rules and its format, as pyproject.toml has them."""

from __future__ import annotations

import pathlib

from .gate import Gate, Outcome, Tree, told


def python_files(tree: Tree) -> list[pathlib.Path]:
    """The tracked Python sources, scripts without a suffix included."""
    found = []
    for file in tree.files:
        if file.suffix == ".py":
            found.append(file)
        elif not file.suffix:
            with (tree.top / file).open("rb") as stream:
                first = stream.readline(80)
            if first.startswith(b"#!") and b"python" in first:
                found.append(file)
    return found


def check_rules(tree: Tree) -> Outcome:
    files = python_files(tree)
    if not files:
        return Outcome(0, ())
    done = tree.run(
        "ruff",
        "check",
        "--no-cache",
        "--no-fix",
        "--force-exclude",
        "--output-format=concise",
        *files,
    )
    return Outcome(len(files), told(done))


def check_format(tree: Tree) -> Outcome:
    files = python_files(tree)
    if not files:
        return Outcome(0, ())
    return Outcome(
        len(files),
        told(tree.run("ruff", "format", "--no-cache", "--force-exclude", "--check", *files)),
    )


RULES = Gate("python-rules", "files", check_rules)
FORMAT = Gate("python-format", "files", check_format)
