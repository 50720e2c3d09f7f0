# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of Debian's package versions (Debian Policy, section 5.6.12)."""

from __future__ import annotations

import re
from itertools import zip_longest

_PARTS = re.compile(r"(\D*)(\d*)")
#: Versions of packages are short; what is longer was made to cost time.
MAX_LENGTH = 255


def _weight(character: str) -> int:
    # "The letters sort earlier than all the non-letters", and a tilde before even the end.
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256


def _text_key(text: str) -> list[int]:
    # The end of the text weighs 0: less than any letter, more than a tilde.
    return [*(_weight(character) for character in text), 0]


def _key(part: str) -> list[tuple[list[int], int]]:
    return [(_text_key(text), int(number or 0)) for text, number in _PARTS.findall(part)]


def _compare_part(left: str, right: str) -> int:
    for first, second in zip_longest(_key(left), _key(right), fillvalue=([0], 0)):
        if first != second:
            return 1 if first > second else -1
    return 0


def _split(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (int(epoch) if epoch.isascii() and epoch.isdigit() else 0), upstream, revision


def compare(left: str, right: str) -> int:
    """-1, 0 or 1: whether ``left`` is an earlier version than ``right``, equal, or later."""
    first, second = _split(left[:MAX_LENGTH]), _split(right[:MAX_LENGTH])
    if first[0] != second[0]:
        return (first[0] > second[0]) - (first[0] < second[0])
    return _compare_part(first[1], second[1]) or _compare_part(first[2], second[2])
