# SPDX-License-Identifier: GPL-3.0-or-later
"""One verdict over several make targets: no failure, and no run of nothing, goes by unseen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
MAKEFILE = """
lint:
\t@echo 'gates: 3 passed, 0 failed'
test-good:
\t@echo '===== 12 passed in 0.1s ====='
test-bad:
\t@echo '===== 1 failed, 2 passed in 0.1s ====='; exit 1
test-nothing:
\t@echo 'collected 0 items'
test-slow:
\t@sleep 30; echo '===== 1 passed in 30s ====='
test-waits:
\t@for i in $$(seq 100); do test -e seen && break; sleep 0.1; done; test -e seen
\t@echo '===== 1 passed in 0.1s ====='
test-seen:
\t@touch seen; echo '===== 4 passed in 0.1s ====='
"""


@pytest.fixture
def suites(tmp_path):
    (tmp_path / "setup").mkdir()
    shutil.copy(TOP / "setup" / "suites", tmp_path / "setup")
    (tmp_path / "Makefile").write_text(MAKEFILE)

    def run(*words):
        done = subprocess.run(
            [tmp_path / "setup" / "suites", *words], capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout

    return run


def test_all_pass(suites):
    code, output = suites("lint", "test-good")
    assert code == 0
    assert output.endswith("suites: 2 passed, 0 failed\n")
    assert "gates: 3 passed, 0 failed\n===== 12 passed" in output


@pytest.mark.parametrize("beside", ["", "@"])
@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("test-bad", "FAILED\n"),
        ("test-nothing", "FAILED: it ran nothing\n"),
        ("test-slow:1", "FAILED: past its time limit\n"),
        ("test-nosuch", "FAILED\n"),
    ],
)
def test_one_fails(suites, beside, target, told):
    code, output = suites(beside + target, "test-good")
    assert code == 1
    assert told in output
    assert output.endswith("suites: 1 passed, 1 failed\n")


def test_one_beside_the_others(suites):
    """It waits for what the next one does, so they do run side by side."""
    code, output = suites("@test-waits", "test-seen")
    assert code == 0, output
    assert output.index("===== 4 passed") < output.index("===== 1 passed")
    assert output.endswith("suites: 2 passed, 0 failed\n")
