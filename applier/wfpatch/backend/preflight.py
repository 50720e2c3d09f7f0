# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals before anything is written: what the ptrace backend cannot or must not touch."""

from __future__ import annotations

import os

from wfpatch.errors import Refused
from wfpatch.tasks import Task, TaskStat, read_process_stat, read_status, status_fields

_ELFCLASS64 = 2
_EM_X86_64 = 62


def require_live_process(pid: int) -> TaskStat:
    """Refuse what is no living process of a program: target_exited, kernel_thread."""
    stat = read_process_stat(pid)
    if stat is None:
        raise Refused("target_exited", f"there is no process {pid}", pid=pid)
    if stat.kernel_thread:
        raise Refused("kernel_thread", f"process {pid} ({stat.comm}) is a kernel thread", pid=pid)
    # A leader that called pthread_exit is a zombie too, while its threads go on.
    if not stat.runs_user_code and not _other_threads(pid):
        raise Refused("target_exited", f"process {pid} ({stat.comm}) has exited (zombie)", pid=pid)
    return stat


def _other_threads(pid: int) -> bool:
    try:
        return any(int(name) != pid for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return False


def require_not_init(pid: int, allow_init: bool) -> None:
    """Refuse PID 1, of this or of a nested pid namespace, unless it was asked for: is_init."""
    status = read_status(pid, pid)
    inner = (status or {}).get("NSpid", str(pid)).split()[-1]
    if pid == 1 and not allow_init:
        raise Refused(
            "is_init",
            "process 1 is the init process; patch it only when asked to (--allow-init)",
            pid=pid,
            inner_pid=int(inner),
        )


def require_64bit(pid: int) -> None:
    """Refuse 32-bit and x32 programs by the ELF header of the executable: not_64bit."""
    try:
        with open(f"/proc/{pid}/exe", "rb") as file:
            header = file.read(20)
    except (FileNotFoundError, ProcessLookupError):
        raise Refused(
            "target_exited", f"process {pid} has no program (exiting?)", pid=pid
        ) from None
    except PermissionError as error:
        raise Refused(
            "no_permission",
            f"cannot read /proc/{pid}/exe ({error.strerror}); run as root with CAP_SYS_PTRACE",
            pid=pid,
        ) from error
    require_64bit_header(pid, header)


def require_64bit_header(pid: int, header: bytes) -> None:
    """Refuse by the first 20 bytes of the executable."""
    machine = int.from_bytes(header[18:20], "little")
    if (
        len(header) < 20
        or header[:4] != b"\x7fELF"
        or header[4] != _ELFCLASS64
        or machine != _EM_X86_64
    ):
        raise Refused(
            "not_64bit",
            f"process {pid} is no 64-bit x86-64 process (ELF class {header[4:5].hex()},"
            f" machine {machine})",
            pid=pid,
        )


def require_untraced_tasks(pid: int, tasks: tuple[Task, ...]) -> dict[int, int]:
    """Refuse already_traced and shadow_stack; returns each task's seccomp mode."""
    modes = {}
    for task in tasks:
        fields = status_fields(task.tgid, task.tid, "TracerPid", "x86_Thread_features", "Seccomp")
        if fields is None:
            continue
        tracer = int(fields[0] or 0)
        if tracer and not os.path.exists(f"/proc/self/task/{tracer}"):
            raise Refused(
                "already_traced",
                f"thread {task.tid} ({task.comm}) of process {pid} is traced by process {tracer};"
                " end that tracer (debugger, strace) and try again",
                pid=pid,
                tid=task.tid,
                tracer=tracer,
            )
        _require_no_shadow_stack(pid, task, fields[1])
        modes[task.tid] = int(fields[2] or 0)
    return modes


def require_no_shadow_stack(pid: int, tasks: tuple[Task, ...]) -> None:
    """Refuse shadow_stack."""
    for task in tasks:
        fields = status_fields(task.tgid, task.tid, "x86_Thread_features")
        if fields is not None:
            _require_no_shadow_stack(pid, task, fields[0])


def _require_no_shadow_stack(pid: int, task: Task, features: str) -> None:
    if "shstk" in features.split():
        raise Refused(
            "shadow_stack",
            f"thread {task.tid} ({task.comm}) of process {pid} runs with a shadow stack",
            pid=pid,
            tid=task.tid,
        )
