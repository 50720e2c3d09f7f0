# SPDX-License-Identifier: GPL-3.0-or-later
"""The applier is killed at every step and at random times; the process notices nothing.

The driver does once what an apply does to a process: looks, visits, a chain that maps a region,
batches through the runner, writes, a hold, and the chain that unmaps. It runs in a forked child
that is killed.

WFPATCH_KILLS sets the number of randomly timed kills (150).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest
from chosen_thread import DATA_SIZE, PLACE, TEXT_SIZE, map_place, open_session, unmap_place
from wfpatch.backend import steps
from wfpatch.errors import Failed
from wfpatch.syscalls import PROT_READ, mmap_anonymous, mremap_over, munmap, system_call
from wfpatch.tasks import list_tasks, read_status

KILLS = int(os.environ.get("WFPATCH_KILLS", "150"))
SPARE = PLACE + 0x100000
GETPID = 39


def work(pid):
    """One run over the process, whatever an earlier one has left there."""
    session = open_session(pid)
    session.check()
    if not session.memory_map().free(PLACE, PLACE + DATA_SIZE + TEXT_SIZE):
        unmap_place(session)
    runner = map_place(session)
    spare = [munmap(SPARE, 0x2000)]
    pages = [mmap_anonymous(SPARE, 0x1000, PROT_READ), mmap_anonymous(SPARE + 0x1000, 0x1000, 1)]
    session.call(spare, runner)
    assert session.call(pages, runner) == [SPARE, SPARE + 0x1000]
    session.memory.write(SPARE, b"moved")
    swap = [mremap_over(SPARE, SPARE + 0x1000, 0x1000), system_call("getpid", GETPID)]
    assert session.call(swap, runner) == [SPARE + 0x1000, read_inner_pid(pid)]
    assert session.memory.read(SPARE + 0x1000, 5) == b"moved"
    for row in (1, 0):
        for task in session.tasks():
            with session.visit(task.tid, "test") as stopped:
                stopped.set_gs_base(4096 * row)
    with session.hold_all("test", 5.0) as held:
        for thread in held:
            session.memory.write_u64(PLACE + 0x8000, thread.registers.rip)
    session.call(spare, runner)
    unmap_place(session)
    session.close()


def read_inner_pid(pid):
    return int(read_status(pid, pid).get("NSpid", str(pid)).split()[-1])


def driver(pid, record=None, kill_at=None):
    """Fork a child that does the work; returns its pid."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            steps.configure(record, kill_at)
            for attempt in range(5):
                try:
                    work(pid)
                except (Failed, AssertionError):
                    # The chain of a killed run took its effect in the middle of this one.
                    if attempt == 4:
                        raise
                    time.sleep(0.05)
                else:
                    break
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not come back into pytest
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ended(child):
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def intact(process):
    """Nobody is stopped or traced, every thread goes on, and nothing of any was changed."""
    assert process.alive()
    for task in list_tasks(process.pid):
        status = read_status(task.tgid, task.tid)
        assert status["TracerPid"] == "0"
        assert status["State"][0] in "SRD", status["State"]
    words = process.ask("report").split()
    assert words[3] == "0", "registers, vector state, mask or stack of a thread were changed"
    return int(words[1]), int(words[5])


@pytest.fixture
def checked(program, start):
    return start(program("register_check"), 1, 2)


def test_the_work_is_done_and_names_its_steps(checked, tmp_path):
    record = tmp_path / "steps"
    assert ended(driver(checked.pid, record=str(record))) == 0
    names = {line.split(" ", 1)[1] for line in record.read_text().splitlines()}
    assert names >= {
        "ptrace SEIZE",
        "ptrace INTERRUPT",
        "ptrace GETREGS",
        "ptrace GETREGSET xstate",
        "ptrace GETSIGMASK",
        "ptrace PEEKSIGINFO",
        "ptrace PEEKDATA",
        "ptrace SETREGS",
        "ptrace POKEUSER gs_base",
        "ptrace DETACH",
        "write memory",
    }
    intact(checked)


def test_ordinary_injection_is_deadly(program, start):
    """Without the frames: registers set to a call, to be restored by one who is killed before."""
    for _ in range(3):
        process = start(program("register_check"), 0, 2, stderr=subprocess.DEVNULL)
        session = open_session(process.pid)
        gadget = session._find_code().gadgets.system_call
        sleeper = session.tasks()[1].tid
        session.close()
        child = os.fork()
        if child == 0:
            with open_session(process.pid).visit(sleeper, "test") as stopped:
                stopped.registers.rip = gadget
                stopped.registers.rax = GETPID
                stopped.registers.orig_rax = (1 << 64) - 1
                stopped.set_registers()
                os.kill(os.getpid(), 9)
        assert ended(child) == -9
        process.process.wait(10)
        assert process.process.returncode in (-signal.SIGSEGV, -signal.SIGILL, -signal.SIGBUS)


def test_killed_before_every_step(checked, tmp_path):
    record = tmp_path / "steps"
    assert ended(driver(checked.pid, record=str(record))) == 0
    total = len(record.read_text().splitlines())
    assert total > 100
    killed = 0
    for number in range(1, total + 1):
        code = ended(driver(checked.pid, kill_at=str(number)))
        assert code in (-9, 0)
        killed += code == -9
        if number % 10 == 0:
            intact(checked)
    assert killed > total * 0.9
    intact(checked)
    # and a run that nobody kills completes, on what the others left
    assert ended(driver(checked.pid)) == 0
    assert session_is_free(checked.pid)


def session_is_free(pid):
    session = open_session(pid)
    return session.memory_map().free(PLACE, PLACE + DATA_SIZE + TEXT_SIZE)


def test_killed_after_every_register_change_and_detach(checked, tmp_path):
    """The moments right after the steps from which on the thread is alone with the chain."""
    record = tmp_path / "steps"
    assert ended(driver(checked.pid, record=str(record))) == 0
    steps_taken = [line.split(" ", 1) for line in record.read_text().splitlines()]
    numbers = [
        number for number, name in steps_taken if name in ("ptrace SETREGS", "ptrace DETACH")
    ]
    assert numbers
    for number in numbers:
        assert ended(driver(checked.pid, kill_at=f"{number}+")) in (-9, 0)
        intact(checked)


def test_killed_at_random_times(checked):
    """The duration of a whole run is measured, and a kill falls anywhere into it."""
    begun = time.monotonic()
    assert ended(driver(checked.pid)) == 0
    duration = time.monotonic() - begun
    choose = random.Random(20)
    killed = 0
    rounds_before, _ = intact(checked)
    for _ in range(KILLS):
        child = driver(checked.pid)
        time.sleep(choose.random() * duration)
        os.kill(child, 9)
        killed += ended(child) == -9
        intact(checked)
    assert killed > KILLS // 4
    assert ended(driver(checked.pid)) == 0
    rounds, _ = intact(checked)
    assert rounds > rounds_before


def test_the_eintr_that_is_left_is_the_one_that_is_documented(program, start):
    """A kill between INTERRUPT and the undoing of EINTR is seen by calls that cannot be restarted.

    In a visit or an injection that is one thread; in a hold all that are held. Nothing else shows.
    """
    process = start(program("blocked_calls", "-lrt"))

    def interrupted():
        return {
            word.partition("=")[0]
            for word in process.ask("report").split()
            if not word.endswith("=0/0")
        }

    restarted = {
        *("recv_plain", "accept_plain", "read_pipe", "read_eventfd", "read_timerfd"),
        *("read_inotify", "poll_inf", "poll_timed", "ppoll_mask", "ppoll_timed", "select_timed"),
        *("pselect_mask", "sleep_relative", "sleep_absolute", "sleep_clock", "futex_inf"),
        *("futex_timed", "msgrcv_wait", "mq_wait", "sigsuspend_wait", "pause_wait", "wait_child"),
        *("waitid_child", "flock_wait", "fifo_open"),
    }
    assert ended(driver(process.pid)) == 0
    assert interrupted() == set()
    choose = random.Random(21)
    for _ in range(max(KILLS // 10, 10)):
        child = driver(process.pid)
        time.sleep(choose.random() * 0.1)
        os.kill(child, 9)
        ended(child)
    assert interrupted() & restarted == set()
    before = process.ask("report")
    assert ended(driver(process.pid)) == 0
    assert process.ask("report") == before
