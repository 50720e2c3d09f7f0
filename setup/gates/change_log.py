# SPDX-License-Identifier: GPL-3.0-or-later
"""antsibull-changelog reads the changelog and each fragment."""

from __future__ import annotations

from .gate import Gate, Outcome, Tree, told


def check(tree: Tree) -> Outcome:
    entries = [f for f in tree.below("changelogs") if f.suffix in (".yml", ".yaml")]
    fragments = [f for f in entries if f.parent.name == "fragments" or f.name == "changelog.yaml"]
    if not fragments:
        return Outcome(0, ("changelogs: neither a fragment nor a release there",))
    return Outcome(len(fragments), told(tree.run("antsibull-changelog", "lint")))


GATE = Gate("change-log", "files", check)
