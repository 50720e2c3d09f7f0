# SPDX-License-Identifier: GPL-3.0-or-later
"""mypy --strict on what touches processes and on what builds patches."""

from __future__ import annotations

import re

from .gate import Gate, Outcome, Tree, told

#: Packages and the Python they are checked for. The applier's floor is below the oldest that this
#: mypy takes; ruff, vermin and `make test-floor` hold it.
PACKAGES = {"applier/wfpatch": "3.10", "builder/wfpatch_build": "3.11"}


def check(tree: Tree) -> Outcome:
    checked = 0
    problems: list[str] = []
    for package, version in PACKAGES.items():
        if not any(file.suffix == ".py" for file in tree.below(package)):
            return Outcome(0, (f"{package}: no Python source there",))
        done = tree.run(
            "mypy", "--strict", "--no-color-output", "--python-version", version, package
        )
        match = re.search(r"(\d+) source files?", done.stdout)
        if not match:
            return Outcome(0, (f"{package}: mypy does not say what it checked", *told(done)))
        checked += int(match[1])
        problems += told(done)
    return Outcome(checked, tuple(problems))


GATE = Gate("python-types", "source files", check)
