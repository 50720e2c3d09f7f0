# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures shared by the engine's tests: import paths and compiled test programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for _directory in (ROOT / "applier", Path(__file__).resolve().parent):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

# What the engine's child processes (drivers that get killed) import from.
os.environ["PYTHONPATH"] = str(ROOT / "applier")

from programs_fixture import ProgramCache, RunningProgram, reap  # noqa: E402


@pytest.fixture(scope="session")
def program_cache(tmp_path_factory):
    """Builds tests/engine/programs/*.c once per content and command line."""
    return ProgramCache(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def program(program_cache):
    """program(name, *flags, sources=(), libs=()) -> path of the executable."""
    return program_cache.build


@pytest.fixture
def start():
    """start(path, *arguments, ...) -> RunningProgram; all are killed and reaped at the end."""
    running: list[RunningProgram] = []

    def begin(*arguments, **options):
        process = RunningProgram(*arguments, **options)
        running.append(process)
        return process

    yield begin
    for process in running:
        reap(process)
