# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding the processes that map an object, by its build-id: executables and libraries, also those
whose file is deleted or lies in another mount namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .errors import WfpatchError
from .mapped_object import BuildIds, MappedObject, mapped_objects
from .patch_elf import PatchedObject
from .tasks import read_process_stat


@dataclass(frozen=True)
class Target:
    """A process and the object of it that a patch is for.

    ``matches`` tells whether the build-id is one of the patch's; without, the object only has the
    name. ``start_time`` in clock ticks since boot.
    """

    pid: int
    start_time: int
    comm: str
    exe: str
    name: str
    build_id: str
    path: str
    deleted: bool
    base: int
    matches: bool


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def _exe(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def _of_process(pid: int, patched: PatchedObject, cache: BuildIds) -> Target | None:
    stat = read_process_stat(pid)
    if stat is None or stat.kernel_thread:
        return None
    named: MappedObject | None = None
    found: MappedObject | None = None
    for mapped in mapped_objects(pid, cache):
        if mapped.build_id in patched.build_ids:
            found = mapped
            break
        if os.path.basename(mapped.path) in (patched.name, patched.soname):
            named = named or mapped
    chosen = found or named
    if chosen is None:
        return None
    return Target(
        pid,
        stat.start_time,
        stat.comm,
        _exe(pid),
        patched.soname or patched.name,
        chosen.build_id,
        chosen.path,
        chosen.deleted,
        chosen.start,
        found is not None,
    )


def find_targets(patched: PatchedObject, pids: Sequence[int] = ()) -> tuple[Target, ...]:
    """The processes that map the object, by pid; ``pids`` limits the search.

    A process that ends meanwhile, or may not be read, is left out when all are searched and is an
    error when it was named.
    """
    cache = BuildIds()
    own = os.getpid()
    result = []
    for pid in sorted(pids or _pids()):
        if pid == own:
            continue
        try:
            target = _of_process(pid, patched, cache)
        except WfpatchError:
            if pids:
                raise
            continue
        if target is not None:
            result.append(target)
    return tuple(result)
