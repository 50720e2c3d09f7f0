# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration is judged: with a fault planted while it runs it fails, and leaves nothing."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
from collections.abc import Callable

import pytest
from sshfleet import fleet as fleets
from sshfleet import state

TOP = pathlib.Path(__file__).resolve().parents[2]


def lose_a_connection(fleet: fleets.Fleet) -> None:
    """The kernel ends one connection of the load on the first host's memcached."""
    done = fleet.run("host01", "ss", "-K", "-H", "-t", "-n", "dport", "=", "11211")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("11211") > 0, "no connection was there"


def end_a_service(fleet: fleets.Fleet) -> None:
    """As if it had crashed."""
    os.kill(fleet.outer_pid("host02", fleet.host("host02").services["redis"]), signal.SIGKILL)


@pytest.mark.slow  # a demonstration each, up to its first judgement
@pytest.mark.parametrize(
    ("plant", "complaint"), [(lose_a_connection, "lost"), (end_a_service, "lost")]
)
def test_a_planted_fault_fails_it(plant: Callable[[fleets.Fleet], None], complaint: str) -> None:
    with subprocess.Popen(
        [TOP / "demo" / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as demo:
        assert demo.stdout
        name = f"demo-{demo.pid}"
        lines = []
        try:
            for line in demo.stdout:
                lines.append(line)
                if "quiet: " in line and line.startswith("==="):
                    plant(fleets.Fleet(name))
        finally:
            # An interrupt takes the fleet down.
            demo.terminate()
            code = demo.wait(120)
    output = "".join(lines)
    assert code == 1, output
    assert "demo: FAILED: the load on " in output
    assert complaint in lines[-1]
    assert "all was as it must be" not in output
    assert not state.folder(name).exists()
    assert name not in pathlib.Path("/proc/mounts").read_text()
