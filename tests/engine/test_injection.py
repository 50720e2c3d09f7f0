# SPDX-License-Identifier: GPL-3.0-or-later
"""System calls run inside a process by a thread that notices nothing."""

from __future__ import annotations

import dataclasses
import signal
import struct
import subprocess
import time

import pytest
from chosen_thread import DATA_SIZE, PLACE, TEXT, map_place, open_chosen, unmap_place
from wfpatch import injection, sigframe, xstate
from wfpatch.backend import Runner, ptrace_requests
from wfpatch.errors import Failed, Refused
from wfpatch.injection import DONE, PENDING, RECORD, encode_records
from wfpatch.maps import MemoryMap
from wfpatch.sigframe import Gadgets
from wfpatch.syscalls import (
    NOT_REPORTED,
    PROT_READ,
    mmap_anonymous,
    mprotect,
    mremap_over,
    munmap,
    system_call,
)
from wfpatch.tasks import Look

GETTID, GETPID, GETPPID, CLOSE = 186, 39, 110, 3


def verdict(process):
    """(rounds, wrong, eintr) of a register_check."""
    words = process.ask("report").split()
    return int(words[1]), int(words[3]), int(words[5])


def chosen_threads(session):
    """The checking threads of register_check (neither the main thread nor the feeder)."""
    return [task.tid for task in session.tasks()[1:-1]]


@pytest.mark.parametrize("kind", ["spinners", "sleepers"])
def test_registers_vectors_flags_red_zone_and_mask_are_kept(program, start, kind):
    process = start(program("register_check"), *((3, 0) if kind == "spinners" else (0, 3)))
    session = open_chosen(process.pid)
    for turn in range(60):
        session.chosen = chosen_threads(session)[turn % 3]
        runner = map_place(session)
        calls = [
            mmap_anonymous(PLACE + 0x40000, 0x1000, PROT_READ),
            munmap(PLACE + 0x40000, 0x1000),
            system_call("gettid", GETTID),
        ]
        assert session.call(calls, runner) == [PLACE + 0x40000, 0, session.chosen]
        unmap_place(session)
    rounds, wrong, eintr = verdict(process)
    assert rounds > 60
    assert (wrong, eintr) == (0, 0)


def _frame_of_other_alternate_stack(monkeypatch):
    monkeypatch.setattr(sigframe, "_SS_FLAGS_INVALID", 2)  # SS_DISABLE


def _image_without_magic(monkeypatch):
    monkeypatch.setattr(xstate, "_MAGIC1", 0)


def _image_larger_than_the_tasks(monkeypatch):
    monkeypatch.setattr(
        injection,
        "signal_image",
        lambda raw, layout: xstate.signal_image(
            raw.ljust(layout.size + 8192, b"\0"),
            dataclasses.replace(layout, size=layout.size + 8192),
        ),
    )


def _no_red_zone(monkeypatch):
    monkeypatch.setattr(sigframe, "RED_ZONE", 0)


def _no_mask(monkeypatch):
    monkeypatch.setattr(ptrace_requests, "get_signal_mask", lambda _: 0)


def _call_not_issued_again(monkeypatch):
    monkeypatch.setattr(injection, "restored_registers", lambda tracee: tracee.registers.copy())


@pytest.mark.parametrize(
    "fault",
    [
        _frame_of_other_alternate_stack,
        _image_without_magic,
        _image_larger_than_the_tasks,
        _no_red_zone,
        _no_mask,
        _call_not_issued_again,
    ],
)
def test_each_detail_of_the_frames_is_needed(program, start, monkeypatch, fault):
    process = start(program("register_check"), 2, 2, stderr=subprocess.DEVNULL)
    session = open_chosen(process.pid)
    fault(monkeypatch)
    deadline = time.monotonic() + 60
    while process.alive() and verdict(process)[1] == 0:
        assert time.monotonic() < deadline, "nothing was noticed"
        for tid in chosen_threads(session):
            session.chosen = tid
            map_place(session)
            unmap_place(session)


def test_a_sleeper_is_chosen_first(program, start):
    process = start(program("threads"), 2, 2)
    session = open_chosen(process.pid)
    map_place(session)
    (record,) = session.stops
    seen = session.look(record.tid)
    assert not seen.running


def test_few_of_many_are_looked_at(program, start, monkeypatch):
    process = start(program("threads"), 100)
    session = open_chosen(process.pid)
    looked = set()

    def look(tid):
        looked.add(tid)
        return type(session).look(session, tid)

    monkeypatch.setattr(session, "look", look)
    map_place(session)
    assert 0 < len(looked) < 50
    # None of the first is suitable: the others follow.
    plant, planted = injection.Injection.plant, []

    def unsuitable(plan, tracee, before):
        planted.append(tracee.tid)
        if len(planted) < 60:
            return injection.Unsuitable(tracee.tid, "planted")
        return plant(plan, tracee, before)

    monkeypatch.setattr(injection.Injection, "plant", unsuitable)
    unmap_place(session)
    assert len(planted) == len(set(planted)) == 60


def test_the_map_shows_the_outcome_of_each_call(program, start):
    process = start(program("threads"), 2)
    session = open_chosen(process.pid)
    map_place(session)
    session.memory.write(PLACE, b"before".ljust(4096, b"."))
    session.memory.write(PLACE + 0x2000, b"after".ljust(4096, b"."))
    calls = [
        mprotect(PLACE + 0x1000, 0x1000, PROT_READ),
        mremap_over(PLACE + 0x2000, PLACE, 0x1000),
    ]
    assert session.call(calls) == [0, PLACE]
    assert session.memory.read(PLACE, 5) == b"after"
    assert not session.memory_map().containing(PLACE + 0x1000).writable
    assert session.memory_map().containing(PLACE + 0x2000) is None


def test_a_call_that_fails_is_reported_without_waiting_for_the_end(program, start):
    process = start(program("threads"), 2)
    session = open_chosen(process.pid)
    begun = time.monotonic()
    # beyond the end of user addresses
    calls = [mmap_anonymous(1 << 47, 0x1000, PROT_READ), mmap_anonymous(PLACE, 0x1000, PROT_READ)]
    assert session.call(calls) == [NOT_REPORTED, PLACE]
    assert time.monotonic() - begun < 5


def test_a_place_that_is_taken_is_not_replaced(program, start):
    process = start(program("threads"), 2)
    session = open_chosen(process.pid)
    map_place(session)
    session.memory.write(PLACE, b"precious")
    assert session.call([mmap_anonymous(PLACE, 0x2000, PROT_READ)]) == [NOT_REPORTED]
    assert session.memory.read(PLACE, 8) == b"precious"


def test_a_call_without_a_trace_needs_the_runner(program, start):
    process = start(program("threads"), 2)
    session = open_chosen(process.pid)
    with pytest.raises(ValueError, match="runner"):
        session.call([system_call("getpid", GETPID)])
    assert session.stops == []


def test_the_runner_gives_raw_results_of_any_number_of_calls(program, start):
    process = start(program("threads"), 2)
    session = open_chosen(process.pid)
    runner = map_place(session)
    calls = [system_call("getpid", GETPID), system_call("close", CLOSE, 1 << 20)] * 160
    assert session.call(calls, runner) == [process.pid, -9] * 160
    # in batches of its capacity, each with one stop
    assert [record.purpose for record in session.stops] == ["inject"] * (1 + 4)


@pytest.mark.parametrize(
    "gadgets", ["sigreturn", "pop_rax"], ids=["signal return", "pop of the number"]
)
def test_both_ways_to_rt_sigreturn(program, start, gadgets):
    process = start(program("register_check"), 2, 2)
    session = open_chosen(process.pid)
    code = session._find_code()
    found = code.gadgets
    assert found.sigreturn is not None
    assert found.pop_rax is not None
    if gadgets == "pop_rax":
        session._code = injection.Code(
            Gadgets(found.system_call, None, found.pop_rax), code.signal_returns
        )
    for tid in chosen_threads(session):
        session.chosen = tid
        map_place(session)
        unmap_place(session)
    assert verdict(process)[1:] == (0, 0)


def test_a_static_program_has_what_is_needed(program, start):
    process = start(program("register_check", "-static"), 1, 1)
    session = open_chosen(process.pid)
    for tid in chosen_threads(session):
        session.chosen = tid
        map_place(session)
        unmap_place(session)
    assert verdict(process)[1:] == (0, 0)


# Threads that must not be used, or not everywhere on their stacks


def test_a_program_without_a_way_to_call_is_refused(program, start):
    """No program here has none: one without a readable word of code stands in."""
    process = start(program("threads"), 0)
    session = open_chosen(process.pid)

    class Blank:
        pid = process.pid

        @staticmethod
        def read(address, size):
            return bytes(size)

    with pytest.raises(Refused) as caught:
        injection.find_code(Blank, session.memory_map())
    assert caught.value.reason == "injection_impossible"


def test_alternate_stacks(program, start):
    process = start(program("alternate_stacks"))
    session = open_chosen(process.pid)
    tids = dict(word.split(":") for word in process.ready_line.split()[1:])
    for kind, why in (
        ("heap", "not on its own stack"),
        ("mapped", "not on its own stack"),
        ("tight", "too little room"),
    ):
        session.chosen = int(tids[kind])
        with pytest.raises(Failed, match=why) as caught:
            map_place(session, timeout=0.3)
        assert caught.value.reason == "injection_timeout"
    session.chosen = int(tids["roomy"])
    map_place(session)
    assert process.ask("release") == "intact"


def test_frames_below_an_alternate_stack_destroy_what_is_there(program, start, monkeypatch):
    """Without the floor, a long chain reaches the live frames below a handler's stack."""
    process = start(program("alternate_stacks"))
    session = open_chosen(process.pid)
    tids = dict(word.split(":") for word in process.ready_line.split()[1:])
    session.chosen = int(tids["tight"])
    monkeypatch.setattr(injection, "alternate_stack_floor", lambda *_: 0)
    calls = [mmap_anonymous(PLACE + page * 0x1000, 0x1000, PROT_READ) for page in range(40)]
    assert session.call(calls) == [call.arguments[0] for call in calls]
    assert process.ask("release") != "intact"


def test_the_floor_of_an_alternate_stack_is_found_in_the_signal_frame():
    returns = 0x7F0000001000
    frame = bytearray(sigframe.FRAME_SIZE)
    struct.pack_into("<Q", frame, 0, returns)
    struct.pack_into("<Qi4xQ", frame, sigframe.STACK_OFFSET, 0x10000, 0, 0x4000)
    stack = bytes(64) + bytes(frame)

    def floor(rsp):
        return injection.alternate_stack_floor(stack, rsp & -8, rsp, frozenset({returns}))

    assert floor(0x12000) == 0x10000
    assert floor(0x10000) == 0x10000
    assert floor(0x14000) == 0  # above it: no handler of that stack
    assert floor(0xFFF8) == 0
    struct.pack_into("<i", frame, sigframe.STACK_OFFSET + 8, 2)  # SS_DISABLE
    stack = bytes(64) + bytes(frame)
    assert floor(0x12000) == 0


OWN = """\
00600000-00700000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000001000 ---p 00000000 00:00 0 
7f0000001000-7f0000101000 rw-p 00000000 00:00 0 
7ffff0000000-7ffff0021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_own_stack_holds_the_control_block_or_is_the_main_stack():
    maps = MemoryMap.parse(OWN)
    thread_block = 0x7F0000100700
    low, high, _ = injection.own_stack(maps, 0x7F0000080000, thread_block, None)
    assert 0x7F0000001000 < low < 0x7F0000080000
    assert high == thread_block
    assert injection.own_stack(maps, 0x650000, thread_block, None) is None
    assert injection.own_stack(maps, 0x7F0000000800, thread_block, None) is None
    assert injection.own_stack(maps, 0x7F0000100800, thread_block, None) is None
    low, high, _ = injection.own_stack(maps, 0x7FFFF0010000, thread_block, None)
    assert high == 0x7FFFF0021000
    bounds = (0x7F0000040000, 0x7F0000100000)
    low, high, _ = injection.own_stack(maps, 0x7F0000080000, thread_block, bounds)
    assert low > bounds[0]
    assert high == bounds[1]
    assert injection.own_stack(maps, 0x7F0000030000, thread_block, bounds) is None


def test_little_room_on_the_stack_is_refused(program, start):
    process = start(program("threads"), 1, 0)
    session = open_chosen(process.pid)
    sleeper = session.tasks()[-1].tid
    session.chosen = sleeper
    rsp = session.look(sleeper).sp
    before = session.memory.read(rsp - 8192, 8192)
    session.stack_bounds = lambda tid, fs_base: (rsp - 6000, fs_base)
    with pytest.raises(Failed, match="too little room"):
        map_place(session, timeout=0.3)
    assert session.memory.read(rsp - 8192, 8192) == before
    session.stack_bounds = lambda tid, fs_base: (rsp - 60000, fs_base)
    map_place(session)


def test_a_stopped_process_is_named_and_not_touched(program, start):
    process = start(program("threads"), 1, 1)
    session = open_chosen(process.pid)
    process.kill(signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while set(process.states().values()) != {"T"}:
        assert time.monotonic() < deadline
    with pytest.raises(Failed, match="stopped by a signal") as caught:
        map_place(session, timeout=0.3)
    assert caught.value.reason == "injection_timeout"
    process.kill(signal.SIGCONT)
    map_place(session)


def test_vfork_parent_waiting_another_thread_is_used(program, start):
    process = start(program("shared_memory_children"))
    session = open_chosen(process.pid)
    process.say("vfork 1500")
    deadline = time.monotonic() + 10
    while process.states()[process.pid] != "D":
        assert time.monotonic() < deadline
    map_place(session)
    assert session.stops[-1].tid != process.pid
    assert process.line().startswith("back")


def test_a_process_that_ends_in_the_middle(program, start):
    process = start(program("exec_self"), "exit", 40)
    session = open_chosen(process.pid)
    process.say("go")
    deadline = time.monotonic() + 20
    with pytest.raises(Failed) as caught:
        while time.monotonic() < deadline:
            map_place(session, timeout=5)
            unmap_place(session, timeout=5)
    assert caught.value.reason == "target_exited"


@pytest.mark.parametrize("mode", ["leader", "thread"])
def test_a_process_that_executes_another_program_in_the_middle(program, start, mode):
    process = start(program("exec_self"), mode, 40)
    session = open_chosen(process.pid)
    process.say("go")
    deadline = time.monotonic() + 20
    with pytest.raises((Failed, AssertionError)) as caught:
        while time.monotonic() < deadline:
            map_place(session, timeout=5)
            unmap_place(session, timeout=5)
    if isinstance(caught.value, Failed):
        assert caught.value.reason in ("target_changed", "target_exited")
    assert process.line() == "again"
    time.sleep(0.1)
    assert process.alive()


def test_signals_during_injections_are_all_handled(program, start):
    process = start(program("queued_signals"))
    session = open_chosen(process.pid)
    end = time.monotonic() + 3
    turns = 0
    while time.monotonic() < end:
        session.chosen = session.tasks()[1 + turns % 4].tid
        try:
            map_place(session, timeout=2)
            unmap_place(session, timeout=2)
        except Failed as error:
            assert error.reason == "injection_timeout"
            session.chosen = None
            if not session.memory_map().free(PLACE, PLACE + DATA_SIZE):
                unmap_place(session)
        turns += 1
    words = process.ask("report").split()
    sent, handled, wrong = int(words[1]), int(words[3]), int(words[5])
    assert turns > 50
    assert sent > 100
    assert sent - handled in (0, 1)
    assert wrong == 0


# Batches that an applier has left behind


def leftover(session, runner, done):
    """A batch of three in memory, of which ``done`` have been run."""
    calls = [system_call("getppid", GETPPID)] * 3
    data = bytearray(encode_records(calls))
    for index in range(done):
        struct.pack_into("<Q", data, index * RECORD.size + RECORD.size - 8, DONE)
    session.memory.write(runner.records, bytes(data))


def test_a_batch_that_nobody_runs_is_forgotten(program, start):
    process = start(program("threads"), 1, 1)
    session = open_chosen(process.pid)
    runner = map_place(session)
    leftover(session, runner, 1)
    assert session.call([system_call("getpid", GETPID)], runner) == [process.pid]
    states = [
        struct.unpack_from("<Q", session.memory.read(runner.records, 216), offset)[0]
        for offset in (64, 136, 208)
    ]
    assert states == [DONE, 0, 0]
    assert PENDING not in states


def test_a_batch_that_a_thread_still_runs_is_awaited(program, start):
    """A runner that sleeps in its first call stands for a thread that is kept from going on."""
    process = start(program("threads"), 2)
    session = open_chosen(process.pid)
    runner = map_place(session)
    pause = struct.pack("<QQ", 1, 500_000_000)
    session.memory.write(PLACE + 0x8000, pause)
    slow = [system_call("nanosleep", 35, PLACE + 0x8000), system_call("gettid", GETTID)]
    with pytest.raises(Failed, match="did not run the calls in time"):
        session.call(slow, runner, timeout=0.2)
    with pytest.raises(Failed, match="earlier batch"):
        session.call([system_call("getpid", GETPID)], runner, timeout=0.2)
    assert session.call([system_call("getpid", GETPID)], runner) == [process.pid]
    assert isinstance(runner, Runner)
    assert runner.address == TEXT


# Ranking


def seen(syscall, *arguments, running=False, state="S"):
    padded = tuple(arguments) + (0,) * (6 - len(arguments))
    return Look(1, state, running, syscall, () if running else padded, 0, 0, (1, 1, 1))


def test_ranks():
    endless_read = seen(0, 3)
    endless_poll = seen(7, 0, 0, 0xFFFFFFFF)
    endless_futex = seen(202, 1, 128, 0, 0)
    epoll = seen(232)
    sleep = seen(35)
    timed_futex = seen(202, 1, 128, 0, 0x7000)
    ppoll = seen(271)
    runner = seen(None, running=True, state="R")
    restarted = seen(219)
    ranks = [
        injection.rank(look)
        for look in (endless_poll, endless_futex, epoll, sleep, timed_futex, ppoll, runner)
    ]
    assert ranks == [0, 0, 1, 2, 2, 2, 3]
    assert injection.rank(endless_read) == 1
    assert injection.rank(restarted) == 4
    assert injection.unusable(seen(None)) is not None
    for state in "DTtZ":
        assert injection.unusable(seen(0, state=state)) is not None
    assert injection.unusable(runner) is None
