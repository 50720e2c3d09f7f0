# SPDX-License-Identifier: GPL-3.0-or-later
"""C compiles without a warning, with those that need the optimiser."""

from __future__ import annotations

from .gate import Gate, Outcome, Tree, told

FLAGS = ("-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-c", "-o", "/dev/null")


def check(tree: Tree) -> Outcome:
    files = [f for f in tree.files if f.suffix == ".c"]
    problems = [line for f in files for line in told(tree.run("gcc", *FLAGS, "-I", f.parent, f))]
    return Outcome(len(files), tuple(problems))


GATE = Gate("c-warnings", "files", check)
