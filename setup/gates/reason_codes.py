# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/reasons.md lists the reason codes that the applier has, and no others."""

from __future__ import annotations

import difflib

from .gate import Gate, Outcome, Tree

PAGE = "docs/reasons.md"


def check(tree: Tree) -> Outcome:
    made = tree.run(tree.top / "setup" / "reasons")
    if made.returncode:
        return Outcome(0, tuple(made.stdout.splitlines()))
    page = tree.top / PAGE
    found = page.read_text() if page.is_file() else ""
    difference = difflib.unified_diff(
        found.splitlines(), made.stdout.splitlines(), PAGE, "setup/reasons", n=0, lineterm=""
    )
    problems = tuple(difference)
    if problems:
        problems += ("run `setup/reasons --write` and commit the page",)
    return Outcome(made.stdout.count("\n| `"), problems)


GATE = Gate("reason-codes", "codes", check)
