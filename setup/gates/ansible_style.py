# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-lint's production profile, on the placed collection, as .ansible-lint has it."""

from __future__ import annotations

import re

from .gate import Gate, Outcome, Tree, told
from .placed import place


def check(tree: Tree) -> Outcome:
    if not tree.below("playbooks", "roles"):
        return Outcome(0, ("playbooks, roles: nothing there",))
    home, fleet = place(tree)
    done = tree.run(
        "env", "-C", fleet, f"HOME={home}", f"ANSIBLE_COLLECTIONS_PATH={fleet.parents[2]}",
        "ansible-lint", "--offline", "--strict", "--nocolor", "--profile", "production",
    )  # fmt: skip
    match = re.search(r"in (\d+) files? processed", done.stdout)
    return Outcome(int(match[1]) if match else 0, told(done))


GATE = Gate("ansible-style", "files", check)
