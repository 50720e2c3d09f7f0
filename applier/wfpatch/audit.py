# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit log of a host: who changed what, when, by which digest, and how it ended.

One line of JSON for each change, in the journal and in a file that is opened to append only, for
root alone. On a host's own path the file also gets the attribute by which nobody can overwrite or
remove it (chattr +a), where the file system has it. That holds off mistakes and whoever is not
root; root may take the attribute away. What must outlive a host's root belongs on another machine:
forward the journal.

A run that is killed leaves no half line: a line is one write within one page of the file, and the
kernel ends a write early between pages if at all.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import pwd
import struct
from pathlib import Path
from typing import Any

from . import __version__
from .journal import NOTICE, Journal
from .report import ProcessReport, boot_id, printable

DEFAULT_STORE, DEFAULT_LOG = Path("/var/lib/wfpatch"), Path("/var/log/wfpatch/audit.log")
#: No line is longer: a page of the file has to hold it.
MAX_LINE = 4096
_MAX_TEXT = 1000
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_APPEND_FL = 0x20


def log_of(store: Path) -> Path:
    """Where the audit log of a store is."""
    return DEFAULT_LOG if store == DEFAULT_STORE else store / "audit.log"


def actor() -> dict[str, Any]:
    """Who runs this; ``login`` is the user of the login session, or of sudo, where there is one."""
    login = None
    with contextlib.suppress(OSError, ValueError):
        number = int(Path("/proc/self/loginuid").read_text(encoding="ascii"))
        if number != 0xFFFFFFFF:
            login = _user(number)
    return {
        "user": _user(os.geteuid()),
        "login": login or os.environ.get("SUDO_USER", "")[:64] or None,
    }


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


class AuditLog:
    """Appends to the log at ``path``; ``by`` is what part of the applier does it. ``problem`` says
    what was wrong with the last attempt: a full disk keeps no patch from being applied."""

    def __init__(self, path: Path, by: str) -> None:
        self._path = path
        self._by = by
        self.problem = ""

    def process(
        self, what: str, patch: str, digest: str, signer: str, report: ProcessReport, changed: bool
    ) -> None:
        """One patch in one process: applied, reverted, or not."""
        self.note(
            what,
            patch=patch,
            digest=digest,
            signer=signer,
            changed=changed,
            state=report.state,
            reason=report.reason,
            message=report.message[:_MAX_TEXT],
            pid=report.pid,
            start_time=report.start_time,
            comm=report.comm,
            exe=report.exe[:_MAX_TEXT],
            object=report.object.name,
            build_id=report.object.build_id,
            generation=report.generation,
        )

    def note(self, what: str, **facts: Any) -> None:
        """Append one line, and tell the journal."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
        line = {
            "time": now,
            "boot_id": boot_id(),
            "applier": __version__,
            "by": self._by,
            **actor(),
            "what": what,
            **facts,
        }
        try:
            self._append(line)
            self.problem = ""
        except OSError as error:
            self.problem = f"audit log {self._path}: {error.strerror}"
        with contextlib.closing(Journal(silent=True)) as journal:
            subject = f" {facts['patch']}" if "patch" in facts else ""
            where = f" in {facts['comm']}[{facts['pid']}]" if "pid" in facts else ""
            journal.say(
                "audit",
                f"{what}{subject}{where}: {facts.get('reason') or facts.get('state') or 'done'}",
                NOTICE,
                **{name: value for name, value in line.items() if name != "message"},
            )

    def _append(self, line: dict[str, Any]) -> None:
        data = _encoded(line)
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if not size and self._path == DEFAULT_LOG:
                seal(descriptor)
            if size and os.pread(descriptor, 1, size - 1) not in (b"\n", b" "):
                data = b"\n" + data  # somebody else's half line stays one of its own
            left = MAX_LINE - size % MAX_LINE
            # Leading spaces are no part of a JSON value, and no harm where they alone are written.
            padding = b" " * left if len(data) > left else b""
            os.write(descriptor, padding + data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _encoded(line: dict[str, Any]) -> bytes:
    """The line, with texts cut until it fits; control characters are escaped by JSON."""
    data = json.dumps(line, sort_keys=False, separators=(",", ":")).encode("ascii") + b"\n"
    limit = 256
    while len(data) > MAX_LINE and limit:
        short = {
            name: printable(value)[:limit] if isinstance(value, str) else value
            for name, value in line.items()
        }
        data = json.dumps(short, separators=(",", ":")).encode("ascii") + b"\n"
        limit //= 2
    return data


def seal(descriptor: int) -> bool:
    """Let the file only be appended to (ioctl_iflags(2)); whether the file system has that."""
    try:
        data = fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, struct.pack("@l", 0))
        flags = struct.unpack("@l", data)[0] | _FS_APPEND_FL
        fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("@l", flags))
    except OSError:
        return False
    return True
