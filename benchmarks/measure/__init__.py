# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks measure, a question a file. Figures are for ratios within one run."""

from __future__ import annotations

import os
import pathlib
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = TOP / "benchmarks" / "programs"
for folder in (
    "applier",
    "builder",
    "tests/engine",
    "tests/fleet",
    "tests/load",
    "tests/apps",
    "demo",
):
    sys.path.insert(0, str(TOP / folder))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TOP / "applier"), os.environ.get("PYTHONPATH", "")])
