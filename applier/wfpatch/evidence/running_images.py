# SPDX-License-Identifier: GPL-3.0-or-later
"""The images that a process runs, beside the files that bear their names now.

After an upgrade a process runs on with the file it started with: deleted, or replaced by another
of the same name. Build-ids tell a replaced file from one that was only installed again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from wfpatch.errors import WfpatchError
from wfpatch.mapped_object import BuildIds, MappedObject, mapped_objects

#: Where programs put what they map and delete of their own accord: no package was upgraded there.
_SCRATCH = ("/tmp/", "/var/tmp/", "/run/", "/dev/", "/memfd:", "/SYSV", "/proc/", "/anon_")

#: What became of an image's file.
SAME, REBUILT, REPLACED, DELETED, UNKNOWN = "same", "rebuilt", "replaced", "deleted", "unknown"
OUTDATED = (REPLACED, DELETED)


@dataclass(frozen=True)
class RunningImage:
    """An object that a process runs; ``file`` what became of the file, ``file_build_id`` the
    build-id of what bears its name now, "" where nothing does or it has none."""

    mapped: MappedObject
    file: str
    file_build_id: str

    @property
    def outdated(self) -> bool:
        """Whether a restart would run another image."""
        return self.file in OUTDATED

    @property
    def is_installed(self) -> bool:
        """Whether the file on disk is the build that runs."""
        return self.file in (SAME, REBUILT)


def _now_at(pid: int, path: str, cache: BuildIds) -> tuple[os.stat_result | None, str]:
    """The file that has the name now, in the process's own root, and its build-id."""
    name = f"/proc/{pid}/root{path}"
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None, ""
    return status, cache.of_mapping(pid, 0, 0, path)


def _look(mapped: MappedObject, cache: BuildIds) -> RunningImage:
    pid, path = mapped.pid, mapped.path
    now, build_id = _now_at(pid, path, cache)
    if now is None:
        scratch = path.startswith(_SCRATCH) or not path.startswith("/")
        return RunningImage(mapped, UNKNOWN if scratch else DELETED, "")
    try:
        running = os.stat(f"/proc/{pid}/map_files/{mapped.start:x}-{mapped.end:x}")
        same = (running.st_dev, running.st_ino) == (now.st_dev, now.st_ino)
    except OSError:
        same = not mapped.deleted
    if same:
        return RunningImage(mapped, SAME, build_id)
    if mapped.build_id and mapped.build_id == build_id:
        return RunningImage(mapped, REBUILT, build_id)
    return RunningImage(mapped, REPLACED, build_id)


def running_images(pid: int, cache: BuildIds) -> tuple[RunningImage, ...]:
    """The images of a process; () when it is gone or may not be read."""
    try:
        return tuple(_look(mapped, cache) for mapped in mapped_objects(pid, cache))
    except WfpatchError:
        return ()


def shares_our_root(pid: int) -> bool:
    """Whether the process's root directory is ours: then our package database knows its files."""
    try:
        theirs, ours = os.stat(f"/proc/{pid}/root/"), os.stat("/")
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
