# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Text from a patched host is hostile: what a process calls itself must not drive the operator's
terminal.
"""

from __future__ import annotations

import typing as t


def printable(value: t.Any, limit: int = 300) -> str:
    """The value as one line of printable characters, others escaped, at most ``limit`` of them."""
    text = "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in str(value)[: limit + 1]
    )
    return text if len(text) <= limit else text[: limit - 3] + "..."
