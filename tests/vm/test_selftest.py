# SPDX-License-Identifier: GPL-3.0-or-later
"""kmod/tests/selftest.c in machines of every kind."""

from __future__ import annotations

import re

import pytest
from conftest import Booter, quiet_kernel, with_service
from rig.machine import Machine, Spec

#: Page table isolation, and whether programs may write their GS base: all four ways.
PROCESSORS = {
    "pti-fsgsbase": "pti=on",
    "pti-nofsgsbase": "pti=on nofsgsbase",
    "nopti-fsgsbase": "pti=off",
    "nopti-nofsgsbase": "pti=off nofsgsbase",
}


def ask(made: Machine, *words: object, timeout: float = 900) -> str:
    """Run the test program to its end; what it printed."""
    done = made.run(f"/root/selftest {' '.join(map(str, words))}", check=False, timeout=timeout)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"(?m)^1\.\.[1-9]", done.stdout), done.stdout
    assert "not ok" not in done.stdout
    return done.stdout


def test_everything(vm: Machine) -> None:
    ask(vm, "--seconds", 5)


@pytest.mark.parametrize("append", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("cpus", [2, 4])
@pytest.mark.slow
def test_processors(boot: Booter, series: str, append: str, cpus: int) -> None:
    made = with_service(boot(Spec(kernel=series, cpus=cpus, append=append)), series)
    features = int(re.findall(r"features (0x\w+)", ask(made, "info"))[0], 16)
    assert bool(features & 1) == ("nofsgsbase" not in append)
    assert bool(features & 2) == ("pti=on" in append)
    with quiet_kernel(made):
        ask(made, "--seconds", 10, "--threads", 64)


@pytest.mark.parametrize("threads", [8, 64, 512])
def test_threads(vm: Machine, threads: int) -> None:
    ask(vm, "--threads", threads, "visit", "nothing_left", timeout=600)


@pytest.mark.slow
def test_four_thousand_threads(vm: Machine) -> None:
    ask(vm, "--threads", 4000, "visit", "nothing_left", timeout=1800)


@pytest.mark.slow
def test_hot_functions_for_long(vm: Machine) -> None:
    ask(vm, "--seconds", 600, "poke_hot", "nothing_left", timeout=1200)
