# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that is stopped, held and injected into sees no EINTR it would not have seen anyway.

The program has a thread in each blocking call that a stop can interrupt. What undoes the EINTR is
switched off once for each kind of stop, and the program sees it then.

WFPATCH_EINTR_CYCLES sets how often a patch is applied and reverted in each way (10).
"""

from __future__ import annotations

import os
import time

import pytest
import sample_patch
import wfpatch.injection
import wfpatch.rows
from chosen_thread import map_place, open_chosen, unmap_place
from proof.backends import NAME, ptrace_only
from proof.patching import Patching, only_way
from wfpatch.backend.stops import InterruptedCalls, Tracee
from wfpatch.syscalls import NR_RESTART_SYSCALL

CYCLES = int(os.environ.get("WFPATCH_EINTR_CYCLES", "10"))
NEW_VERSION = "int version(void);\n__attribute__((noipa)) int version(void) { return 42000; }\n"
#: What a plain stop and continue makes return EINTR.
NAMED = {
    *("epoll_wait_inf", "epoll_wait_timed", "recv_timeo", "accept_timeo", "semop_wait"),
    *("semtimedop_wait", "sigtimedwait_inf", "sigtimedwait_timed"),
}


@pytest.fixture
def blocked(program, start):
    process = start(program("blocked_calls", "-lrt"))
    names = {}
    for word in process.ask("list").split():
        name, _, tid = word.partition(":")
        names[name] = int(tid)
    # What a kernel may lack (io_uring, POSIX message queues) is left out by the program.
    assert len(names) >= 40
    assert names.keys() >= NAMED | {"aio_wait", "read_pipe", "poll_timed", "futex_timed"}
    process.names = names
    return process


def report(process):
    """name -> (EINTRs, returns)"""
    result = {}
    for word in process.ask("report").split():
        name, _, numbers = word.partition("=")
        eintr, _, returns = numbers.partition("/")
        result[name] = (int(eintr), int(returns))
    return result


def nothing_returned(process):
    return {name: numbers for name, numbers in report(process).items() if numbers != (0, 0)} == {}


def interrupted(process):
    """The calls that returned, each of them once with EINTR at least."""
    found = {name for name, numbers in report(process).items() if numbers != (0, 0)}
    assert all(report(process)[name][0] for name in found), report(process)
    return found


def until_interrupted(process, names):
    """Wait until the calls have returned, and come to rest again."""
    deadline = time.monotonic() + 10
    while not interrupted(process) >= names:
        assert time.monotonic() < deadline, names - interrupted(process)
        time.sleep(0.01)


def test_the_program_counts(blocked):
    """The judge judged: a handled signal makes each call return EINTR once."""
    blocked.ask("signal")
    deadline = time.monotonic() + 10
    while set(report(blocked).values()) != {(1, 1)}:
        assert time.monotonic() < deadline, report(blocked)
        time.sleep(0.01)


def test_visits(blocked):
    session = open_chosen(blocked.pid)
    for turn in range(20):
        for tid in blocked.names.values():
            with session.visit(tid, "test") as stopped:
                stopped.set_gs_base(4096 * (turn % 2))
    assert nothing_returned(blocked)


def test_holds(blocked):
    session = open_chosen(blocked.pid)
    for _ in range(20):
        with session.hold_all("test", 5.0) as held:
            assert len(held) >= len(blocked.names)
    assert nothing_returned(blocked)


def test_injections_into_each_thread(blocked):
    session = open_chosen(blocked.pid)
    for turn in range(3):
        for tid in blocked.names.values():
            session.chosen = tid
            map_place(session)
            unmap_place(session)
        if turn == 0:
            # From now on those with a time limit are in restart_syscall.
            for tid in blocked.names.values():
                with session.visit(tid, "test"):
                    pass
    assert {record.tid for record in session.stops} == set(blocked.names.values())
    assert nothing_returned(blocked)


def test_injections_by_an_applier_that_did_not_make_the_stop_before(blocked):
    """Threads in restart_syscall whose calls only their code tells."""
    earlier = open_chosen(blocked.pid)
    for tid in blocked.names.values():
        with earlier.visit(tid, "test"):
            pass
    earlier.close()
    session = open_chosen(blocked.pid)
    used = 0
    for tid in blocked.names.values():
        seen = session.look(tid)
        session.chosen = tid
        if seen.syscall == 219:
            # syscall(2) moves its number from a register: unknown, so the thread is not used.
            with pytest.raises(Exception, match="restart_syscall of an unknown call"):
                map_place(session, timeout=0.2)
            continue
        map_place(session)
        unmap_place(session)
        used += 1
    assert used >= 36
    assert nothing_returned(blocked)


# The whole of it


@pytest.mark.parametrize(
    ("way", "policy"),
    [("byte", "auto"), ("swap", "auto"), ("hold", "auto"), ("byte", "global")],
)
def test_applying_and_reverting(blocked, program, tmp_path, monkeypatch, way, policy):
    """Nobody sees an EINTR when a patch comes and goes, with the visits that free its rows."""
    only_way(monkeypatch, way)
    # All of them, not only the longest.
    monkeypatch.setattr("wfpatch.report.LISTED_STOPS", 100_000)
    patching = Patching(tmp_path, blocked.pid)
    elf = sample_patch.build(program("blocked_calls", "-lrt"), NEW_VERSION, ["version"])
    patching.add("fix", elf, policy=policy)
    purposes = set()
    for _ in range(CYCLES):
        done = patching.patched("fix")
        assert blocked.ask("version").startswith("42000")
        undone = patching.reverted("fix")
        assert blocked.ask("version").startswith("41000")
        purposes |= {stop.purpose for stop in (*done.stops, *undone.stops)}
    assert {function.arming for function in done.functions} == {way}
    if NAME == "ptrace":
        stops_all = {"hold"} if way == "hold" else {"global"} if policy == "global" else set()
        assert purposes >= {"inject", "recycle"} | stops_all
    assert nothing_returned(blocked)
    print(f"{way} {policy}: {CYCLES} cycles, {len(blocked.names)} calls, stops {purposes}, EINTR 0")


# Without what undoes it


@pytest.fixture
def not_undone(monkeypatch):
    monkeypatch.setattr(Tracee, "_undo_eintr", lambda _: None)


def test_a_visit_without_the_undoing(blocked, not_undone):
    session = open_chosen(blocked.pid)
    for tid in blocked.names.values():
        with session.visit(tid, "test"):
            pass
    until_interrupted(blocked, NAMED)


def test_a_hold_without_the_undoing(blocked, not_undone):
    session = open_chosen(blocked.pid)
    with session.hold_all("test", 5.0):
        pass
    until_interrupted(blocked, NAMED)


@ptrace_only
@pytest.mark.parametrize(("way", "policy"), [("hold", "auto"), ("byte", "global")])
def test_applying_without_the_undoing(
    blocked, program, tmp_path, monkeypatch, not_undone, way, policy
):
    only_way(monkeypatch, way)
    patching = Patching(tmp_path, blocked.pid)
    elf = sample_patch.build(program("blocked_calls", "-lrt"), NEW_VERSION, ["version"])
    patching.add("fix", elf, policy=policy)
    patching.patched("fix")
    until_interrupted(blocked, NAMED)


def test_an_injection_that_does_not_issue_the_call_again(blocked, monkeypatch):
    monkeypatch.setattr(wfpatch.injection, "interrupted_by_stop", lambda _: False)
    session = open_chosen(blocked.pid)
    for tid in blocked.names.values():
        session.chosen = tid
        map_place(session)
        unmap_place(session)
    until_interrupted(blocked, NAMED)


def test_an_injection_that_issues_restart_syscall_again(blocked, monkeypatch):
    """The kernel forgets the call at rt_sigreturn: what is issued again is nothing."""
    monkeypatch.setattr(InterruptedCalls, "number", lambda *_: NR_RESTART_SYSCALL)
    session = open_chosen(blocked.pid)
    for tid in blocked.names.values():
        with session.visit(tid, "test"):
            pass
    restarted = set()
    for name, tid in blocked.names.items():
        if session.look(tid).syscall == NR_RESTART_SYSCALL:
            session.chosen = tid
            map_place(session)
            unmap_place(session)
            restarted.add(name)
    assert restarted
    until_interrupted(blocked, restarted)
