# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs on hosts needs no newer Python than hosts have.

vermin reads what each construct and each name of the standard library needs. `make test-floor` runs
the applier's tests on the oldest Python besides.
"""

from __future__ import annotations

from .gate import Gate, Outcome, Tree, told

#: Directories and their floor: Python 3.9 for the applier, what ansible-core 2.18 asks of hosts for
#: the rest.
FLOORS = (
    ("3.9-", ("applier",)),
    ("3.8-", ("plugins/modules", "plugins/module_utils")),
)


def check(tree: Tree) -> Outcome:
    checked = 0
    problems: list[str] = []
    for floor, directories in FLOORS:
        files = [f for f in tree.below(*directories) if f.suffix == ".py"]
        if not files:
            return Outcome(0, (f"{', '.join(directories)}: no Python source there",))
        checked += len(files)
        done = tree.run("vermin", f"--target={floor}", "--violations", "--no-tips", *files)
        problems += told(done)
    return Outcome(checked, tuple(problems))


GATE = Gate("python-floor", "files", check)
