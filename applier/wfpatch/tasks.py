# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks that run in an address space, and how one looks from outside, without a stop."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

from wfpatch.errors import Failed, Refused
from wfpatch.libc import same_memory

# include/linux/sched.h
_PF_EXITING = 0x4
_PF_IO_WORKER = 0x10
_PF_KTHREAD = 0x200000
#: How often the threads of a process are listed until two listings are equal.
LISTINGS = 1000


@dataclass(frozen=True)
class Task:
    """A task that runs user code in the address space. start_time: clock ticks since boot."""

    tgid: int
    tid: int
    comm: str
    start_time: int


@dataclass(frozen=True)
class Look:
    """A task seen from outside.

    ``running`` is true when it runs or is about to, and nothing else below may be relied on then.
    ``syscall`` is None outside of one (page fault, group stop); ``arguments`` are its six words.
    ``stamp`` was taken before the rest: two looks with equal stamps enclose a time in which the
    task, asleep in both, did not run at all.
    """

    tid: int
    state: str
    running: bool
    syscall: int | None
    arguments: tuple[int, ...]
    sp: int
    pc: int
    stamp: tuple[int, ...]


@dataclass(frozen=True)
class TaskStat:
    """The fields of /proc/TID/stat that are used here (proc(5))."""

    comm: str
    state: str
    parent: int
    flags: int
    start_time: int
    processor: int

    @property
    def runs_user_code(self) -> bool:
        """Whether it will ever run user code again."""
        return self.state not in "ZXx" and not self.flags & (
            _PF_EXITING | _PF_IO_WORKER | _PF_KTHREAD
        )

    @property
    def kernel_thread(self) -> bool:
        """Whether it is a thread of the kernel's own."""
        return bool(self.flags & _PF_KTHREAD)


def read_proc(path: str) -> bytes | None:
    """A small file of /proc in one read; None when its task is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError as error:
        raise Refused(
            "no_permission",
            f"cannot read {path} ({error.strerror}); run as root with CAP_SYS_PTRACE",
        ) from error
    try:
        return os.read(fd, 16384)
    except ProcessLookupError:
        return None
    except PermissionError as error:
        raise Refused(
            "no_permission",
            f"cannot read {path} ({error.strerror}); run as root with CAP_SYS_PTRACE",
        ) from error
    finally:
        os.close(fd)


def read_stat(tgid: int, tid: int) -> TaskStat | None:
    """The task's stat line; None when it is gone."""
    return _parse_stat(read_proc(f"/proc/{tgid}/task/{tid}/stat"))


def read_process_stat(pid: int) -> TaskStat | None:
    """The stat line of a process (its leader's state); None when it is gone."""
    return _parse_stat(read_proc(f"/proc/{pid}/stat"))


def _parse_stat(data: bytes | None) -> TaskStat | None:
    if not data:
        return None
    # comm may hold spaces and parentheses: it ends at the last one.
    head, _, tail = data.rpartition(b")")
    fields = tail.split()
    return TaskStat(
        comm=head.partition(b"(")[2].decode("utf-8", "surrogateescape"),
        state=fields[0].decode(),
        parent=int(fields[1]),
        flags=int(fields[6]),
        start_time=int(fields[19]),
        processor=int(fields[36]),
    )


def read_status(tgid: int, tid: int) -> dict[str, str] | None:
    """/proc/TGID/task/TID/status as a dictionary; None when the task is gone."""
    data = read_proc(f"/proc/{tgid}/task/{tid}/status")
    if not data:
        return None
    result = {}
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        key, separator, value = line.partition(":")
        if separator:
            result[key] = value.strip()
    return result


def status_fields(tgid: int, tid: int, *names: str) -> tuple[str, ...] | None:
    """Some fields of /proc/TGID/task/TID/status, "" for what the kernel does not have.

    None when the task is gone. Much quicker than the whole, for what is asked of every thread.
    """
    data = read_proc(f"/proc/{tgid}/task/{tid}/status")
    if not data:
        return None
    found = []
    for name in names:
        _, separator, rest = data.partition(b"\n" + name.encode() + b":")
        value = rest.partition(b"\n")[0].strip() if separator else b""
        found.append(value.decode("utf-8", "surrogateescape"))
    return tuple(found)


def _listed(tgid: int) -> set[int]:
    try:
        return {int(name) for name in os.listdir(f"/proc/{tgid}/task")}
    except (FileNotFoundError, ProcessLookupError):
        return set()


def thread_ids(tgid: int) -> list[int]:
    """All thread ids of a process, ascending; empty when it is gone.

    A listing of /proc/TGID/task may leave out living threads: it ends early when the thread that it
    told of last ends at that moment, and goes on by counting, from a place that has moved
    (next_tid() and first_tid(), fs/proc/base.c). The thread that ended was told of, and the next
    listing does not have it: so of two equal listings in a row the first left nobody out. Where
    threads come and go too fast for that, all that were told of are taken together.
    """
    every = before = _listed(tgid)
    for _ in range(LISTINGS):
        now = _listed(tgid)
        if now == before:
            return sorted(now)
        every, before = every | now, now
    return sorted(every)


class SharingProcesses:
    """Finds the processes that share an address space: vfork and CLONE_VM children and their
    parents.

    They are not listed in /proc/PID/task. A process that was seen not to share stays so (it got a
    copy at its birth, and nothing can join an address space later), so ``current`` asks only about
    new ones and about those that share: they leave by executing a program.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._sharing: set[int] = set()
        self._others: set[int] = set()

    def current(self) -> list[int]:
        """The process ids that share the address space now, this one first."""
        # Read anew each time: that no id was given out since tells nothing of a child whose id was
        # given out before, and which is not there yet (copy_process(), kernel/fork.c).
        listed = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        members, self._sharing = self._sharing, set()
        for pid in members:
            self._classify(pid)
        # An id that is free may be given to a process that shares.
        self._others &= listed
        for pid in listed - {self._pid}:
            self._classify(pid)
        return [self._pid, *sorted(self._sharing)]

    def _classify(self, pid: int) -> None:
        if pid in self._others or pid in self._sharing:
            return
        try:
            shared = same_memory(self._pid, pid)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise Refused(
                    "kernel_unsupported",
                    "the kernel lacks kcmp(2) (CONFIG_KCMP): which processes share the target's"
                    " memory cannot be told",
                    pid=self._pid,
                ) from error
            if error.errno in (errno.ESRCH, errno.EPERM, errno.EACCES):
                # Gone; or one that even root may not look at, which shares nothing with a process
                # that we may look at.
                return
            raise
        (self._sharing if shared else self._others).add(pid)


def tasks_of(pids: Iterable[int]) -> tuple[Task, ...]:
    """The tasks of these processes that will ever run user code."""
    tasks = []
    for pid in pids:
        for tid in thread_ids(pid):
            stat = read_stat(pid, tid)
            if stat is not None and stat.runs_user_code:
                tasks.append(Task(pid, tid, stat.comm, stat.start_time))
    return tuple(tasks)


def list_tasks(pid: int) -> tuple[Task, ...]:
    """All tasks that share the address space of process ``pid`` and run user code.

    That is /proc/PID/task and the vfork and CLONE_VM processes; not zombies, exiting tasks,
    io_uring's workers. Raises Failed("target_exited") when there is none.
    """
    tasks = tasks_of(SharingProcesses(pid).current())
    if not tasks:
        raise Failed("target_exited", f"process {pid} is gone", pid=pid)
    return tasks


def look(tgid: int, tid: int) -> Look | None:
    """How a task looks now, without stopping it; None when it is gone."""
    base = f"/proc/{tgid}/task/{tid}"
    schedstat = read_proc(f"{base}/schedstat")
    system_call = read_proc(f"{base}/syscall")
    stat = _parse_stat(read_proc(f"{base}/stat"))
    if not schedstat or not system_call or stat is None:
        return None
    stamp = tuple(int(field) for field in schedstat.split())
    fields = system_call.split()
    # Without run counts in the kernel the stamp says nothing: take the task for running.
    running = fields[0] == b"running" or stamp[-1] == 0
    if running:
        return Look(tid, stat.state, True, None, (), 0, 0, stamp)
    number = int(fields[0])
    return Look(
        tid=tid,
        state=stat.state,
        running=False,
        syscall=number if number >= 0 else None,
        arguments=tuple(int(field, 16) for field in fields[1:-2]),
        sp=int(fields[-2], 16),
        pc=int(fields[-1], 16),
        stamp=stamp,
    )
