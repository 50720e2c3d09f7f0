# SPDX-License-Identifier: GPL-3.0-or-later
"""What the applier tells: per process, per CVE, for the host. schemas/result.schema.json fits it.

Nothing here decides anything: every field is filled from what verify.py read in live memory or
from what the transition measured.
"""

from __future__ import annotations

import datetime
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import __version__

#: A host takes its worst process: the later in this order, the worse.
STATES = (
    "not_affected",
    "fixed",
    "patched",
    "unknown",
    "pending",
    "partial",
    "unpatchable",
    "blocked",
    "vulnerable",
)
#: Patches in these states have new code in the process.
IN_FORCE = ("patched", "pending", "partial")
#: Stops of more threads than this are counted and summed up, not listed one by one.
LISTED_STOPS = 64


@dataclass(frozen=True)
class FunctionReport:
    """A replaced function as read from live memory; ``leads_to`` is new, old, mixed or unknown."""

    name: str
    patch: str | None
    entry: int
    arming: str | None
    leads_to: str
    address: int | None


@dataclass(frozen=True)
class Straggler:
    """A thread that keeps a transition open, and the old function it is in, where known."""

    tid: int
    comm: str
    function: str | None
    reason: str


@dataclass(frozen=True)
class Threads:
    """Counts of the threads of a process."""

    total: int = 0
    migrated: int = 0
    quiescent: int = 0
    stragglers: tuple[Straggler, ...] = ()


@dataclass(frozen=True)
class Timings:
    """Durations in microseconds, None where not measured; ``longest_stop`` of any thread."""

    load: int | None = None
    arm: int | None = None
    transition: int | None = None
    longest_stop: int | None = None


@dataclass(frozen=True)
class Stop:
    """One stop of one thread, in microseconds."""

    tid: int
    purpose: str
    microseconds: int


@dataclass(frozen=True)
class PatchState:
    """The state of one patch in one process."""

    id: str
    state: str


@dataclass(frozen=True)
class ObjectReport:
    """The object a patch is for, as mapped in the process."""

    name: str
    build_id: str
    path: str
    deleted: bool


@dataclass(frozen=True)
class ProcessReport:
    """One process and one object of it."""

    pid: int
    start_time: int
    comm: str
    exe: str
    object: ObjectReport
    state: str
    generation: int = 0
    reason: str | None = None
    message: str = ""
    backend: str = "ptrace"
    policy: str | None = None
    patches: tuple[PatchState, ...] = ()
    functions: tuple[FunctionReport, ...] = ()
    threads: Threads = field(default_factory=Threads)
    timings_us: Timings = field(default_factory=Timings)
    stops: tuple[Stop, ...] = ()
    stops_count: int = 0
    opted_out: str | None = None  # the rule that leaves it as it is

    def with_stops(self, stops: Sequence[Stop]) -> ProcessReport:
        """The report with the stops of this run; the longest are listed, all are counted."""
        longest = sorted(stops, key=lambda stop: -stop.microseconds)
        return replace(
            self,
            stops=tuple(longest[:LISTED_STOPS]),
            stops_count=len(stops),
            timings_us=replace(
                self.timings_us, longest_stop=longest[0].microseconds if longest else 0
            ),
        )


@dataclass(frozen=True)
class CveReport:
    """The state of one CVE on this host: that of the worst process."""

    id: str
    state: str
    patch: str


def worst(states: Iterable[str], default: str) -> str:
    """The worst of ``states``, ``default`` when there are none."""
    return max(states, key=STATES.index, default=default)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and the like as JSON values."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def boot_id() -> str:
    """The kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def summary(processes: Sequence[ProcessReport]) -> dict[str, Any]:
    """What a diff of before and after compares."""
    return {
        "state": worst((process.state for process in processes), "not_affected"),
        "processes": [
            {
                "pid": process.pid,
                "comm": process.comm,
                "object": process.object.name,
                "generation": process.generation,
                "state": process.state,
                "patches": [patch.id for patch in process.patches if patch.state in IN_FORCE],
            }
            for process in processes
        ],
    }


@dataclass(frozen=True)
class Result:
    """The one result shape, from applier to module to report."""

    changed: bool
    state: str
    processes: tuple[ProcessReport, ...] = ()
    cves: tuple[CveReport, ...] = ()
    before: tuple[ProcessReport, ...] = ()
    after: tuple[ProcessReport, ...] | None = None  # None: as ``processes`` says
    reason: str | None = None
    message: str = ""
    warnings: tuple[str, ...] = ()
    backend: str = "ptrace"

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "schema": 1,
            "changed": self.changed,
            "state": self.state,
            "reason": self.reason,
            "message": self.message,
            "before": summary(self.before),
            "after": summary(self.processes if self.after is None else self.after),
            "processes": plain(self.processes),
            "cves": plain(self.cves),
            "warnings": list(self.warnings),
            "applier": {"version": __version__, "backend": self.backend},
            "host": {"boot_id": boot_id(), "hostname": socket.gethostname()},
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }


def printable(text: str) -> str:
    """Text that came out of a process, safe for a terminal: control characters are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def human(result: Result) -> str:
    """The result for a person: one line per process, then what is wrong."""
    lines = []
    for process in result.processes:
        threads = process.threads
        patches = (
            ", ".join(f"{printable(patch.id)}: {patch.state}" for patch in process.patches)
            or "none"
        )
        lines.append(
            f"{printable(process.comm)}[{process.pid}] {process.state}  patches {patches}  "
            f"generation {process.generation}  threads {threads.total} "
            f"(migrated {threads.migrated}, quiescent {threads.quiescent}, "
            f"stragglers {len(threads.stragglers)})  "
            f"longest stop {process.timings_us.longest_stop or 0} us"
        )
        lines.extend(
            f"  {function.name} @ {function.entry:#x} ({function.arming or 'not armed'}) -> "
            f"{function.leads_to} code at {function.address or 0:#x}"
            for function in process.functions
        )
        lines.extend(
            f"  straggler {straggler.tid} {printable(straggler.comm)}: "
            f"{printable(straggler.function or '?')}: {straggler.reason}"
            for straggler in threads.stragglers
        )
        if process.opted_out:
            lines.append(f"  opted out: {printable(process.opted_out)}")
        if process.reason:
            lines.append(f"  {process.reason}: {printable(process.message)}")
    lines.extend(f"{cve.id} ({cve.patch}): {cve.state}" for cve in result.cves)
    lines.extend(f"warning: {printable(warning)}" for warning in result.warnings)
    if result.reason:
        lines.append(f"{result.reason}: {printable(result.message)}")
    lines.append(f"{'changed' if result.changed else 'unchanged'}, state {result.state}")
    return "\n".join(lines)
