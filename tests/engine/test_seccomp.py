# SPDX-License-Identifier: GPL-3.0-or-later
"""seccomp filters: evaluated as the kernel evaluates them, and obeyed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import struct

import pytest
from chosen_thread import map_place, open_chosen, open_session
from wfpatch.backend.ptrace import PtraceSession
from wfpatch.errors import Failed, Refused
from wfpatch.seccomp import NO_SECCOMP, SeccompState, Verdict, run_filter
from wfpatch.syscalls import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    mmap_anonymous,
    munmap,
    rt_sigreturn,
    system_call,
)

READ_WRITE = mmap_anonymous(0x10000, 4096, PROT_READ | PROT_WRITE)
READ_EXECUTE = mmap_anonymous(0x10000, 4096, PROT_READ | PROT_EXEC)


def instruction(code, constant=0, jump_true=0, jump_false=0):
    return struct.pack("<HBBI", code, jump_true, jump_false, constant)


# Against the kernel: random programs, installed and tried

PROBE = 0x7000  # no system call has this number: ENOSYS unless the filter says otherwise
ENOSYS = 38
LD_ABS, LD_IMM, LD_MEM, LD_LEN = 0x20, 0x00, 0x60, 0x80
LDX_IMM, LDX_MEM, LDX_LEN = 0x01, 0x61, 0x81
ST, STX, TAX, TXA, NEG = 0x02, 0x03, 0x07, 0x87, 0x84
ALU = (0x04, 0x14, 0x24, 0x34, 0x44, 0x54, 0xA4, 0x64, 0x74)  # + - * / | & ^ << >>
JUMPS = (0x15, 0x25, 0x35, 0x45)  # == > >= &


def random_filter(choose):
    """Answers PROBE with ERRNO(computed from the arguments), everything else with ALLOW."""
    body = []
    stored = set()
    length = choose.randrange(5, 40)
    interesting = (0, 1, 2, 7, 31, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xC000003E, PROBE)

    def constant():
        return choose.choice(interesting) if choose.random() < 0.5 else choose.getrandbits(32)

    for position in range(length):
        kind = choose.randrange(8)
        if kind == 0:
            body.append(instruction(LD_ABS, choose.randrange(16) * 4))
        elif kind == 1:
            body.append(instruction(choose.choice((LD_IMM, LDX_IMM)), constant()))
        elif kind == 2:
            body.append(instruction(choose.choice((LD_LEN, LDX_LEN, TAX, TXA, NEG))))
        elif kind == 3 and not stored:
            # at the front only: the kernel refuses a load from a slot some path has not written
            slot = choose.randrange(16)
            if not any(struct.unpack("<HBBI", i)[0] & 7 == 5 for i in body):
                stored.add(slot)
                body.append(instruction(choose.choice((ST, STX)), slot))
            else:
                body.append(instruction(TAX))
        elif kind == 4 and stored:
            body.append(instruction(choose.choice((LD_MEM, LDX_MEM)), min(stored)))
        elif kind == 5 and length - position > 1:
            room = length - position - 1
            body.append(
                instruction(
                    choose.choice(JUMPS) | choose.choice((0, 8)),
                    constant(),
                    choose.randrange(room),
                    choose.randrange(room),
                )
            )
        else:
            operation = choose.choice(ALU)
            if choose.random() < 0.5:
                value = constant()
                if operation in (0x64, 0x74):
                    value &= 31
                if operation == 0x34:
                    value = value or 1
                body.append(instruction(operation, value))
            else:
                body.append(instruction(operation | 8))
    tail = [instruction(0x54, 0xFFF), instruction(0x44, 0x50000), instruction(0x16)]
    head = [
        instruction(LD_ABS, 0),
        instruction(0x15, PROBE, 1, 0),
        instruction(0x06, 0x7FFF0000),
        instruction(LD_IMM, 0),
        instruction(LDX_IMM, 0),
    ]
    return b"".join(head + body + tail)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def ask_the_kernel(programs, arguments):
    """What the kernel does to the probe under these filters: a Verdict (errno or kill)."""
    libc = ctypes.CDLL(None, use_errno=True)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            for program in programs:
                buffer = ctypes.create_string_buffer(program, len(program))
                structure = _Program(len(program) // 8, ctypes.addressof(buffer))
                if libc.prctl(22, 2, ctypes.byref(structure), 0, 0) != 0:  # PR_SET_SECCOMP
                    os.write(writer, b"refused")
                    os._exit(1)
            words = [ctypes.c_ulong(argument) for argument in arguments]
            result = libc.syscall(ctypes.c_long(PROBE), *words)
            os.write(writer, str(ctypes.get_errno() if result == -1 else 0).encode())
        finally:
            os._exit(0)
    os.close(writer)
    answer = os.read(reader, 64)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    assert answer != b"refused", "the kernel does not take the generated program"
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGSYS
        return Verdict("kill_thread")
    return Verdict("errno", int(answer))


@pytest.mark.parametrize("seed", range(150))
def test_the_kernel_says_the_same(seed):
    choose = random.Random(seed)
    programs = tuple(random_filter(choose) for _ in range(choose.choice((1, 1, 2, 3))))
    arguments = [
        choose.choice((0, 1, 4096, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1, choose.getrandbits(64)))
        for _ in range(6)
    ]
    state = SeccompState(2, programs)
    # The one field the test cannot know is the instruction pointer: it is where libc's syscall is.
    verdicts = {
        state.verdict(system_call("probe", PROBE, *arguments), pointer)
        for pointer in (0, 0x7F1234567890, (1 << 64) - 1)
    }
    found = ask_the_kernel(programs, arguments)
    if len(verdicts) == 1:
        assert verdicts == {found}


def test_most_of_these_programs_do_not_depend_on_the_pointer():
    """Else the test above would compare nothing."""
    decided = 0
    for seed in range(150):
        choose = random.Random(seed)
        program = random_filter(choose)
        call = system_call("probe", PROBE, *(choose.getrandbits(64) for _ in range(6)))
        state = SeccompState(2, (program,))
        decided += state.verdict(call, 0) == state.verdict(call, 0x7F1234567890)
    assert decided > 75


# Words of its own


def test_the_most_restrictive_of_several_filters_wins():
    def only(value):
        return instruction(0x06, value)

    order = [0x80000000, 0x0, 0x30000, 0x50001, 0x7FC00000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000]
    names = [
        "kill_process",
        "kill_thread",
        "trap",
        "errno",
        "user_notification",
        "trace",
        "log",
        "allow",
    ]
    for first, value in enumerate(order):
        assert SeccompState(2, (only(value),)).verdict(READ_WRITE).action == names[first]
        for second, other in enumerate(order):
            state = SeccompState(2, (only(value), only(other)))
            assert state.verdict(READ_WRITE).action == names[min(first, second)]
    assert [Verdict(name).allowed for name in names] == [False] * 6 + [True, True]
    assert SeccompState(2, (only(0x12340000),)).verdict(READ_WRITE).action == "kill_process"


def test_strict_mode_allows_four_calls():
    strict = SeccompState(1)
    assert strict.verdict(rt_sigreturn()).allowed
    assert not strict.verdict(READ_WRITE).allowed
    assert NO_SECCOMP.verdict(READ_WRITE).allowed


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"1234567",
        instruction(0x05, 5),
        instruction(0x20, 62),
        instruction(0x20, 64),
        instruction(0x28, 0) + instruction(0x16),
        instruction(0x60, 16),
        instruction(0x02, 16),
        instruction(0xF4) + instruction(0x16),
        instruction(0xF5) + instruction(0x16),
        instruction(0x47),
    ],
)
def test_what_is_no_filter_is_refused(program):
    with pytest.raises(ValueError, match="seccomp filter"):
        run_filter(program, bytes(64))


# Processes under a filter


@pytest.mark.parametrize(
    ("kind", "verdicts"),
    [
        ("allow", ("allow", "allow", "allow")),
        ("errno-mmap", ("allow", "errno(12)", "allow")),
        ("kill-mmap", ("allow", "kill_process", "allow")),
        ("kill-return", ("allow", "allow", "kill_process")),
    ],
)
def test_the_filter_of_a_process_is_read_and_evaluated(program, start, kind, verdicts):
    process = start(program("seccomp_filter"), kind)
    session = open_session(process.pid)
    for task in session.tasks():
        state = session.seccomp(task.tid)
        assert state.mode == 2
        assert len(state.filters) == 1
        calls = (READ_WRITE, READ_EXECUTE, rt_sigreturn())
        assert tuple(str(state.verdict(call)) for call in calls) == verdicts
        session.seccomp(task.tid)
    # each filter was read in one stop, and then known
    assert [record.purpose for record in session.stops] == ["seccomp"] * 2


@pytest.mark.parametrize("kind", ["errno-mmap", "kill-mmap", "kill-return", "strict"])
def test_a_forbidden_call_is_refused_and_the_process_lives(program, start, kind):
    process = start(program("seccomp_filter"), kind)
    session = open_session(process.pid)
    with pytest.raises(Refused) as caught:
        session.check()
    assert caught.value.reason == "seccomp_forbids"
    with pytest.raises(Refused) as caught:
        map_place(session)
    assert caught.value.reason == "seccomp_forbids"
    assert caught.value.result["call"] in ("mmap", "rt_sigreturn")
    assert "inject" not in {record.purpose for record in session.stops}
    assert process.alive()


@pytest.mark.parametrize("kind", ["kill-mmap", "kill-return"])
def test_a_forbidden_call_that_nobody_asks_about_kills(program, start, monkeypatch, kind):
    process = start(program("seccomp_filter"), kind)
    session = open_session(process.pid)
    monkeypatch.setattr(PtraceSession, "_forbidden", lambda *_: None)
    with contextlib.suppress(Failed):
        map_place(session, timeout=2)
    process.process.wait(10)
    assert process.process.returncode == -signal.SIGSYS


def test_what_is_allowed_is_done_under_a_filter(program, start):
    process = start(program("seccomp_filter"), "errno-mmap")
    session = open_session(process.pid)
    assert session.call([READ_WRITE]) == [0x10000]
    assert session.call([munmap(0x10000, 4096)]) == [0]


def test_the_thread_without_the_filter_is_used(program, start):
    process = start(program("seccomp_filter"), "one-thread")
    session = open_chosen(process.pid)
    session.check()
    main, other = (task.tid for task in session.tasks())
    session.chosen = other
    with pytest.raises(Failed, match="kill_process"):
        map_place(session, timeout=0.3)
    session.chosen = None
    map_place(session)
    assert session.stops[-1].tid == main
    assert process.alive()


def test_a_thread_that_does_not_stop_at_once_is_asked_again(program, start, monkeypatch):
    process = start(program("seccomp_filter"), "allow")
    session = open_session(process.pid)
    stops = iter([False, False, True])

    def visit(self, tid, purpose):
        if not next(stops, True):
            raise Failed("thread_unstoppable", f"thread {tid} did not stop")
        return original(self, tid, purpose)

    original = PtraceSession.visit
    monkeypatch.setattr(PtraceSession, "visit", visit)
    session.check()
    session = open_session(process.pid)
    stops = iter([False, False, True])
    assert session.seccomp(process.pid).mode == 2
    session = open_session(process.pid)
    stops = iter([False] * 3)
    monkeypatch.setattr("wfpatch.backend.ptrace.FILTER_TIMEOUT", 0)
    with pytest.raises(Failed, match="did not stop"):
        session.seccomp(process.pid)


def test_without_the_right_to_read_filters(program, start, monkeypatch):
    process = start(program("seccomp_filter"), "allow")
    session = open_session(process.pid)

    def refuse(tid, index):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("wfpatch.backend.ptrace_requests.get_seccomp_filter", refuse)
    with pytest.raises(Refused) as caught:
        session.seccomp(process.pid)
    assert caught.value.reason == "no_permission"
    assert process.alive()
