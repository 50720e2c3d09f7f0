# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes map what is to be patched, looked at no more than needed.

An exec is told at once by the build-id of its executable, which is read once per file. The maps of
a process are read when it is new to a sweep, and again only when the amount of code that is mapped
in it has changed (VmLib of /proc/PID/status), so when it loaded a library.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from dataclasses import dataclass

from wfpatch.dynamic_symbols import DT_DEBUG, DT_NULL
from wfpatch.elf_object import auxiliary_vector
from wfpatch.errors import WfpatchError
from wfpatch.mapped_object import BuildIds, mapped_objects
from wfpatch.memory import ProcessMemory
from wfpatch.tasks import read_proc, status_fields

_MAX_FILES = 1 << 16
_PF_KTHREAD = 0x200000
_AT_PHDR, _AT_PHNUM, _AT_BASE = 3, 5, 7
_PT_DYNAMIC, _PT_PHDR = 2, 6
_MAX_DYNAMIC = 512


@dataclass(frozen=True)
class Identity:
    """A process and the program that it executes; an exec moves the stack, so it makes another."""

    pid: int
    start_time: int
    start_stack: int


def identity_of(pid: int) -> Identity | None:
    """Who a process is now; None when it is gone, ends, or is the kernel's own."""
    data = read_proc(f"/proc/{pid}/stat")
    if not data:
        return None
    # proc(5): the state is field 3, and the name before it may hold anything.
    fields = data.rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X", b"x") or int(fields[6]) & _PF_KTHREAD:
        return None
    return Identity(pid, int(fields[19]), int(fields[25]))


@dataclass
class _Known:
    identity: Identity
    code: str
    found: frozenset[str]


class Lookout:
    """The processes of the host as last seen. ``build_ids`` are those of objects to be patched;
    ``libraries`` tells whether one of them is a shared library."""

    def __init__(self) -> None:
        self.build_ids: frozenset[str] = frozenset()
        self.libraries = False
        self._files = BuildIds()
        self._known: dict[int, _Known] = {}

    def want(self, build_ids: Collection[str], libraries: bool) -> None:
        """Look for these from now on; everything is looked at anew."""
        self.build_ids = frozenset(build_ids)
        self.libraries = libraries
        self._known.clear()

    def executes(self, pid: int) -> frozenset[str]:
        """The build-id of the program that it executes, if it is one of those wanted."""
        return frozenset((self._files.of_executable(pid),)) & self.build_ids

    def maps(self, pid: int) -> frozenset[str]:
        """Those of the build-ids that it maps."""
        try:
            return (
                frozenset(found.build_id for found in mapped_objects(pid, self._files))
                & self.build_ids
            )
        except WfpatchError:
            return frozenset()

    def look(self, pid: int) -> frozenset[str]:
        """As quickly as can be: the program, and its libraries only where one is wanted."""
        return self.executes(pid) or (self.maps(pid) if self.libraries else frozenset())

    def newcomers(self) -> list[int]:
        """The processes that were not there at the last call of this or of ``sweep``."""
        found = []
        for pid in self._pids():
            if pid not in self._known:
                identity = identity_of(pid)
                if identity is not None:
                    # With an amount of code that none has: the next sweep reads its maps.
                    self._known[pid] = _Known(identity, "?", frozenset())
                    found.append(pid)
        return found

    def knows(self, pid: int) -> bool:
        """Whether the process was there at the last sweep."""
        return pid in self._known

    def sweep(self) -> list[tuple[Identity, frozenset[str]]]:
        """All processes that match, as they are now; only what changed in them is read again."""
        if len(self._files) > _MAX_FILES:
            self._files = BuildIds()
        found = []
        known, self._known = self._known, {}
        for pid in self._pids():
            identity = identity_of(pid)
            if identity is None:
                continue
            code = (status_fields(pid, pid, "VmLib") or ("",))[0] if self.libraries else "-"
            before = known.get(pid)
            if before is None or (before.identity, before.code) != (identity, code):
                before = _Known(identity, code, self.maps(pid))
            if before.found:
                found.append((identity, before.found))
            self._known[pid] = before
        return found

    @staticmethod
    def _pids() -> list[int]:
        own = os.getpid()
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]


def linked(pid: int) -> bool:
    """Whether the dynamic linker is through with the program.

    Before, addresses that new code needs are not where they will be. The linker says so in the
    structure that it keeps for debuggers (struct r_debug of <link.h>, r_state RT_CONSISTENT), which
    DT_DEBUG leads to from its beginning on. What cannot be read counts as linked: the planner has
    the last word.
    """
    auxiliary = auxiliary_vector(pid)
    headers, count = auxiliary.get(_AT_PHDR, 0), auxiliary.get(_AT_PHNUM, 0)
    if not auxiliary.get(_AT_BASE) or not headers or not 0 < count < 256:
        return True
    try:
        with ProcessMemory(pid) as memory:
            return _consistent(memory, headers, count)
    except (WfpatchError, OSError, struct.error):
        return True


def _consistent(memory: ProcessMemory, headers: int, count: int) -> bool:
    """What r_state says, found by way of the program headers."""
    table = memory.read(headers, 56 * count)
    bias, dynamic, size = 0, 0, 0
    for kind, _, _, address, _, _, memory_size, _ in struct.iter_unpack("<IIQQQQQQ", table):
        if kind == _PT_PHDR:
            bias = headers - address
        elif kind == _PT_DYNAMIC:
            dynamic, size = address, memory_size
    if not dynamic:
        return True
    entries = memory.read(dynamic + bias, min(size // 16, _MAX_DYNAMIC) * 16)
    for tag, value in struct.iter_unpack("<qQ", entries):
        if tag == DT_NULL:
            break
        if tag == DT_DEBUG:
            if not value:
                return False
            _, first, _, state = struct.unpack("<QQQi", memory.read(value, 28))
            return bool(first) and state == 0
    return True
