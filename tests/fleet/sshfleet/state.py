# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a running fleet, on disk: any later process can tear it down by it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass
class HostRecord:
    """One host: pid 1 of its namespaces as seen here, and the main processes of its services."""

    name: str
    number: int
    address: str
    pid: int
    started: int
    services: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class FleetState:
    """A fleet. `up` is set once all of it answers."""

    name: str
    namespace: str
    services: list[str]
    hosts: list[HostRecord] = dataclasses.field(default_factory=list)
    up: bool = False


def folder(name: str) -> pathlib.Path:
    """Where a fleet's state, keys, logs and inventory lie."""
    return pathlib.Path(os.environ.get("WFPATCH_RUN") or "/run") / "wfpatch-fleet" / name


@contextlib.contextmanager
def locked(name: str) -> Iterator[pathlib.Path]:
    """The fleet's folder, which no other process changes meanwhile; created when it is missing."""
    place = folder(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.parent / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place.mkdir(mode=0o700, exist_ok=True)
        yield place


def load(name: str) -> FleetState | None:
    """The fleet as last written, or None."""
    try:
        read: dict[str, Any] = json.loads((folder(name) / "state.json").read_text())
    except FileNotFoundError:
        return None
    hosts = [HostRecord(**host) for host in read.pop("hosts")]
    return FleetState(**read, hosts=hosts)


def save(fleet: FleetState) -> None:
    """Replaces the file at once: a reader, or one after a crash, sees the old or the new state."""
    path = folder(fleet.name) / "state.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps(dataclasses.asdict(fleet), indent=1) + "\n")
    new.rename(path)
