# SPDX-License-Identifier: GPL-3.0-or-later
"""Canonical JSON: one value, one spelling. UTF-8, keys sorted, no blanks, integers only."""

from __future__ import annotations

import json
from typing import Any


def canonical(value: Any) -> bytes:
    """The canonical bytes of ``value``. Raises TypeError for floats and foreign types."""
    _check(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not text")
            _check(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item)
    elif value is not None and not isinstance(value, (str, bool, int)):
        raise TypeError(f"{value!r} has no canonical form")
