# SPDX-License-Identifier: GPL-3.0-or-later
"""Who runs in an address space, and how a task looks from outside."""

from __future__ import annotations

import errno
import os
import time

import pytest
from wfpatch import tasks
from wfpatch.errors import Failed, Refused
from wfpatch.syscalls import NR_EPOLL_WAIT
from wfpatch.tasks import (
    SharingProcesses,
    list_tasks,
    look,
    read_stat,
    status_fields,
    thread_ids,
)


def asleep(tid):
    """A look at a main thread once it sleeps."""
    deadline = time.monotonic() + 10
    seen = look(tid, tid)
    while seen.running and time.monotonic() < deadline:
        seen = look(tid, tid)
    assert not seen.running
    return seen


def test_all_threads_are_listed(program, start):
    process = start(program("threads"), 5, 2)
    tasks = list_tasks(process.pid)
    assert len(tasks) == 8
    assert {task.tgid for task in tasks} == {process.pid}
    assert all(task.comm == os.path.basename(process.process.args[0])[:15] for task in tasks)
    assert all(task.start_time == read_stat(task.tgid, task.tid).start_time for task in tasks)


def test_a_fork_child_is_none_of_them_a_clone_vm_child_is(program, start):
    process = start(program("shared_memory_children"))
    assert len(list_tasks(process.pid)) == 2
    child = int(process.ask("clone"))
    tasks = list_tasks(process.pid)
    assert len(tasks) == 3
    assert (child, child) in {(task.tgid, task.tid) for task in tasks}
    # and from the child's point of view
    assert {task.tid for task in list_tasks(child)} == {task.tid for task in tasks}


def test_a_vfork_child_is_one_of_them(program, start):
    process = start(program("shared_memory_children"))
    process.say("vfork 1000")
    deadline = time.monotonic() + 5
    tasks = ()
    while len(tasks) < 3 and time.monotonic() < deadline:
        tasks = list_tasks(process.pid)
    child = next(task for task in tasks if task.tgid != process.pid)
    assert process.line() == f"back {child.tid}"
    assert len(list_tasks(process.pid)) == 2


def test_those_born_later_are_found_by_the_same_search(program, start):
    process = start(program("shared_memory_children"))
    sharing = SharingProcesses(process.pid)
    assert sharing.current() == [process.pid]
    first = int(process.ask("clone"))
    assert sharing.current() == [process.pid, first]


def _missed(process, listed, seconds=6.0, wanted=0):
    """(listings, those that left a thread out that was alive before and after)."""
    number = missed = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (not wanted or missed < wanted):
        before = set(process.ask("marked").split())
        found = {str(tid) for tid in listed(process.pid)}
        after = set(process.ask("marked").split())
        number += 1
        missed += bool((before & after) - found)
    return number, missed


def test_no_thread_is_left_out_where_others_end(program, start):
    number, missed = _missed(start(program("listed_threads"), 2), thread_ids)
    assert number > 100
    assert missed == 0


def test_one_listing_leaves_threads_out(program, start):
    """Why one is not enough: the kernel's own listing, in which a thread ends."""
    process = start(program("listed_threads"), 2)
    _, missed = _missed(process, lambda pid: os.listdir(f"/proc/{pid}/task"), 60.0, wanted=1)
    assert missed == 1


def test_threads_that_come_and_go_too_fast_are_taken_together(monkeypatch):
    listings = iter([{1, 2}, {1, 3}, {1, 4}])
    monkeypatch.setattr(tasks, "_listed", lambda _: next(listings))
    monkeypatch.setattr(tasks, "LISTINGS", 2)
    assert thread_ids(1) == [1, 2, 3, 4]


def test_those_that_execute_a_program_no_longer_share(program, start):
    process = start(program("shared_memory_children"))
    sharing = SharingProcesses(process.pid)
    child = int(process.ask("exec 300"))
    assert sharing.current() == [process.pid, child]
    deadline = time.monotonic() + 20
    while read_stat(child, child).comm != "sleep":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert sharing.current() == [process.pid]
    assert [task.tgid for task in list_tasks(process.pid)] == [process.pid] * 2


def test_an_id_may_be_given_to_one_that_shares(program, start, monkeypatch):
    process = start(program("shared_memory_children"))
    sharing = SharingProcesses(process.pid)
    child = int(process.ask("clone"))
    with monkeypatch.context() as patched:
        patched.setattr(tasks, "same_memory", lambda *_: False)
        assert sharing.current() == [process.pid]
        patched.setattr(os, "listdir", lambda _: [])
        patched.setattr(tasks, "read_proc", lambda _: b"")
        assert sharing.current() == [process.pid]
    assert sharing.current() == [process.pid, child]


def test_a_kernel_that_cannot_tell(program, start, monkeypatch):
    """No kernel here lacks kcmp(2): its answer stands in."""
    process = start(program("threads"), 0)

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(tasks, "same_memory", missing)
    with pytest.raises(Refused) as caught:
        list_tasks(process.pid)
    assert caught.value.reason == "kernel_unsupported"


def test_fields_of_a_status(program, start):
    process = start(program("threads"), 0)
    found = status_fields(process.pid, process.pid, "Tgid", "NoSuchField", "Seccomp")
    assert found == (str(process.pid), "", "0")
    assert status_fields(process.pid, 2**22 - 1, "Tgid") is None


def test_a_leader_that_has_ended_is_no_task_of_its_process(program, start):
    process = start(program("shared_memory_children"))
    process.say("exit")
    deadline = time.monotonic() + 5
    while read_stat(process.pid, process.pid).state != "Z" and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [task.tid != process.pid for task in list_tasks(process.pid)] == [True]


def test_a_process_that_is_gone(program, start):
    process = start(program("threads"), 1)
    process.kill()
    process.process.wait()
    with pytest.raises(Failed) as caught:
        list_tasks(process.pid)
    assert caught.value.reason == "target_exited"
    assert look(process.pid, process.pid) is None


def test_a_sleeper_and_a_runner(program, start):
    process = start(program("threads"), 1, 1)
    looks = [look(process.pid, task.tid) for task in list_tasks(process.pid)]
    sleeper = next(seen for seen in looks if seen.syscall == NR_EPOLL_WAIT)
    assert not sleeper.running
    assert sleeper.arguments[3] & 0xFFFFFFFF == 0xFFFFFFFF  # timeout -1
    runner = looks[-1]
    assert runner.running
    assert runner.syscall is None


def test_equal_stamps_mean_that_it_did_not_run(program, start):
    process = start(program("threads"), 1)
    # Its first sleeps are short ones: it is still starting.
    deadline = time.monotonic() + 10
    before = again = asleep(process.pid)
    while again is before or before.stamp != again.stamp:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        before, again = again, asleep(process.pid)
    process.ask("report")
    after = asleep(process.pid)
    assert (after.sp, after.pc, after.syscall) == (before.sp, before.pc, before.syscall)
    assert after.stamp != before.stamp


def test_a_stranger_comm_is_parsed(program, start, tmp_path):
    strange = tmp_path / "a) R (b"
    strange.symlink_to(program("threads"))
    process = start(strange, 1)
    assert list_tasks(process.pid)[0].comm == "a) R (b"
