# SPDX-License-Identifier: GPL-3.0-or-later
"""Every reason code that the collection gives is listed in docs/reasons.md."""

from __future__ import annotations

import pathlib
import re

import pytest

FLEET = pathlib.Path(__file__).resolve().parents[3]
#: reason="x", "reason": "x", reason or "x", ApplierFailure("x", and constants with such names.
GIVEN = re.compile(
    r"""(?:reason["']?\]?\s*(?:[:=]|or)\s*|\breason["']\)\s*or\s*|ApplierFailure\(\s*"""
    r"""|\b(?:UNREACHABLE|NOT_REACHED)\s*=\s*|f?["'](?=empty_host_set))["']?([a-z]+(?:_[a-z]+)+|usage|tampered)\b"""
)


def given():
    found = {}
    for path in sorted((FLEET / "plugins").rglob("*.py")):
        for code in GIVEN.findall(path.read_text(encoding="utf-8")):
            found.setdefault(code, path.name)
    return found


def listed():
    page = (FLEET / "docs/reasons.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([a-z_0-9]+)` \|", page, re.M))


def test_codes_are_found():
    assert {"applier_missing", "result_invalid", "not_reached", "empty_host_set", "usage"} <= set(
        given()
    )


@pytest.mark.parametrize("code", sorted(given()))
def test_codes_are_listed(code):
    assert code in listed(), given()[code]
