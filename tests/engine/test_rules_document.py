# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/rules.md names tests and faults that exist, and every fault that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import test_rules
from proof import faults

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "rules.md").read_text()
ROWS = [
    line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| rule |")
]
SCENARIOS = {scenario.__name__: known for scenario, _, known in test_rules.SCENARIOS}
FAULTS = {
    name
    for name, value in vars(faults).items()
    if callable(value) and getattr(value, "__module__", "") == faults.__name__
} - {"_edit", "_lines", "_index", "_change_check", "_pieces_without"}


def _functions(file: str) -> set[str]:
    found = [path for suite in ("engine", "builder") for path in (TESTS / suite).glob(file)]
    names = set()
    for path in found:
        tree = ast.parse(path.read_text())
        names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return names


def _named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", re.sub(r"\*[^*]+\*", "", cell))


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:40] for row in ROWS])
def test_a_row(row):
    rule, test, off = (cell.strip() for cell in row.strip("|").split("|"))
    assert rule and test and off
    scenarios = []
    for name in _named(test) + _named(off):
        if "::" in name:
            file, _, function = name.partition("::")
            assert function in _functions(file), name
        elif name in SCENARIOS:
            scenarios.append(name)
        elif not name.startswith("_") and name not in ("nobody moved", "nobody unwound", "unknown"):
            assert name in FAULTS, name
    known = {fault.__name__ for scenario in scenarios for fault in SCENARIOS[scenario]}
    named = [name for name in _named(off) if name in FAULTS]
    if named and scenarios and "::" not in off:
        assert set(named) <= known, (named, known)


def test_every_scenario_and_every_fault_has_a_row():
    named = {name for row in ROWS for name in _named(row)}
    assert SCENARIOS.keys() <= named
    assert named >= FAULTS


def test_there_are_rows():
    assert len(ROWS) > 60
