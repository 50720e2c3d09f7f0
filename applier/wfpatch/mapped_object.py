# SPDX-License-Identifier: GPL-3.0-or-later
"""Which objects processes map, found cheaply: a host has hundreds of processes.

The build-id is read from the mapped *file* (through /proc/PID/map_files, so also when its name is
gone or in another mount namespace), once per file. A process can alter what lies in its memory but
not that. elf_object.py reads the memory of the few that match.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass

from .elf_header import PAGE, Segment, build_id, parse_header
from .errors import Failed, Refused

# A mapping of a file's beginning: an object's headers. Inode 0 is no file.
_HEADERS = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) r..[ps] 00000000 ([0-9a-f:]+) ([1-9][0-9]*) +(.*)$", re.MULTILINE
)
_EXECUTABLE = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ r.x[ps] [0-9a-f]+ ([0-9a-f:]+) ([1-9][0-9]*) ", re.MULTILINE
)
# A page of code that was swapped for a patched copy: anonymous, right behind a mapping of its file.
_SWAPPED = re.compile(
    rb"^[0-9a-f]+-([0-9a-f]+) .{4} [0-9a-f]+ ([0-9a-f:]+) ([1-9][0-9]*) .*\n"
    rb"(?=\1-[0-9a-f]+ r.xp 00000000 00:00 0 *$)",
    re.MULTILINE,
)
_DELETED = b" (deleted)"


@dataclass(frozen=True)
class MappedObject:
    """A file that a process maps the beginning of, and code from.

    ``start`` and ``end`` are the bounds of that first mapping. ``build_id`` is "" for a file
    without one, or one that could not be read.
    """

    pid: int
    start: int
    end: int
    path: str
    deleted: bool
    build_id: str


class BuildIds:
    """The build-ids of files, by device, inode and time of change; good for one run."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}

    def of_mapping(self, pid: int, start: int, end: int, path: str) -> str:
        """The build-id of the file behind a mapping, "" where there is none."""
        return self._first(f"/proc/{pid}/map_files/{start:x}-{end:x}", f"/proc/{pid}/root{path}")

    def of_executable(self, pid: int) -> str:
        """The build-id of the program that the process executes, "" where there is none."""
        return self._first(f"/proc/{pid}/exe")

    def _first(self, *links: str) -> str:
        for link in links:
            try:
                status = os.stat(link)
                key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
                if key not in self._known:
                    self._known[key] = _build_id_of_file(link)
                return self._known[key]
            except (OSError, ValueError):
                continue  # not allowed to use map_files, or the name is gone
        return ""

    def __len__(self) -> int:
        return len(self._known)


def _build_id_of_file(path: str) -> str:
    # O_NONBLOCK: the name in a foreign root may by now be a pipe, whose opening would hang
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        page = os.pread(descriptor, PAGE, 0)
        header = parse_header(page)
        if header is None:
            return ""

        def read(segment: Segment) -> bytes:
            end = segment.offset + segment.file_size
            if end <= len(page):
                return page[segment.offset : end]
            return os.pread(descriptor, segment.file_size, segment.offset)

        return build_id(header, read)
    finally:
        os.close(descriptor)


def mapped_objects(pid: int, cache: BuildIds | None = None) -> tuple[MappedObject, ...]:
    """The objects whose code a process maps, by address; () for one without memory (a kthread).

    Raises Failed ``target_exited``, Refused ``no_permission``.
    """
    cache = BuildIds() if cache is None else cache
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise Failed(
            "target_exited", f"process {pid} is gone: no /proc/{pid}/maps", pid=pid
        ) from None
    except PermissionError as error:
        raise Refused(
            "no_permission",
            f"cannot read /proc/{pid}/maps ({error.strerror}); run as root with CAP_SYS_PTRACE",
            pid=pid,
        ) from error
    with_code = set(_EXECUTABLE.findall(text))
    with_code.update((match[2], match[3]) for match in _SWAPPED.finditer(text))
    found = []
    for match in _HEADERS.finditer(text):
        if (match[3], match[4]) not in with_code:
            continue
        start, end = int(match[1], 16), int(match[2], 16)
        deleted = match[5].endswith(_DELETED)
        name = match[5][: -len(_DELETED)] if deleted else match[5]
        path = os.fsdecode(name.replace(b"\\012", b"\n"))
        found.append(
            MappedObject(pid, start, end, path, deleted, cache.of_mapping(pid, start, end, path))
        )
    return tuple(found)


def find_object(
    pid: int, build_ids: Collection[str], cache: BuildIds | None = None
) -> tuple[MappedObject, ...]:
    """Those of the process's objects whose file has one of ``build_ids`` (lower-case hex)."""
    return tuple(o for o in mapped_objects(pid, cache) if o.build_id and o.build_id in build_ids)
