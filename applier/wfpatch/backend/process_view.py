# SPDX-License-Identifier: GPL-3.0-or-later
"""What every backend sees of a process from outside, without touching a thread."""

from __future__ import annotations

from wfpatch import tasks
from wfpatch.backend import StackBounds, StopRecord, preflight
from wfpatch.maps import MemoryMap
from wfpatch.memory import ProcessMemory
from wfpatch.tasks import Look, Task


class ProcessView:
    """The part of a backend.Session that only looks."""

    def __init__(self, pid: int) -> None:
        preflight.require_live_process(pid)
        self.pid = pid
        self.memory = ProcessMemory(pid)
        self.stops: list[StopRecord] = []
        self.stack_bounds: StackBounds | None = None
        self._owners: dict[int, int] = {}

    def memory_map(self) -> MemoryMap:
        """A fresh snapshot. Raises Failed: target_exited, target_changed after an exec."""
        self.memory.require_alive()
        return MemoryMap.read(self.pid)

    def tasks(self) -> tuple[Task, ...]:
        """All tasks that share the memory and run user code."""
        listed = tasks.list_tasks(self.pid)
        self._owners = {task.tid: task.tgid for task in listed}
        return listed

    def look(self, tid: int) -> Look | None:
        """A task from outside, without a stop; None when it is gone."""
        return tasks.look(self._owner(tid), tid)

    def _owner(self, tid: int) -> int:
        return self._owners.get(tid, self.pid)

    def close(self) -> None:
        """End the work."""
        self.memory.close()
