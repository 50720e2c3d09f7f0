# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's own suite, driving the kernel service: the tests are those of tests/engine.

What a machine under emulation has time for is a part of it; the whole is slow.
"""

from __future__ import annotations

import pathlib
import re

import pytest
from rig import checkout
from rig.checkout import PLACE
from rig.machine import Machine

pytestmark = pytest.mark.timeout(7200)

#: Reduced: each way of arming, stragglers, whole runs killed and rmmod tried, refusals.
PART = (
    "tests/engine/test_kernel_requests.py tests/engine/test_tail_calls.py",
    "tests/engine/test_entries.py -k 'all_kinds_together and auto'",
    "tests/engine/test_stragglers.py -k 'completes or reverted or tampering'",
    "tests/engine/test_killed_runs.py -k 'module_cannot or procfs or (at_steps and byte-auto)'",
    "tests/engine/test_refusals.py -k 'gs or tracer or traced or busy or another'",
)
WHOLE = (
    "tests/engine/test_entries.py",
    "tests/engine/test_rules.py",
    "tests/engine/test_consistency.py",
    "tests/engine/test_stragglers.py",
    "tests/engine/test_tail_calls.py",
    "tests/engine/test_hostile_processes.py",
    "tests/engine/test_refusals.py",
    "tests/engine/test_plan_of_several.py",
    "tests/engine/test_eintr.py",
    "tests/engine/test_killed_runs.py",
)


@pytest.fixture
def suite(vm: Machine, tmp_path: pathlib.Path) -> Machine:
    """The machine with the applier and its tests."""
    checkout.put(vm, tmp_path)
    return vm


def ask(suite: Machine, words: str, stride: int) -> None:
    done = suite.run(
        f"cd {PLACE} && WFPATCH_TEST_BACKEND=kernel WFPATCH_KILL_STRIDE={stride} "
        f"python3 -m pytest -q -p no:cacheprovider {words}",
        check=False,
        timeout=7200,
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout


@pytest.mark.parametrize("words", PART, ids=lambda words: pathlib.Path(words.split()[0]).stem)
def test_part(suite: Machine, words: str) -> None:
    ask(suite, words, stride=120)


@pytest.mark.slow
@pytest.mark.parametrize("words", WHOLE, ids=lambda words: pathlib.Path(words).stem)
def test_whole(suite: Machine, words: str) -> None:
    ask(suite, words, stride=10)
