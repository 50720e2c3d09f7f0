# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the watch by themselves: what it may spend, what it says, what it waits for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from watched.world import Watched, compiled
from wfpatch import journal
from wfpatch.journal import Journal, encoded
from wfpatch.watch.budget import Budget, Limits
from wfpatch.watch.kept_store import KeptStore
from wfpatch.watch.lookout import Lookout, identity_of, linked

_PTRACE_TRACEME, _PTRACE_DETACH = 0, 17
_C = ctypes.CDLL(None, use_errno=True)
_C.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def turns(budget, name, begin, end, step=0.1):
    """When there was a turn, asking all the time."""
    found, now = [], begin
    while now < end:
        if not budget.take(name, now):
            found.append(round(now, 1))
        now += step
    return found


def test_a_storm_gets_fewer_and_fewer_turns():
    budget = Budget(Limits(burst=5, every=1.0, slowest=8.0))
    given = turns(budget, "a", 0.0, 100.0)
    assert given[:5] == [0.0, 0.1, 0.2, 0.3, 0.4]
    pauses = [round(given[at + 1] - given[at], 1) for at in range(4, len(given) - 1)]
    assert pauses[0] <= 1.1 and max(pauses) <= 8.2
    assert all(pauses[at + 1] >= pauses[at] - 0.2 for at in range(len(pauses) - 1))
    assert len(given) < 5 + 20
    assert budget.slowed("a") and not budget.slowed("b")
    assert budget.take("b", 100.0) == 0.0, "another object has a purse of its own"


def test_after_the_storm_it_is_as_before():
    budget = Budget(Limits(burst=5, every=1.0, slowest=8.0))
    turns(budget, "a", 0.0, 20.0)
    assert len(turns(budget, "a", 100.0, 100.45)) == 5
    assert budget.take("a", 100.5) > 100.5


def test_what_is_deferred_is_told_when():
    budget = Budget(Limits(burst=1, every=2.0))
    assert budget.take("a", 10.0) == 0.0
    assert budget.take("a", 10.5) == 12.5
    assert budget.take("a", 11.0) == 12.5
    assert budget.take("a", 12.5) == 0.0
    assert budget.take("a", 12.6) == 16.5


def test_the_journal_gets_fields(tmp_path, monkeypatch):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(10)
        monkeypatch.setattr(journal, "SOCKET", str(path))
        with contextlib.closing(Journal()) as saying:
            saying.say("patched", "a\x1b[2J[7] is\nwell", 5, pid=7, unit="", patches=["x", "y"])
        fields = receiver.recv(65536).split(b"\n")
    assert fields == [
        b"MESSAGE=a\\x1b[2J[7] is\\nwell",
        b"PRIORITY=5",
        b"SYSLOG_IDENTIFIER=wfpatch-watch",
        b"WFPATCH_EVENT=patched",
        b"WFPATCH_PID=7",
        b"WFPATCH_PATCHES=x y",
        b"",
    ]


def test_a_field_of_several_lines_is_no_other_field():
    data = encoded({"A": "one\nWFPATCH_PID=1", "B": "two"})
    assert data == b"A\n" + (17).to_bytes(8, "little") + b"one\nWFPATCH_PID=1\nB=two\n"


@pytest.fixture
def stopped_at_exec():
    """begin(path): a program that has been executed, and has not run one instruction."""
    processes = []

    def begin(path):
        process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: _C.ptrace(_PTRACE_TRACEME, 0, None, None),  # noqa: PLW1509
        )
        processes.append(process)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()


def test_the_dynamic_linker_is_waited_for(tmp_path, stopped_at_exec):
    process = stopped_at_exec(compiled("service", tmp_path))
    assert not linked(process.pid)
    assert _C.ptrace(_PTRACE_DETACH, process.pid, None, None) == 0
    assert process.stdout.readline().startswith(b"ready")
    assert linked(process.pid)


def test_the_dynamic_linker_is_waited_for_in_its_middle(tmp_path, start):
    """It has begun, and says to debuggers that it is at it."""
    program = compiled("slow_start", tmp_path, "-fno-stack-protector", "-Wl,-z,now")
    running = start(program, ready=None)
    blocked = "0 0x0 "  # read() of the standard input
    deadline = time.monotonic() + 30
    while not Path(f"/proc/{running.pid}/syscall").read_text().startswith(blocked):
        assert time.monotonic() < deadline and running.alive()
    assert os.readlink(f"/proc/{running.pid}/exe") == str(program)
    assert not linked(running.pid)
    running.say("x")
    assert running.line() == "ready 7"
    assert linked(running.pid)


def test_a_static_program_has_no_linker_to_wait_for(tmp_path, stopped_at_exec):
    process = stopped_at_exec(compiled("service", tmp_path, "-static"))
    assert linked(process.pid)


def test_an_exec_makes_another_program_of_a_process(tmp_path, stopped_at_exec, start):
    running = start("/bin/sh", "-c", f"read line; exec {compiled('service', tmp_path)}", ready=None)
    before = identity_of(running.pid)
    assert before == identity_of(running.pid)
    running.say("go")
    assert running.line().startswith("ready")
    after = identity_of(running.pid)
    assert (after.pid, after.start_time) == (before.pid, before.start_time)
    assert after != before


def test_identity_of_what_is_no_program(start):
    running = start("/bin/sleep", 1000, ready=None)
    os.kill(running.pid, signal.SIGKILL)
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    assert identity_of(running.pid) is None, "a zombie"
    assert identity_of(2**22 + 1) is None


def test_maps_are_read_once(tmp_path, start, monkeypatch):
    """A sweep over processes that did not change reads none of their maps."""
    world = Watched(tmp_path)
    running = start(world.program)
    lookout = Lookout()
    bundle = world.signed.store().bundle("fix-answer")
    lookout.want(bundle.manifest.target.build_ids, libraries=True)
    assert [identity.pid for identity, _ in lookout.sweep()] == [running.pid]
    read = []
    monkeypatch.setattr(
        "wfpatch.watch.lookout.mapped_objects", lambda pid, _files: read.append(pid) or ()
    )
    assert [identity.pid for identity, _ in lookout.sweep()] == [running.pid]
    assert running.pid not in read and os.getppid() not in read
    assert lookout.newcomers() == [] or running.pid not in lookout.newcomers()


def test_a_library_that_came_later_is_found(tmp_path, start):
    library = Watched(tmp_path, "library", "-shared", "-fPIC")
    running = start(compiled("late_loader", tmp_path, "-ldl"), library.program)
    lookout = Lookout()
    bundle = library.signed.store().bundle("fix-answer")
    lookout.want(bundle.manifest.target.build_ids, libraries=True)
    assert lookout.sweep() == []
    running.ask("load")
    assert [identity.pid for identity, _ in lookout.sweep()] == [running.pid]


def test_a_bundle_is_verified_again_when_something_changed(tmp_path, monkeypatch):
    world = Watched(tmp_path)
    store = KeptStore(world.signed.store())
    loads = []
    original = KeptStore.__mro__[1].bundle
    monkeypatch.setattr(
        KeptStore.__mro__[1],
        "bundle",
        lambda self, name: loads.append(name) or original(self, name),
    )
    first = store.bundle("fix-answer")
    assert store.bundle("fix-answer") is first and len(loads) == 1
    stamp = store.stamp()
    with open(world.signed.signers, "a", encoding="ascii") as file:
        file.write("# more\n")
    assert store.stamp() != stamp
    store.bundle("fix-answer")
    assert len(loads) == 2
