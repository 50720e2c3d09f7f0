# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel service on a kernel with detectors (setup/debug.config): KASAN, lockdep, PROVE_RCU,
DEBUG_ATOMIC_SLEEP, debug objects, kmemleak. They find nothing; and each is seen to find a fault
that was planted for it, by a patch of planted/ to a copy of the module's source.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from conftest import TOP, Booter, bring, module_for, quiet_kernel
from rig.machine import ALARMS, DEBUG, Machine, Spec
from test_selftest import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

PLANTED = pathlib.Path(__file__).resolve().parent / "planted"
LEAKS = "/sys/kernel/debug/kmemleak"
#: The console has kmemleak's finds too: to the kernel they are no more than information.
SPEC = Spec(kernel=DEBUG, memory=4096, append="loglevel=7")
#: How long each goes on; `concurrent` takes half of it.
SECONDS = {"selftest": 10, "ends": 90, "concurrent": 60, "nonsense": 60}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A patch of planted/: what brings its fault out, and what the kernel says then."""

    patch: str
    test: str
    alarm: str
    #: Faults of one boot, in this order: lockdep looks for no more after its first find of a lock,
    #: and does not after one of KASAN, which in turn reports once.
    boot: int = 1


FAULTS = (
    Fault("sleeps_under_a_lock", "poke_hot", "BUG: sleeping function called from invalid context"),
    Fault("freed_while_armed", "attach", "ODEBUG: free active"),
    Fault("lost_memory", "poke_refused", "unreferenced object"),
    Fault("lock_order", "poke_refused", "WARNING: possible circular locking dependency detected"),
    Fault("sleeps_under_rcu", "attach", "WARNING: suspicious RCU usage", boot=2),
    Fault("lock_in_interrupts", "visit", "WARNING: inconsistent lock state", boot=2),
    Fault("used_after_free", "attach", "BUG: KASAN: use-after-free", boot=2),
)


def planted(patch: str, place: pathlib.Path) -> pathlib.Path:
    """The module with the fault, built for the debug kernel in a copy of its sources."""
    (place / "setup").symlink_to(TOP / "setup")
    shutil.copytree(TOP / "kmod", place / "kmod", ignore=shutil.ignore_patterns(".build", "tests"))
    with open(PLANTED / f"{patch}.patch", "rb") as stream:
        command = ["patch", "--strip=1", "--fuzz=0", "--quiet", "--directory", place / "kmod"]
        subprocess.run(command, check=True, stdin=stream)
    subprocess.run([place / "kmod" / "check", "--build", DEBUG], check=True)
    (module,) = (place / "kmod" / ".build").glob("*/wfpatch.ko")
    return module


def leaks(made: Machine) -> str:
    """What kmemleak finds of what was allocated since ``clear``, and 5 s ago at least."""
    made.run(f"sleep 6; echo scan > {LEAKS}; sleep 6; echo scan > {LEAKS}", timeout=900)
    return made.run(f"cat {LEAKS}").stdout


def watching(made: Machine) -> bool:
    """Whether lockdep still looks: it stops at its first finding, and when its tables are full."""
    return bool(re.search(r"debug_locks: +1\b", made.run("cat /proc/lockdep_stats").stdout))


def booted(boot: Booter, append: str) -> Machine:
    """A machine of which nothing that was there before is reported."""
    made = boot(dataclasses.replace(SPEC, append=f"{SPEC.append} {append}"))
    made.run("mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug")
    made.run(f"echo clear > {LEAKS}")
    return made


@pytest.fixture(scope="module")
def machine(boot: Booter) -> Machine:
    """With the module, in one machine for all that must find nothing."""
    made = booted(boot, "")
    assert watching(made)
    bring(made, module_for(DEBUG))
    return made


@pytest.fixture
def quiet(machine: Machine) -> Iterator[Machine]:
    """The machine, whose kernel must have no complaint, and must have been looking to the end."""
    with quiet_kernel(machine):
        yield machine
        assert watching(machine)


def test_the_kernel_has_no_complaint_of_its_own(machine: Machine) -> None:
    assert machine.alarms() == []


def test_everything(quiet: Machine) -> None:
    """Threads of all kinds, hot entries under forks; once more from the beginning, loaded anew."""
    words = ("--seconds", SECONDS["selftest"], "--threads", 64)
    ask(quiet, *words, timeout=3600)
    quiet.run("rmmod wfpatch && insmod /root/wfpatch.ko")
    ask(quiet, *words, "--hogs", 8, timeout=3600)


@pytest.mark.parametrize("name", ["ends", "concurrent", "nonsense"])
def test_requests_in_the_middle_of_ends(quiet: Machine, name: str) -> None:
    ask(quiet, "--seconds", SECONDS[name], name, program="stress", timeout=3600)
    quiet.run("rmmod wfpatch && insmod /root/wfpatch.ko")


def test_nothing_is_lost(quiet: Machine) -> None:
    """Neither while the module is there, nor when nobody points at what it had any more."""
    assert leaks(quiet) == ""
    quiet.run("rmmod wfpatch")
    assert leaks(quiet) == ""
    quiet.run("insmod /root/wfpatch.ko && rmmod wfpatch")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.patch)
def test_a_planted_fault_is_found(boot: Booter, tmp_path: pathlib.Path, fault: Fault) -> None:
    module = planted(fault.patch, tmp_path)
    made = booted(boot, f"planted={fault.boot}")
    bring(made, module)
    before = len(made.console.read_text(errors="replace"))
    words = "--threads 16 --rounds 8"
    made.run(f"/root/selftest {words} {fault.test}", check=False, timeout=1800)
    said = made.console.read_text(errors="replace")[before:]
    if fault.alarm == "unreferenced object":
        found = leaks(made)
        said = made.console.read_text(errors="replace")[before:]
        assert "kmemleak: " in said and ALARMS.search(said), said[-3000:]
        said += found
    print(said[-6000:])
    assert fault.alarm in said, said[-3000:]
    assert re.search(r"\bwf_\w+\+0x|\[wfpatch\]", said), said[-3000:]
    assert ALARMS.search(fault.alarm)
    made.run("rmmod wfpatch", timeout=600)
