# SPDX-License-Identifier: GPL-3.0-or-later
"""Visits: one thread stopped for a moment, whatever it and its process are doing."""

from __future__ import annotations

import os
import signal
import time

import pytest
from chosen_thread import open_session
from wfpatch.backend import ptrace_requests
from wfpatch.backend.stops import OVERDUE
from wfpatch.errors import Failed
from wfpatch.tasks import read_stat, read_status


def tracer_of(tgid, tid):
    return int(read_status(tgid, tid)["TracerPid"])


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.002)


def counts(process):
    return int(process.ask("report").split()[1])


def test_a_visit_shows_registers_and_leaves_the_thread_running(program, start):
    process = start(program("threads"), 1, 1)
    session = open_session(process.pid)
    runner = session.tasks()[-1].tid
    with session.visit(runner, "test") as stopped:
        assert read_stat(process.pid, runner).state == "t"
        stack = session.memory_map().containing(stopped.registers.rsp)
        assert stopped.registers.fs_base in stack
        assert stopped.read(stopped.registers.rsp, 8) == session.memory.read(
            stopped.registers.rsp, 8
        )
    before = counts(process)
    eventually(lambda: counts(process) > before)
    assert tracer_of(process.pid, runner) == 0
    (record,) = session.stops
    assert (record.tid, record.purpose) == (runner, "test")
    assert 0 < record.microseconds < 10_000_000


def test_gs_base_is_set_and_inherited(program, start):
    process = start(program("threads"), 2, 1)
    session = open_session(process.pid)
    for task in session.tasks():
        with session.visit(task.tid, "test") as stopped:
            assert stopped.registers.gs_base == 0
            stopped.set_gs_base(4096)
    process.ask("report")
    for task in session.tasks():
        with session.visit(task.tid, "test") as stopped:
            assert stopped.registers.gs_base == 4096
            assert stopped.registers.gs == 0


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, Failed])
def test_an_exception_within_a_visit_lets_the_thread_go(program, start, raised):
    process = start(program("threads"), 0, 1)
    session = open_session(process.pid)
    runner = session.tasks()[-1].tid
    error = Failed("tampered", "x") if raised is Failed else raised("x")
    with pytest.raises(raised):
        with session.visit(runner, "test"):
            raise error
    with pytest.raises(raised):
        with session.hold_all("test", 1.0):
            raise error
    assert all(tracer_of(process.pid, task.tid) == 0 for task in session.tasks())
    before = counts(process)
    eventually(lambda: counts(process) > before)


@pytest.mark.parametrize("name", ["interrupt", "get_registers"])
def test_a_failing_request_lets_the_thread_go(program, start, monkeypatch, name):
    process = start(program("threads"), 0, 1)
    session = open_session(process.pid)
    runner = session.tasks()[-1].tid

    def fail(*_):
        raise OSError(5, "planted")

    with monkeypatch.context() as patched:
        patched.setattr(ptrace_requests, name, fail)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        with pytest.raises(OSError, match="planted"):
            with session.visit(runner, "test"):
                pass
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    if name == "interrupt":
        # Never asked to stop, it runs on; seized it stays until the next stop or our end.
        assert runner in OVERDUE
        ptrace_requests.interrupt(runner)
        eventually(lambda: OVERDUE.settle() or runner not in OVERDUE)
    before = counts(process)
    eventually(lambda: counts(process) > before)
    assert tracer_of(process.pid, runner) == 0


def test_python_signals_wait_until_the_thread_is_let_go(program, start):
    process = start(program("threads"), 0, 1)
    session = open_session(process.pid)
    runner = session.tasks()[-1].tid
    # Not Python's own in a job of the background, whose interrupts are ignored.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            with session.visit(runner, "test"):
                os.kill(os.getpid(), signal.SIGINT)
                assert read_stat(process.pid, runner).state == "t"
    finally:
        signal.signal(signal.SIGINT, previous)
    assert tracer_of(process.pid, runner) == 0


def test_a_thread_that_has_ended(program, start):
    process = start(program("shared_memory_children"))
    session = open_session(process.pid)
    process.say("exit")
    eventually(lambda: read_stat(process.pid, process.pid).state == "Z")
    for tid in (process.pid, 2**22 - 1):
        with pytest.raises(Failed) as caught:
            with session.visit(tid, "test"):
                pass
        assert caught.value.reason == "thread_gone"


def test_a_thread_traced_by_another(program, start):
    process = start(program("threads"), 1)
    session = open_session(process.pid)
    tid = session.tasks()[-1].tid
    other = os.fork()
    if other == 0:
        ptrace_requests.seize(tid)
        time.sleep(30)
        os._exit(0)
    try:
        eventually(lambda: tracer_of(process.pid, tid) == other)
        with pytest.raises(Failed) as caught:
            with session.visit(tid, "test"):
                pass
        assert caught.value.reason == "already_traced"
        assert caught.value.result["tracer"] == other
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    with session.visit(tid, "test"):
        pass


def test_the_parent_of_a_vfork_is_not_asked_to_stop(program, start):
    process = start(program("shared_memory_children"))
    session = open_session(process.pid)
    process.say("vfork 2500")
    eventually(lambda: read_stat(process.pid, process.pid).state == "D")
    with pytest.raises(Failed) as caught:
        with session.visit(process.pid, "test"):
            pass
    assert caught.value.reason == "thread_unstoppable"
    assert read_stat(process.pid, process.pid).state == "D", "it was waited for"
    assert tracer_of(process.pid, process.pid) == 0
    assert process.line().startswith("back")
    with session.visit(process.pid, "test"):
        pass


def test_an_overdue_thread_is_let_go_when_it_stops(program, start, monkeypatch):
    """As above, but caught in vfork after it was looked at: asked to stop, it cannot."""
    process = start(program("shared_memory_children"))
    session = open_session(process.pid)
    process.say("vfork 1000")
    eventually(lambda: read_stat(process.pid, process.pid).state == "D")
    monkeypatch.setattr("wfpatch.backend.hold.await_stoppable", lambda *_: True)
    with pytest.raises(Failed) as caught:
        with session.visit(process.pid, "test"):
            pass
    assert caught.value.reason == "thread_unstoppable"
    assert process.pid in OVERDUE
    assert tracer_of(process.pid, process.pid) == os.getpid()
    # Nothing of ours runs meanwhile but the handler of SIGCHLD.
    assert process.line().startswith("back")
    assert process.pid not in OVERDUE
    assert tracer_of(process.pid, process.pid) == 0
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_a_stopped_process_stays_stopped(program, start):
    process = start(program("threads"), 1, 1)
    session = open_session(process.pid)
    process.kill(signal.SIGSTOP)
    eventually(lambda: set(process.states().values()) == {"T"})
    for task in session.tasks():
        with session.visit(task.tid, "test") as stopped:
            stopped.set_gs_base(8192)
    with session.hold_all("test", 2.0) as held:
        assert len(held) == 3
    eventually(lambda: set(process.states().values()) == {"T"})
    process.kill(signal.SIGCONT)
    before = counts(process)
    eventually(lambda: counts(process) > before)
    with session.visit(session.tasks()[-1].tid, "test") as stopped:
        assert stopped.registers.gs_base == 8192


def test_the_processor_that_a_thread_waits_for_is_visited(program, start, monkeypatch):
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one processor: there is nobody else to wait for")
    process = start(program("threads"), 0, 1)
    session = open_session(process.pid)
    runner = session.tasks()[-1].tid
    elsewhere = max(allowed)
    os.sched_setaffinity(runner, {elsewhere})
    asked = []
    true_setaffinity = os.sched_setaffinity

    def recorded(tid, mask):
        true_setaffinity(tid, mask)
        asked.append((set(mask), read_stat(os.getpid(), os.getpid()).processor))

    monkeypatch.setattr(os, "sched_setaffinity", recorded)
    os.sched_setaffinity(0, {min(allowed)})
    os.sched_setaffinity(0, allowed)
    del asked[:]
    # Whether a thread keeps us waiting for as long as the patience lasts is chance.
    monkeypatch.setattr("wfpatch.backend.stops._PATIENCE_NS", 0)
    rounds = 0
    while not asked:
        with session.visit(runner, "test") as stopped:
            assert stopped.registers.rip
        rounds += 1
        assert rounds < 2000
    assert asked[0] == ({elsewhere}, elsewhere)
    assert [mask for mask, _ in asked] == [{elsewhere}, allowed]
    assert os.sched_getaffinity(0) == allowed


def test_a_processor_that_may_not_be_visited_is_no_error(program, start, monkeypatch):
    process = start(program("threads"), 0, 1)
    session = open_session(process.pid)

    def refuse(*_):
        raise OSError(22, "planted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    monkeypatch.setattr("wfpatch.backend.stops._PATIENCE_NS", 0)
    for _ in range(50):
        for task in session.tasks():
            with session.visit(task.tid, "test") as stopped:
                assert stopped.registers.rip


def test_no_signal_is_lost_or_doubled(program, start):
    process = start(program("queued_signals"))
    session = open_session(process.pid)
    end = time.monotonic() + 3
    visits = 0
    while time.monotonic() < end:
        for task in session.tasks():
            with session.visit(task.tid, "test"):
                visits += 1
        with session.hold_all("test", 2.0):
            pass
    words = process.ask("report").split()
    sent, handled, wrong = int(words[1]), int(words[3]), int(words[5])
    assert visits > 100
    assert sent > 100
    assert sent - handled in (0, 1)
    assert wrong == 0


@pytest.mark.parametrize("mode", ["leader", "thread"])
@pytest.mark.parametrize("delay", [5, 20])
def test_exec_in_the_middle_of_visits(program, start, mode, delay):
    process = start(program("exec_self"), mode, delay)
    session = open_session(process.pid)
    process.say("go")
    deadline = time.monotonic() + 20
    seen = set()
    while "target_changed" not in seen:
        assert time.monotonic() < deadline
        for task in session.tasks():
            try:
                with session.visit(task.tid, "test") as stopped:
                    stopped.set_gs_base(0)
            except Failed as error:
                assert error.reason in ("thread_gone", "target_changed", "thread_unstoppable")
                seen.add(error.reason)
    assert process.line() == "again"
    eventually(lambda: set(process.states().values()) == {"S"})
    eventually(lambda: len(OVERDUE) == 0)
    assert all(tracer_of(process.pid, tid) == 0 for tid in process.states())


@pytest.mark.parametrize("mode", ["leader", "thread", "exit"])
def test_exec_and_exit_while_all_are_held(program, start, mode):
    """Held in a loop until it happens: every hold ends, whatever state the threads die in."""
    process = start(program("exec_self"), mode, 30)
    session = open_session(process.pid)
    process.say("go")
    begun = time.monotonic()
    while time.monotonic() - begun < 0.5:
        try:
            with session.hold_all("test", 2.0):
                pass
        except Failed as error:
            assert error.reason in (
                "hold_timeout",
                "target_exited",
                "target_changed",
                "thread_gone",
            )
            if error.reason == "target_exited":
                break
    if mode != "exit":
        assert process.line() == "again"
        eventually(lambda: set(process.states().values()) == {"S"})
        assert all(tracer_of(process.pid, tid) == 0 for tid in process.states())
    else:
        eventually(lambda: not process.alive())
    eventually(lambda: len(OVERDUE) == 0)
