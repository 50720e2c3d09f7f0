# SPDX-License-Identifier: GPL-3.0-or-later
"""Events: what happens while a command works, a line of JSON each, for whoever looks on.

The lines go to a file below EVENTS that root alone can read. Its writer holds a lock on it for as
long as it lives, so that a reader knows the end whatever becomes of the writer. What cannot be told
is not told: nothing depends on it.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from .errors import Usage
from .report import ProcessReport, Straggler

EVENTS = Path("/run/wfpatch/events")
NAME = re.compile(r"[0-9a-f]{16,64}\Z")
#: Threads that migrate are told of this often at most, in seconds; the last word is always told.
SELDOM = 0.2
#: How many stragglers an event names.
NAMED = 8
#: Seconds for which events are kept that nobody fetched.
KEPT = 86400.0
#: Seconds between two looks of a reader.
LOOK = 0.02


class Tell(Protocol):
    """What a step calls."""

    def __call__(self, kind: str, /, **facts: Any) -> None: ...


def nobody(_kind: str, /, **_facts: Any) -> None:
    """Nobody looks on."""


def path_of(name: str) -> Path:
    """Where the events of that name lie. Raises Usage for what is no name."""
    if not NAME.match(name):
        raise Usage("usage", f"{name!r} is no name for events: expected are 16 to 64 hex digits")
    return EVENTS / name


class Events:
    """The writer's side; without a name it tells nobody."""

    def __init__(self, name: str | None = None) -> None:
        self._file: int | None = None
        if name is None:
            return
        path = path_of(name)
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            _forget_old(path.parent)
            scratch = path.with_name(f".{os.getpid()}")
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            file = os.open(scratch, flags, 0o600)
            # Locked before anybody can find it: a reader takes a free file for one that ended.
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                os.link(scratch, path)
                self._file = file
            finally:
                scratch.unlink()

    def of(self, pid: int, comm: str, patch: str) -> Tell:
        """What tells of one patch and process."""
        return nobody if self._file is None else _Told(self._write, pid, comm, patch)

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            os.write(self._file, json.dumps(event, sort_keys=True).encode() + b"\n")
        except OSError:
            self._file = None  # a full disk, say


def _forget_old(folder: Path) -> None:
    """Remove what nobody fetched."""
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > KEPT:
            path.unlink()


class _Told:
    def __init__(
        self, write: Callable[[dict[str, Any]], None], pid: int, comm: str, patch: str
    ) -> None:
        self._write = write
        self._who = {"pid": pid, "comm": comm, "patch": patch}
        self._threads: object = None
        self._at = 0.0

    def __call__(self, kind: str, /, **facts: Any) -> None:
        if kind == "threads":
            now = time.monotonic()
            named = [(each["tid"], each["function"]) for each in facts["stragglers"]]
            # From one look to the next, only the words on the same straggler may differ.
            news = (facts["done"], facts["total"], facts["waiting"], named)
            if news == self._threads or now - self._at < SELDOM:
                return
            self._threads, self._at = news, now
        self._write({"event": kind, **self._who, **facts})


def threads_facts(done: int, total: int, stragglers: Sequence[Straggler]) -> dict[str, Any]:
    """For the event ``threads``."""
    named = [asdict(straggler) for straggler in stragglers[:NAMED]]
    return {"done": done, "total": total, "waiting": len(stragglers), "stragglers": named}


def end_facts(report: ProcessReport, changed: bool) -> dict[str, Any]:
    """For the event ``end``: what became of one patch in one process."""
    threads, timings = report.threads, report.timings_us
    return {
        "state": report.state,
        "reason": report.reason,
        "message": report.message,
        "changed": changed,
        "generation": report.generation,
        "migrated": threads.migrated,
        "quiescent": threads.quiescent,
        "total": threads.total,
        "waiting": len(threads.stragglers),
        "stragglers": [asdict(straggler) for straggler in threads.stragglers[:NAMED]],
        "transition_us": timings.transition,
        "longest_stop_us": timings.longest_stop,
    }


def planned_facts(report: ProcessReport) -> dict[str, Any]:
    """For the event ``plan``."""
    ways = collections.Counter(function.arming for function in report.functions)
    return {
        "functions": len(report.functions),
        "ways": {str(way): count for way, count in sorted(ways.items(), key=str) if way},
        "threads": report.threads.total,
        "policy": report.policy,
    }


def follow(name: str, patience: float) -> Iterator[str]:
    """The reader's side: lines as they come, until the writer is gone.

    ``patience``: seconds to wait for it to begin.
    """
    path = path_of(name)
    until = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > until:
            return
        time.sleep(LOOK)
    with path.open(encoding="utf-8") as file:
        rest = ""
        while True:
            ended = _is_free(file.fileno())
            rest += file.read()
            *lines, rest = rest.split("\n")
            yield from lines
            if ended:
                return
            time.sleep(LOOK)


def _is_free(descriptor: int) -> bool:
    """Whether no writer holds the lock (any more)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def print_followed(name: str, patience: float) -> int:
    """The command ``follow``; returns its exit code."""
    # So that the other side knows that it is being told, before anything happens.
    print(json.dumps({"event": "follow", "patch": None}), flush=True)
    for line in follow(name, patience):
        print(line, flush=True)
    return 0
