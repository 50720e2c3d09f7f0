# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig is imported by its own name, and so is what tests know of running playbooks."""

from __future__ import annotations

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "apps")]
