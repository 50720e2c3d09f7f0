# SPDX-License-Identifier: GPL-3.0-or-later
"""Opt-outs: what of a host is left as it is, by service, process, user or path, or all of it.

They lie in the store (``opt-outs.json``), so that whoever applies patches there keeps to them: a
rollout, a person at the command line, and the watch.
"""

from __future__ import annotations

import fnmatch
import os
import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .strict_json import Fields
from .tasks import read_proc, status_fields

KINDS = ("host", "service", "process", "user", "path")
MAX_FILE = 1 << 20
MAX_RULES = 4096
# What systemd names a cgroup after; the innermost unit is the process's own.
_UNIT = re.compile(r"/([^/\n]+\.(?:service|scope|socket|mount|swap))(?=/|$)", re.MULTILINE)


@dataclass(frozen=True)
class OptOut:
    """One rule. ``pattern`` is a shell pattern (fnmatch(3)); for the kind host it says nothing.

    service: the systemd unit; process: its name (comm); user: name or number of the effective
    user; path: of the executable.
    """

    kind: str
    pattern: str

    def __str__(self) -> str:
        return self.kind if self.kind == "host" else f"{self.kind} {self.pattern}"


def parse_opt_outs(value: Any) -> tuple[OptOut, ...]:
    """The rules in the value of opt-outs.json; raises strict_json.Invalid."""
    fields = Fields(value)
    fields.number("schema", 1, 1)
    rules = fields.each(
        "rules",
        lambda rule: OptOut(rule.text("kind", 16, KINDS), rule.text("pattern", 4096)),
        MAX_RULES,
    )
    fields.done()
    return rules


def unit_of(pid: int) -> str:
    """The systemd unit that the process runs in, "" when there is none."""
    found = _UNIT.findall((read_proc(f"/proc/{pid}/cgroup") or b"").decode("utf-8", "replace"))
    return found[-1] if found else ""


def _users(pid: int) -> tuple[str, ...]:
    fields = status_fields(pid, pid, "Uid")
    if not fields or not fields[0]:
        return ()
    number = fields[0].split()[1]
    try:
        return (number, pwd.getpwuid(int(number)).pw_name)
    except KeyError:
        return (number,)


def opted_out(rules: Sequence[OptOut], pid: int, comm: str, exe: str) -> str | None:
    """The first rule that the process falls under, for people; None when there is none."""
    for rule in rules:
        if rule.kind == "host":
            return str(rule)
        if rule.kind == "service":
            subjects: tuple[str, ...] = (unit_of(pid),)
        elif rule.kind == "process":
            subjects = (comm,)
        elif rule.kind == "user":
            subjects = _users(pid)
        else:
            subjects = (exe, os.path.basename(exe)) if "/" not in rule.pattern else (exe,)
        if any(fnmatch.fnmatchcase(subject, rule.pattern) for subject in subjects if subject):
            return str(rule)
    return None
