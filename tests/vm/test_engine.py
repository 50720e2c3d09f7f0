# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's own suite, driving the kernel service: the tests are those of tests/engine.

What a machine under emulation has time for is a part of it; the whole is slow.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest
from conftest import TOP
from rig.machine import Machine

pytestmark = pytest.mark.timeout(7200)

PLACE = "/root/wfpatch"
#: Reduced: arming by every way and going back, whole runs killed, refusals, tail calls.
PART = (
    "tests/engine/test_kernel_requests.py",
    "tests/engine/test_entries.py -k 'one_way_only or every_kind'",
    "tests/engine/test_stragglers.py",
    "tests/engine/test_tail_calls.py",
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
    """The machine with the applier, its tests, and what they import that Debian does not package.

    Programs that were compiled here once need not be compiled there again.
    """
    tracked = subprocess.run(
        ["git", "-C", TOP, "ls-files", "applier", "tests/engine", "kmod", "plugins", "docs"]
        + ["schemas", "pyproject.toml", "tests/unit", "tests/integration", "tests/fleet"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in tracked:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (TOP / name).is_file():
            target.write_bytes((TOP / name).read_bytes())
            target.chmod((TOP / name).stat().st_mode & 0o777)
    vm.run(f"rm -rf {PLACE}")
    vm.put(tmp_path, PLACE)
    (packages,) = (TOP / ".venv").glob("lib/python3*/site-packages")
    for package in ("iced_x86",):
        vm.put(packages / package, f"/usr/local/lib/python3.11/dist-packages/{package}")
    cache = pathlib.Path(os.environ.get("WFPATCH_CACHE") or "/var/cache/wfpatch") / "test-programs"
    if cache.is_dir():
        vm.put(cache, "/var/cache/wfpatch/test-programs")
    return vm


def ask(suite: Machine, words: str) -> None:
    done = suite.run(
        f"cd {PLACE} && WFPATCH_TEST_BACKEND=kernel "
        f"python3 -m pytest -q -p no:cacheprovider {words}",
        check=False,
        timeout=7200,
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout


@pytest.mark.parametrize("words", PART, ids=lambda words: pathlib.Path(words.split()[0]).stem)
def test_part(suite: Machine, words: str) -> None:
    ask(suite, words)


@pytest.mark.slow
@pytest.mark.parametrize("words", WHOLE, ids=lambda words: pathlib.Path(words).stem)
def test_whole(suite: Machine, words: str) -> None:
    ask(suite, words)
