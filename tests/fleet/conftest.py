# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet as a fixture. Other test directories load it with

    pytest_plugins = ["sshfleet.fixture"]

after tests/fleet was put on sys.path.
"""

from __future__ import annotations

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Its own parts, and what tests with real services know of running playbooks.
sys.path[:0] = [str(HERE), str(HERE.parent / "apps")]

pytest_plugins = ["sshfleet.fixture"]
