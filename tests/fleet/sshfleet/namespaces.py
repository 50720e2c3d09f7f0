# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting pid 1 of a host in namespaces of its own, and the system calls for it.

Python 3.11 has no unshare, mount or pivot_root, so libc's are called.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import socket
import time
from collections.abc import Callable

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
SYS_PIVOT_ROOT = 155  # x86-64

_libc = ctypes.CDLL(None, use_errno=True)
#: Device nodes that programs take for granted; bound from this machine, since making device nodes
#: is refused in many containers.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags), "unshare")


def setns(path: str | os.PathLike[str]) -> None:
    """Enters the namespace behind that path, of whichever kind it is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(descriptor, 0), f"setns {os.fspath(path)}")
    finally:
        os.close(descriptor)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    arguments = [value.encode() if value else None for value in (source, target, kind)]
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None)
    _checked(result, f"mount {kind or 'bind'} on {target}")


def enter_overlay(
    lower: pathlib.Path, place: pathlib.Path, prepare: Callable[[pathlib.Path], None]
) -> None:
    """Makes an overlay of `lower` the root of this mount namespace.

    What is written lies in a tmpfs that only this namespace has: it goes with its last process.
    `prepare` is called with the new root's path before it is entered.
    """
    mount("", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", str(place), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name in ("upper", "work", "root"):
        (place / name).mkdir()
    root = place / "root"
    options = f"lowerdir={lower},upperdir={place / 'upper'},workdir={place / 'work'}"
    mount("overlay", str(root), "overlay", 0, options)
    mount_api(root)
    prepare(root)
    old = root / "mnt"
    _checked(_libc.syscall(SYS_PIVOT_ROOT, str(root).encode(), str(old).encode()), "pivot_root")
    os.chdir("/")
    _checked(_libc.umount2(b"/mnt", MNT_DETACH), "umount2 /mnt")


def mount_api(root: pathlib.Path) -> None:
    """/proc, /sys, /dev, /run and /tmp of a host; called in its pid and network namespaces."""
    mount("proc", str(root / "proc"), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", str(root / "sys"), "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    device = root / "dev"
    mount("tmpfs", str(device), "tmpfs", MS_NOSUID, "mode=755")
    for name in DEVICES:
        (device / name).touch()
        mount(f"/dev/{name}", str(device / name), "", MS_BIND)
    for name in ("pts", "shm"):
        (device / name).mkdir()
    mount(
        "devpts",
        str(device / "pts"),
        "devpts",
        MS_NOSUID | MS_NOEXEC,
        "newinstance,ptmxmode=0666,gid=5,mode=620",
    )
    mount("tmpfs", str(device / "shm"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    (device / "ptmx").symlink_to("pts/ptmx")
    (device / "fd").symlink_to("/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (device / name).symlink_to(f"/proc/self/fd/{number}")
    for name, mode in (("run", "755"), ("tmp", "1777")):
        mount("tmpfs", str(root / name), "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")


def spawn_init(
    hostname: str, become: Callable[[], None], record: Callable[[int], None], log: pathlib.Path
) -> int:
    """Starts a process as pid 1 of new pid, mount, network and host name namespaces.

    `record` is called with its pid (as seen here) before it goes on, so that whoever tears down
    knows of it whatever happens next. `become` runs as that pid 1 and does not return unless it
    fails. The process is no child of the caller: it outlives him. Returns its pid.
    """
    go_read, go_write = os.pipe()
    pid_read, pid_write = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            os.close(go_write)
            os.close(pid_read)
            os.setsid()
            unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWNET)
            child = os.fork()
            if child:
                os.write(pid_write, str(child).encode())
                os._exit(0)
            os.close(pid_write)
            # An empty read means that the caller is gone and nobody knows of this process.
            if os.read(go_read, 1) != b"g":
                os._exit(1)
            os.close(go_read)
            redirect(log)
            socket.sethostname(hostname)
            become()
        except BaseException as error:  # noqa: BLE001 - no copy of the caller may run on
            os.write(2, f"{hostname}: {error}\n".encode())
        finally:
            os._exit(1)
    os.close(go_read)
    os.close(pid_write)
    try:
        pid = int(os.read(pid_read, 32) or b"0")
        os.waitpid(middle, 0)
        if not pid:
            raise OSError(f"{hostname}: no namespaces; see {log}")
        record(pid)
        os.write(go_write, b"g")
    finally:
        os.close(pid_read)
        os.close(go_write)
    return pid


def redirect(log: pathlib.Path) -> None:
    """Input from /dev/null, output to the end of the log."""
    for path, flags, targets in (
        ("/dev/null", os.O_RDONLY, (0,)),
        (str(log), os.O_WRONLY | os.O_APPEND | os.O_CREAT, (1, 2)),
    ):
        descriptor = os.open(path, flags, 0o644)
        for target in targets:
            os.dup2(descriptor, target)
        if descriptor > 2:
            os.close(descriptor)


def start_time(pid: int) -> int | None:
    """When the process began, in ticks since boot; None when there is none or it is a zombie.

    With the pid it names one process for good, where a pid alone may be given away again.
    """
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def kill(pid: int, started: int, timeout: float = 10.0) -> bool:
    """SIGKILL to that very process, and waits until it is gone. True when it was there.

    For pid 1 of a pid namespace the kernel kills everything else in it first.
    """
    if start_time(pid) != started:
        return False
    descriptor = os.pidfd_open(pid)
    try:
        if start_time(pid) != started:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)
    until = time.monotonic() + timeout
    while start_time(pid) == started:
        if time.monotonic() > until:
            raise TimeoutError(f"process {pid} did not end within {timeout:g} s after SIGKILL")
        time.sleep(0.01)
    return True


def pid_namespace(pid: int) -> str | None:
    """Which pid namespace a process is in; None when it is gone or not ours to look at."""
    try:
        return str(pathlib.Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def inner_pid(pid: int) -> int | None:
    """The pid of a process in its own pid namespace; None when it is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.partition("\nNSpid:")[2].partition("\n")[0].split()[-1])
