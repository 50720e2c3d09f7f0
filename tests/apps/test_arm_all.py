# SPDX-License-Identifier: GPL-3.0-or-later
"""Every function of a stock service that goes without a hold, armed and disarmed under load.

What arming by one byte or by page swap promises: nobody is stopped but the thread that maps pages,
no thread resumes inside of what is written, and a function through its old continuation is the same
function.
"""

from __future__ import annotations

import load_client
import pytest
from arm_all import ArmAll
from sshfleet.fixture import FleetFactory


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("service", ["memcached", "redis"])
def test_every_function(ssh_fleet: FleetFactory, service: str, rounds: int) -> None:
    fleet = ssh_fleet(1, service)
    pid = fleet.outer_pid("host01", fleet.host("host01").services[service])
    prefix = fleet.in_network("host01")
    with load_client.running(service, "--rate=1000", prefix=prefix) as load:
        everything = ArmAll(pid)
        shipped = everything.text_now()
        for _ in range(rounds):
            everything.arm()
            assert everything.text_now() != shipped
            answered = load.verdict_so_far()["answered"]
            while load.verdict_so_far()["answered"] < answered + 200:
                assert load.process.poll() is None
            everything.disarm()
            assert everything.text_now() == shipped
        verdict = load.stop()
    ways = everything.ways()
    print(f"{ways}; {rounds} rounds, {verdict['answered']} answers")
    assert verdict["verdict"] == "pass", verdict
    assert verdict["answered"] == verdict["requests"] > 200 * rounds
    # No stop but those of a thread that runs the calls, whose seccomp filter is read before.
    assert {stop.purpose for stop in everything.session.stops} <= {"inject", "watch", "seccomp"}
    assert ways.without < 0.1 * ways.functions
