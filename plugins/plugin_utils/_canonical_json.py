# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Canonical JSON: UTF-8, keys sorted, separators "," and ":", no floats, no trailing newline.
What is signed.
"""

from __future__ import annotations

import json
import typing as t


def canonical_json(value: t.Any) -> bytes:
    """The canonical bytes of a value. Raises UnicodeEncodeError for lone surrogates."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")
