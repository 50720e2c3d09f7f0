# SPDX-License-Identifier: GPL-3.0-or-later
"""C compiles without a warning, with those that need the optimiser.

A program whose rest is generated (its ``#include`` names a macro) cannot be compiled alone; the
tests that generate the rest compile it with the same warnings. The kernel module is compiled by
``make -C kmod check``, against each kernel's own headers.
"""

from __future__ import annotations

import re
from pathlib import Path

from .gate import Gate, Outcome, Tree, told

FLAGS = ("-std=gnu17", "-O2", "-mfsgsbase", "-Wall", "-Wextra", "-Werror", "-c", "-o", "/dev/null")
KERNEL_MODULE = Path("kmod")
GENERATED = re.compile(r"(?m)^\s*#\s*include\s+[A-Z_]+\s*$")


def check(tree: Tree) -> Outcome:
    files = [
        f
        for f in tree.files
        if f.suffix == ".c"
        and f.parent != KERNEL_MODULE
        and not GENERATED.search((tree.top / f).read_text())
    ]
    # The kernel service's interface is for programs.
    flags = (*FLAGS, "-I", KERNEL_MODULE / "include")
    problems = [line for f in files for line in told(tree.run("gcc", *flags, "-I", f.parent, f))]
    return Outcome(len(files), tuple(problems))


GATE = Gate("c-warnings", "files", check)
