# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the placed collection importable: these tests call its formats without a playbook."""

from __future__ import annotations

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / ".work" / "collections"), str(HERE)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", type=pathlib.Path, help="where test_page.py puts pictures")
