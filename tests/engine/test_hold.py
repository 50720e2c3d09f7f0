# SPDX-License-Identifier: GPL-3.0-or-later
"""Holding all threads at once."""

from __future__ import annotations

import struct
import time

import pytest
from chosen_thread import open_session
from wfpatch.backend.stops import OVERDUE
from wfpatch.errors import Failed
from wfpatch.tasks import list_tasks, read_stat


@pytest.mark.parametrize("threads", [8, 64, 512])
def test_all_threads_are_stopped_at_once_and_go_on(program, start, threads):
    process = start(program("threads"), threads - 2, 1, 64)
    session = open_session(process.pid)
    with session.hold_all("test", 10.0) as held:
        assert {thread.tid for thread in held} == set(process.states())
        assert set(process.states().values()) == {"t"}
        assert len({thread.registers.rsp for thread in held}) == threads
    assert len(session.stops) == threads
    assert {record.purpose for record in session.stops} == {"test"}
    before = process.ask("report").split()
    time.sleep(0.05)
    after = process.ask("report").split()
    assert int(after[1]) > int(before[1])
    assert after[3] == "0"  # no thread woke from epoll_wait


def test_threads_born_meanwhile_are_held_too(program, start):
    process = start(program("thread_storm"), 4)
    word = int(process.ready_line.split()[1])
    session = open_session(process.pid)
    born_meanwhile = 0
    for _ in range(100):
        known = {task.tid for task in session.tasks()}
        with session.hold_all("test", 10.0) as held:
            born_meanwhile += len({thread.tid for thread in held} - known)
            # Whoever still runs would note that it makes progress.
            session.memory.write(word, struct.pack("<Q", 1))
            time.sleep(0.002)
            session.memory.write(word, struct.pack("<Q", 0))
    words = process.ask("report").split()
    assert words[3] == "0"
    assert int(words[1]) > 100
    assert born_meanwhile > 0
    assert len(OVERDUE) == 0


def test_clone_vm_children_are_held(program, start):
    process = start(program("shared_memory_children"))
    child = int(process.ask("clone"))
    session = open_session(process.pid)
    with session.hold_all("test", 2.0) as held:
        assert {thread.tid for thread in held} == {task.tid for task in list_tasks(process.pid)}
        assert read_stat(child, child).state == "t"
    # Let go, it goes back to its sleep once it gets a processor.
    deadline = time.monotonic() + 10
    while read_stat(child, child).state == "R" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read_stat(child, child).state == "S"


@pytest.mark.parametrize("asked", [False, True])
def test_one_that_cannot_stop_makes_it_time_out_and_all_are_let_go(
    program, start, monkeypatch, asked
):
    process = start(program("shared_memory_children"))
    session = open_session(process.pid)
    process.say("vfork 1000")
    deadline = time.monotonic() + 5
    while read_stat(process.pid, process.pid).state != "D":
        assert time.monotonic() < deadline
    if asked:
        monkeypatch.setattr("wfpatch.backend.hold.await_stoppable", lambda *_: True)
    with pytest.raises(Failed) as caught:
        with session.hold_all("test", 0.2):
            pass
    assert caught.value.reason == "hold_timeout"
    assert caught.value.result["tids"] == [process.pid]
    assert "t" not in process.states().values()
    assert process.line().startswith("back")
    with session.hold_all("test", 2.0) as held:
        assert len(held) == 2


def test_registers_set_in_a_hold_take_effect(program, start):
    process = start(program("threads"), 0, 1)
    session = open_session(process.pid)
    with session.hold_all("test", 2.0) as held:
        for thread in held:
            thread.registers.gs_base = 12288
            thread.set_registers()
    with session.hold_all("test", 2.0) as held:
        assert {thread.registers.gs_base for thread in held} == {12288}
