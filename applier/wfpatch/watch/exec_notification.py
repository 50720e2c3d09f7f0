# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts of programs from fanotify(7): a file was opened to be executed, on any file system that is
mounted here. It works within namespaces; the program has not begun yet when the word comes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct

from wfpatch.libc import C

from .starts import Starts, Unavailable

_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_CLASS_NOTIF = 0x1, 0x2, 0x0
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_FAN_OPEN_EXEC, _FAN_Q_OVERFLOW = 0x1000, 0x4000
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
# Without programs of their own, or without a meaning to fanotify.
_NO_PROGRAMS = (
    *("proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "hugetlbfs"),
    *("debugfs", "tracefs", "securityfs", "bpf", "pstore", "configfs", "efivarfs"),
    *("fusectl", "autofs", "binfmt_misc", "rpc_pipefs", "nsfs"),
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")


def mounted_file_systems() -> dict[bytes, bytes]:
    """Device -> a mount point, for each file system here that may hold programs."""
    found: dict[bytes, bytes] = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ")
            kind = fields[fields.index(b"-") + 1].decode("ascii", "replace")
            if kind not in _NO_PROGRAMS:
                point = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
                found.setdefault(fields[2], point)
    return found


class ExecNotification(Starts):
    """fanotify's FAN_OPEN_EXEC; raises Unavailable with the reason where it cannot be had."""

    name = "fanotify"
    early = True

    def __init__(self) -> None:
        self._fd = C.fanotify_init(
            ctypes.c_uint(_FAN_CLASS_NOTIF | _FAN_CLOEXEC | _FAN_NONBLOCK),
            ctypes.c_uint(os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE),
        )
        if self._fd < 0:
            raise Unavailable(f"fanotify refuses: {os.strerror(ctypes.get_errno())}")
        self._marked: set[bytes] = set()
        problem = self.mark_new()
        if not self._marked:
            os.close(self._fd)
            raise Unavailable(f"fanotify marks no file system: {problem}")

    def mark_new(self) -> str:
        """Mark the file systems that were mounted since; returns what was wrong with the last."""
        problem = ""
        for device, point in mounted_file_systems().items():
            if device in self._marked:
                continue
            if C.fanotify_mark(
                self._fd,
                ctypes.c_uint(_FAN_MARK_ADD | _FAN_MARK_FILESYSTEM),
                ctypes.c_uint64(_FAN_OPEN_EXEC),
                _AT_FDCWD,
                point,
            ):
                problem = f"{os.fsdecode(point)}: {os.strerror(ctypes.get_errno())}"
            else:
                self._marked.add(device)
        return problem

    def fileno(self) -> int:
        """The notification group."""
        return int(self._fd)

    def read(self) -> tuple[set[int], bool]:
        """The processes that are about to execute a program, and whether some were missed."""
        found: set[int] = set()
        missed = False
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found, missed
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.ETXTBSY, errno.ENOENT, errno.ENXIO):
                    raise
                missed = True  # a file that could not be opened for us: its event is lost
                continue
            offset = 0
            while offset + _EVENT.size <= len(data):
                length, _, _, _, mask, descriptor, pid = _EVENT.unpack_from(data, offset)
                if descriptor >= 0:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
                if mask & _FAN_Q_OVERFLOW:
                    missed = True
                elif pid > 0:
                    found.add(pid)
                offset += max(length, _EVENT.size)

    def refresh(self) -> None:
        """Also follow what was mounted meanwhile."""
        self.mark_new()

    def close(self) -> None:
        """End it."""
        os.close(self._fd)
