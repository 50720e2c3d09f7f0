# SPDX-License-Identifier: GPL-3.0-or-later
"""Real services on hosts of a fleet, and the load client."""

from __future__ import annotations

import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "fleet"), str(TESTS / "load")]

pytest_plugins = ["sshfleet.fixture"]
