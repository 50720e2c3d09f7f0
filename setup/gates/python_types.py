# SPDX-License-Identifier: GPL-3.0-or-later
"""mypy --strict on what touches processes and on what builds patches."""

from __future__ import annotations

import re

from .gate import Gate, Outcome, Tree, told

PACKAGES = ("applier/wfpatch", "builder/wfpatch_build")


def check(tree: Tree) -> Outcome:
    absent = [p for p in PACKAGES if not any(f.suffix == ".py" for f in tree.below(p))]
    if absent:
        return Outcome(0, tuple(f"{package}: no Python source there" for package in absent))
    done = tree.run("mypy", "--strict", "--no-color-output", *PACKAGES)
    match = re.search(r"(\d+) source files?", done.stdout)
    return Outcome(int(match[1]) if match else 0, told(done))


GATE = Gate("python-types", "source files", check)
