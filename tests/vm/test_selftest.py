# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs of kmod/tests in machines of every kind."""

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
#: Of a program that is visited: threads, and how many of them compute, for each processor.
THREADS = (8, 64, 512, 4000)
HOGS = (1, 16)
#: What a machine under emulation has time for, each time.
REDUCED = (8, 512)


def ask(made: Machine, *words: object, timeout: float = 900, program: str = "selftest") -> str:
    """Run a test program to its end; what it printed."""
    done = made.run(f"/root/{program} {' '.join(map(str, words))}", check=False, timeout=timeout)
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
    features = int(re.findall(r"features (\w+)", ask(made, "info"))[0], 16)
    assert bool(features & 1) == ("nofsgsbase" not in append)
    assert bool(features & 2) == ("pti=on" in append)
    with quiet_kernel(made):
        ask(made, "--seconds", 10, "--threads", 64)
        for threads in THREADS:
            for hogs in HOGS:
                words = ("--threads", threads, "--hogs", hogs, "visit", "nothing_left")
                said = ask(made, *words, timeout=1800)
                (found,) = re.findall(r"(?m)^# (\d+ threads: .*)$", said)
                print(f"visited: {append}, {cpus} processors, {hogs} hogs on each: {found}")


@pytest.mark.parametrize("hogs", HOGS)
@pytest.mark.parametrize(
    "threads", [pytest.param(n, marks=() if n in REDUCED else pytest.mark.slow) for n in THREADS]
)
def test_threads(vm: Machine, threads: int, hogs: int) -> None:
    """Some compute, the rest sleep, make others, or are in vfork or on another stack."""
    ask(vm, "--threads", threads, "--hogs", hogs, "visit", "nothing_left", timeout=1800)


@pytest.mark.parametrize("rounds", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_hot_functions_are_armed_and_disarmed(vm: Machine, rounds: int) -> None:
    """Each round arms or disarms: two of them are a cycle."""
    said = ask(vm, "--rounds", rounds, "poke_hot", "nothing_left", timeout=3000)
    counted = re.search(r"# (\d+) rounds, .* (\d+) forks, (\d+) breakpoints met", said)
    assert counted and int(counted[1]) == rounds
    assert int(counted[2]) > rounds / 50 and int(counted[3]) > rounds


@pytest.mark.parametrize("seconds", [20, pytest.param(1200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["ends", "concurrent", "nonsense"])
def test_requests_in_the_middle_of_ends(vm: Machine, name: str, seconds: int) -> None:
    """Then nothing is held, and the module can go: the next test loads it anew."""
    ask(vm, "--seconds", seconds, name, program="stress", timeout=2 * seconds + 300)
    vm.run("rmmod wfpatch && insmod /root/wfpatch.ko")
