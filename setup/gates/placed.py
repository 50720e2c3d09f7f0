# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree as a placed collection, and a home directory for tools that litter theirs."""

from __future__ import annotations

import os
import pathlib

from .gate import Tree


def place(tree: Tree) -> tuple[pathlib.Path, pathlib.Path]:
    """A home directory in the cache, and the collection's own directory."""
    done = tree.run("setup/collection")
    if done.returncode:
        raise RuntimeError(f"setup/collection failed: {done.stdout}")
    home = pathlib.Path(os.environ.get("WFPATCH_CACHE") or "/var/cache/wfpatch") / "lint-home"
    home.mkdir(parents=True, exist_ok=True)
    collections = pathlib.Path(done.stdout.strip().splitlines()[-1])
    return home, collections / "ansible_collections" / "wfpatch" / "fleet"
