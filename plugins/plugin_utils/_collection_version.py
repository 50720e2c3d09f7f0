# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The version of the collection that runs."""

from __future__ import annotations

import functools
import json
import os

import yaml

_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@functools.cache
def collection_version() -> str:
    """As galaxy.yml has it in a checkout, or MANIFEST.json where the collection is installed."""
    try:
        with open(os.path.join(_TOP, "MANIFEST.json"), encoding="utf-8") as file:
            return str(json.load(file)["collection_info"]["version"])
    except (OSError, ValueError, KeyError):
        pass
    try:
        with open(os.path.join(_TOP, "galaxy.yml"), encoding="utf-8") as file:
            return str(yaml.safe_load(file)["version"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return "unknown"
