# SPDX-License-Identifier: GPL-3.0-or-later
"""antsibull-docs on the documents of modules, plugins and roles: all references lead somewhere, and
the reference is built from them without a warning.
"""

from __future__ import annotations

import tempfile

from .gate import Gate, Outcome, Tree, told
from .placed import place


def check(tree: Tree) -> Outcome:
    documented = [
        f
        for f in tree.below("plugins/modules", "plugins/callback", "plugins/filter", "roles")
        if f.suffix == ".py" or f.name == "argument_specs.yml"
    ]
    if not documented:
        return Outcome(0, ("no module and no role to read the documents of",))
    home, fleet = place(tree)
    done = tree.run(
        "env", f"HOME={home}", f"ANSIBLE_COLLECTIONS_PATH={fleet.parents[2]}",
        "antsibull-docs", "lint-collection-docs", "--plugin-docs",
        "--validate-collection-refs", "self", "--check-extra-docs-refs", fleet,
    )  # fmt: skip
    if not done.returncode:
        with tempfile.TemporaryDirectory(prefix="documents.") as scratch:
            done = tree.run("setup/documents", f"{scratch}/html")
    return Outcome(len(documented), told(done))


GATE = Gate("plugin-documents", "documents", check)
