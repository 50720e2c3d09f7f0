# SPDX-License-Identifier: GPL-3.0-or-later
"""A process under work: its objects, its regions, what is in force in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from .backend import Backend, Session
from .discovery import Target
from .elf_object import ObjectImage, objects
from .errors import Failed, Refused
from .events import Tell, nobody
from .live_region import BlankRegion, LiveRegion, find_regions
from .maps import MemoryMap
from .region_header import PatchNote
from .tasks import read_process_stat


@dataclass
class LiveProcess:
    """What is known about a process; ``images`` and ``memory_map`` are as of opening."""

    session: Session
    target: Target
    memory_map: MemoryMap
    images: tuple[ObjectImage, ...]
    image: ObjectImage
    regions: list[LiveRegion]
    blank: list[tuple[ObjectImage, BlankRegion]] = field(default_factory=list)
    tell: Tell = nobody

    @property
    def region(self) -> LiveRegion | None:
        """The region of the target object."""
        for region in self.regions:
            if region.image.start == self.image.start:
                return region
        return None

    @property
    def generation(self) -> int:
        """The process's generation: the newest of its regions'."""
        return max((region.header.generation for region in self.regions), default=0)

    @property
    def in_transition(self) -> LiveRegion | None:
        """The region with an open transition; there is one at most in a process."""
        for region in self.regions:
            if region.header.transition is not None:
                return region
        return None

    def patches(self) -> tuple[PatchNote, ...]:
        """The patches in force in all objects of the process."""
        return tuple(note for region in self.regions for note in region.generation().patches)

    def free_rows(self) -> tuple[int, ...]:
        """Rows of the tables that no thread can be in."""
        free: set[int] | None = None
        for region in self.regions:
            rows = set(region.header.free_rows)
            free = rows if free is None else free & rows
        return tuple(sorted(free or ()))

    def require_same_process(self) -> None:
        """Raise target_exited or target_changed when the pid is no longer this process's."""
        stat = read_process_stat(self.target.pid)
        if stat is None or stat.start_time != self.target.start_time:
            raise Failed("target_exited", f"process {self.target.pid} is gone")


def _image_of(images: Sequence[ObjectImage], target: Target) -> ObjectImage:
    for image in images:
        if target.base in (image.start, image.base):
            if image.build_id != target.build_id:
                raise Refused(
                    "build_id_mismatch",
                    f"{target.path} of process {target.pid} has build-id "
                    f"{image.build_id or 'none'} in memory, {target.build_id} in its file",
                )
            return image
    raise Failed("target_changed", f"process {target.pid} no longer maps {target.path}")


@contextmanager
def open_process(backend: Backend, target: Target) -> Iterator[LiveProcess]:
    """Open the process of a target for work, or for a look; nothing is written or stopped."""
    session = backend.open(target.pid)
    try:
        memory_map = session.memory_map()
        images = objects(target.pid, session.memory, memory_map)
        image = _image_of(images, target)
        regions, blank = find_regions(session.memory, memory_map, images)
        process = LiveProcess(session, target, memory_map, images, image, regions, blank)
        process.require_same_process()
        yield process
    finally:
        session.close()
