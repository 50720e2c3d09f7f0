# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals before anything is written."""

from __future__ import annotations

import os
import struct
import subprocess
import time

import pytest
from chosen_thread import open_session
from wfpatch import tasks
from wfpatch.backend import preflight, ptrace_requests
from wfpatch.errors import Refused
from wfpatch.tasks import Task, read_stat


def refusal(action):
    with pytest.raises(Refused) as caught:
        action()
    return caught.value


def test_an_ordinary_process_passes_without_a_stop(program, start):
    process = start(program("threads"), 3, 1)
    session = open_session(process.pid)
    session.check()
    assert session.stops == []


def test_no_process_and_zombies(program, start):
    assert refusal(lambda: open_session(2**22 - 1)).reason == "target_exited"
    process = start(program("threads"), 1)
    process.kill()
    # Its leader alone may have ended: that is a process in its end, not yet a zombie.
    deadline = time.monotonic() + 10
    while os.listdir(f"/proc/{process.pid}/task") != [str(process.pid)] or (
        read_stat(process.pid, process.pid).state != "Z"
    ):
        assert time.monotonic() < deadline
    assert refusal(lambda: open_session(process.pid)).reason == "target_exited"


def test_a_process_whose_leader_has_ended_is_none(program, start):
    process = start(program("shared_memory_children"))
    process.say("exit")
    deadline = time.monotonic() + 10
    while read_stat(process.pid, process.pid).state != "Z":
        assert time.monotonic() < deadline
    preflight.require_live_process(process.pid)


def test_kernel_threads(monkeypatch):
    kthreadd = next(
        (int(name) for name in os.listdir("/proc") if name.isdigit() and kernel(int(name))), None
    )
    if kthreadd is None:  # a pid namespace: the flags of one stand in for it
        real = preflight.read_process_stat(os.getpid())
        monkeypatch.setattr(
            preflight,
            "read_process_stat",
            lambda pid: type(real)("kthreadd", "S", 0, 0x208040, 1, 0),
        )
        kthreadd = os.getpid()
    assert refusal(lambda: preflight.require_live_process(kthreadd)).reason == "kernel_thread"


def kernel(pid):
    stat = preflight.read_process_stat(pid)
    return stat is not None and stat.kernel_thread


def test_init_is_refused_unless_asked_for():
    assert refusal(lambda: preflight.require_not_init(1, False)).reason == "is_init"
    preflight.require_not_init(1, True)
    # Itself process 1 of a namespace where these tests run in one of their own.
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        preflight.require_not_init(child, False)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# A 32-bit program in 84 + 9 bytes: pause() in a loop, by int $0x80.
PAUSE_32 = bytes.fromhex("b81d000000cd80ebf7")


def elf32(machine=3):
    base, size = 0x08048000, 52 + 32 + len(PAUSE_32)
    header = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, base + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("<8I", 1, 0, base, base, size, size, 5, 4096)
    return header + segment + PAUSE_32


def test_32_bit_programs(tmp_path):
    path = tmp_path / "pause32"
    path.write_bytes(elf32())
    path.chmod(0o755)
    try:
        process = subprocess.Popen([path])
    except OSError as error:
        pytest.skip(f"this kernel runs no 32-bit programs ({error.strerror})")
    try:
        deadline = time.monotonic() + 10
        while os.readlink(f"/proc/{process.pid}/exe") != str(path):
            assert time.monotonic() < deadline
        session = open_session(process.pid)
        assert refusal(session.check).reason == "not_64bit"
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "header",
    [
        elf32(),
        elf32(machine=62),  # x32
        b"\x7fELF\x02\x01\x01".ljust(18, b"\0") + struct.pack("<H", 183),  # another machine
        b"#!/bin/sh\n".ljust(20),
        b"\x7fELF\x02\x01\x01",
        b"",
    ],
)
def test_headers_of_other_programs(header):
    error = refusal(lambda: preflight.require_64bit_header(1, header[:20]))
    assert error.reason == "not_64bit"


def test_a_traced_process(program, start):
    process = start(program("threads"), 2)
    session = open_session(process.pid)
    tid = session.tasks()[-1].tid
    # A tracer that is a process of its own.
    child = os.fork()
    if child == 0:
        ptrace_requests.seize(tid)
        time.sleep(30)
        os._exit(0)
    try:
        deadline = time.monotonic() + 10
        while preflight.read_status(process.pid, tid)["TracerPid"] == "0":
            assert time.monotonic() < deadline
        error = refusal(session.check)
        assert error.reason == "already_traced"
        assert error.result["tracer"] == child
        assert error.result["tid"] == tid
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    session.check()


def test_a_shadow_stack(monkeypatch):
    """No processor here has one that Linux would let a program use: the status line stands in."""
    task = Task(os.getpid(), os.getpid(), "x", 1)
    read = tasks.read_proc
    features = b"shstk wrss"

    def with_features(path):
        data = b"".join(
            line
            for line in read(path).splitlines(keepends=True)
            if not line.startswith(b"x86_Thread_features:")
        )
        return data + b"x86_Thread_features:\t" + features + b"\n"

    monkeypatch.setattr(tasks, "read_proc", with_features)
    error = refusal(lambda: preflight.require_untraced_tasks(os.getpid(), (task,)))
    assert error.reason == "shadow_stack"
    features = b""
    assert preflight.require_untraced_tasks(os.getpid(), (task,)) == {os.getpid(): 0}


def test_without_privileges(program, start):
    """A stranger's process, seen by an unprivileged applier."""
    process = start(program("threads"), 1)
    script = (
        "from wfpatch.backend.ptrace import PtraceBackend\n"
        "from wfpatch.errors import Refused\n"
        "try:\n"
        f"    PtraceBackend().open({process.pid}).check()\n"
        "except Refused as error:\n"
        "    print(error.reason)\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script],
        capture_output=True,
        text=True,
        user=65534,
        group=65534,
        extra_groups=[],
        env={"PYTHONPATH": os.environ["PYTHONPATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.stdout.strip() == "no_permission", done.stderr
