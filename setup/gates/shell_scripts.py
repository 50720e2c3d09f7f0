# SPDX-License-Identifier: GPL-3.0-or-later
"""shellcheck on every shell script, found by its name or its interpreter line."""

from __future__ import annotations

import pathlib
import re

from .gate import Gate, Outcome, Tree, told


def is_shell(path: pathlib.Path) -> bool:
    if path.suffix == ".sh":
        return True
    if path.suffix:
        return False
    with path.open("rb") as stream:
        return bool(re.match(rb"#!.*\b(ba|da)?sh\b", stream.readline(80)))


def check(tree: Tree) -> Outcome:
    files = [f for f in tree.files if is_shell(tree.top / f)]
    if not files:
        return Outcome(0, ())
    return Outcome(
        len(files), told(tree.run("shellcheck", "--format=gcc", "--external-sources", *files))
    )


GATE = Gate("shell-scripts", "scripts", check)
