# SPDX-License-Identifier: GPL-3.0-or-later
"""What the watch says: to the journal with fields (systemd.journal-fields(7)), and to systemd how
it is (sd_notify(3)). Without a journal, one line of text or of JSON each on standard output."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from typing import Any

from .report import printable

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "wfpatch-watch"
ERROR, WARNING, NOTICE, INFORMATION = 3, 4, 5, 6
_MAX_MESSAGE = 4096


def encoded(fields: dict[str, str]) -> bytes:
    """Fields in the journal's native protocol: a value with newlines is given by its length."""
    parts = []
    for name, value in fields.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class Journal:
    """Says what happens; ``as_json``: on standard output, whether there is a journal or not;
    ``silent``: where there is no journal, nowhere."""

    def __init__(self, as_json: bool = False, silent: bool = False) -> None:
        self._as_json = as_json
        self._silent = silent
        self._socket: socket.socket | None = None
        if not as_json and os.path.exists(SOCKET):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def say(self, event: str, message: str, priority: int = INFORMATION, **facts: Any) -> None:
        """One event; ``facts`` become the fields WFPATCH_*. Nothing that a process chose to call
        itself reaches a terminal unescaped."""
        message = printable(message)[:_MAX_MESSAGE]
        known = {name: value for name, value in facts.items() if value not in (None, "")}
        if self._as_json:
            print(json.dumps({"event": event, "message": message, **known}), flush=True)
            return
        if self._socket is not None:
            fields = {
                "MESSAGE": message,
                "PRIORITY": str(priority),
                "SYSLOG_IDENTIFIER": IDENTIFIER,
                "WFPATCH_EVENT": event,
                **{f"WFPATCH_{name.upper()}": printable(_text(known[name])) for name in known},
            }
            with contextlib.suppress(OSError):
                self._socket.sendto(encoded(fields), SOCKET)
                return
        if not self._silent:
            print(f"{IDENTIFIER}: {message}", flush=True)

    def close(self) -> None:
        """Give back what it holds."""
        if self._socket is not None:
            self._socket.close()


def _text(value: Any) -> str:
    return " ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else str(value)


def tell_systemd(state: str) -> None:
    """``READY=1``, ``STATUS=...``, ``WATCHDOG=1`` to whoever started us, if they asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode("utf-8", "replace"), address)
