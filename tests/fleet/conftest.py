# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet as a fixture. Other test directories load it with

    pytest_plugins = ["sshfleet.fixture"]

after tests/fleet was put on sys.path.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

pytest_plugins = ["sshfleet.fixture"]
