# SPDX-License-Identifier: GPL-3.0-or-later
"""The judges are judged: the load client must fail on a single fault, and on nothing else."""

from __future__ import annotations

import re
import socket
import subprocess
from typing import Any

import load_client
import pytest
from lying_server import Fault, LyingServer
from small_redis import SmallRedis


def load_with(liar: LyingServer, fault: Fault, *options: str) -> dict[str, Any]:
    """The verdict of a load during which one answer is spoilt."""
    with load_client.running("redis", f"--port={liar.port}", "--rate=500", *options) as client:
        client.phase("spoilt")
        liar.plant(fault)
        assert liar.planted.wait(10)
        return client.stop()


def test_honest_answers_pass(liar: LyingServer) -> None:
    """Through the very proxy that the other tests let lie."""
    with load_client.running("redis", f"--port={liar.port}", "--rate=1000") as client:
        assert client.verdict_so_far()["verdict"] == "pass"
        verdict = client.stop()
    assert verdict["verdict"] == "pass"
    assert verdict["answered"] == verdict["requests"] > 0
    assert [verdict[kind] for kind in ("wrong", "lost", "timeouts", "interrupted")] == [0] * 4
    assert client.process.returncode == 0


def test_one_wrong_byte_fails(liar: LyingServer) -> None:
    verdict = load_with(liar, lambda data: data[:-3] + b"#" + data[-2:])
    assert (verdict["verdict"], verdict["wrong"], verdict["lost"]) == ("fail", 1, 0)
    assert "#" in verdict["faults"][0]["seen"]


def test_one_doubled_answer_fails(liar: LyingServer) -> None:
    verdict = load_with(liar, lambda data: data + data)
    assert (verdict["verdict"], verdict["wrong"]) == ("fail", 1)


def test_one_closed_connection_fails(liar: LyingServer) -> None:
    verdict = load_with(liar, lambda _: None)
    assert (verdict["verdict"], verdict["wrong"], verdict["lost"]) == ("fail", 0, 1)
    assert verdict["faults"][0]["seen"] == "closed by the server"


def test_one_interrupted_call_fails(liar: LyingServer) -> None:
    verdict = load_with(liar, lambda _: b"-ERR read: Interrupted system call\r\n")
    assert (verdict["verdict"], verdict["interrupted"]) == ("fail", 1)


def test_one_withheld_answer_fails() -> None:
    """A server that takes requests and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        command = [load_client.build(), f"--port={port}", "--connections=1", "--rate=10"]
        done = subprocess.run(
            [*command, "--seconds=0.3", "--timeout=0.5", "redis"], capture_output=True, text=True
        )
    assert done.returncode == 1
    assert re.search(r'"verdict":"fail".*"answered":0.*"timeouts":[1-9]', done.stdout)


def test_nothing_listening_is_no_success() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = subprocess.run(
        [load_client.build(), f"--port={port}", "redis"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""


def test_phases_are_counted_apart(server: SmallRedis) -> None:
    with load_client.running("redis", f"--port={server.port}", "--phase=quiet") as client:
        client.phase("patching")
        while not client.verdict_so_far()["phases"]["patching"]["answered"]:
            pass
        verdict = client.stop()
    phases = verdict["phases"]
    assert list(phases) == ["quiet", "patching"]
    assert sum(phase["requests"] for phase in phases.values()) == verdict["requests"]
    for phase in phases.values():
        latency = phase["latency_us"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"] <= latency["max"]


def test_latency_counts_from_when_a_request_was_due(liar: LyingServer) -> None:
    """A server that stops for a while makes every request of that while late, not only one."""

    def stall(data: bytes) -> bytes:
        liar.ended.wait(0.4)
        return data

    options = ("--connections=1",)
    verdict = load_with(liar, stall, *options)
    assert verdict["verdict"] == "pass"
    spoilt = verdict["phases"]["spoilt"]
    assert spoilt["latency_us"]["max"] >= 300_000
    assert spoilt["longest_silence_us"] >= 300_000


@pytest.mark.parametrize("option", ["--rate=0", "--rate=x", "--seconds=1e9", "--host=nowhere"])
def test_bad_options_are_refused(option: str) -> None:
    done = subprocess.run([load_client.build(), option, "redis"], capture_output=True, text=True)
    assert done.returncode == 2
    assert option.split("=")[1] in done.stderr
