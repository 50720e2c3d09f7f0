# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/patch-elf.md names every member that the builder writes: all are required, no others are
allowed."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT
from matching_program import FILES
from patch_reading import metadata

PAGE = (ROOT / "docs" / "patch-elf.md").read_text()
#: The page's quoted words, "a", "b" of owners among them.
WORDS = set(re.findall(r"`\"?([a-z_.0-9]+)\"?`", PAGE)) | set(re.findall(r"\"([a-z_]+)\"", PAGE))
for group in re.findall(r"`\{([a-z_, ]+)\}`", PAGE):
    WORDS |= set(group.split(", "))


def members(value, path: str = "") -> set[tuple[str, str]]:
    """(where, name) of every member of every object in ``value``, names of symbols left out."""
    found: set[tuple[str, str]] = set()
    if isinstance(value, list):
        for item in value:
            found |= members(item, path)
    elif isinstance(value, dict):
        for name, item in value.items():
            if path == "symbols":
                found |= members(item, "owner")
            else:
                found |= {(path, name)} | members(item, name)
    return found


@pytest.fixture
def patch(source_tree):
    """A patch with imports, locals, thread-local data, a cold part and a displaced call."""
    tree = source_tree(FILES, flags="-O2 -fPIE", link="-pie -Wl,-z,now")
    new = {
        "store.c": FILES["store.c"].replace("depth--;", "depth -= 2;"),
        "load.c": FILES["load.c"].replace("visit two", "visited two"),
    }
    return tree.build(new)


def test_every_member_stands_in_the_document(patch):
    found = members(metadata(patch))
    assert len(found) > 40
    assert sorted((where, name) for where, name in found if name not in WORDS) == []


def test_every_documented_member_of_a_function_is_written(patch):
    table = PAGE[PAGE.index("### A replaced function") : PAGE.index("No two pieces")]
    rows = re.findall(r"(?m)^\| (`[^|]+`) \|", table)
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert len(documented) > 10
    for function in metadata(patch)["functions"]:
        assert set(function) == documented
