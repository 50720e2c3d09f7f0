# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory map of a process: a parsed, immutable snapshot of /proc/PID/maps (proc(5))."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wfpatch.errors import Failed, Refused

_DELETED = " (deleted)"


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/PID/maps; ``path`` without escapes and without the mark of deletion."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str
    deleted: bool

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start

    @property
    def readable(self) -> bool:
        """Whether the program may read it."""
        return self.perms[0] == "r"

    @property
    def writable(self) -> bool:
        """Whether the program may write to it."""
        return self.perms[1] == "w"

    @property
    def executable(self) -> bool:
        """Whether the program may execute it."""
        return self.perms[2] == "x"

    @property
    def private(self) -> bool:
        """Whether it is copied on write."""
        return self.perms[3] == "p"

    @property
    def anonymous(self) -> bool:
        """Whether no file stands behind it."""
        return self.inode == 0

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end


def _unescape(path: str) -> str:
    # fs/seq_file.c, seq_path(): a newline becomes \012; a backslash itself is not escaped by maps.
    return path.replace("\\012", "\n")


def _parse_line(line: str) -> Mapping:
    fields = line.split(None, 5)
    try:
        start, _, end = fields[0].partition("-")
        path = fields[5] if len(fields) == 6 else ""
        deleted = path.endswith(_DELETED)
        mapping = Mapping(
            start=int(start, 16),
            end=int(end, 16),
            perms=fields[1],
            offset=int(fields[2], 16),
            device=fields[3],
            inode=int(fields[4]),
            path=_unescape(path[: -len(_DELETED)] if deleted else path),
            deleted=deleted,
        )
    except (IndexError, ValueError) as error:
        raise ValueError(f"not a line of /proc/PID/maps: {line!r}") from error
    if len(mapping.perms) != 4 or mapping.end <= mapping.start:
        raise ValueError(f"not a line of /proc/PID/maps: {line!r}")
    return mapping


class MemoryMap:
    """All mappings of a process, sorted by address."""

    def __init__(self, mappings: Iterable[Mapping]) -> None:
        self._mappings = tuple(sorted(mappings, key=lambda mapping: mapping.start))
        self._starts = [mapping.start for mapping in self._mappings]

    @classmethod
    def parse(cls, text: str) -> MemoryMap:
        """From the text of /proc/PID/maps. Raises ValueError on anything else."""
        return cls(_parse_line(line) for line in text.split("\n") if line)

    @classmethod
    def read(cls, pid: int) -> MemoryMap:
        """A snapshot of the process now.

        Raises Failed("target_exited") when it is gone, Refused("no_permission").
        """
        try:
            # surrogateescape: a path is bytes, and a hostile one must not end the applier.
            with open(
                f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n"
            ) as file:
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
        return cls.parse(text)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def __len__(self) -> int:
        return len(self._mappings)

    def containing(self, address: int) -> Mapping | None:
        """The mapping that holds ``address``."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._mappings[index].end:
            return self._mappings[index]
        return None

    def free(self, start: int, end: int) -> bool:
        """Whether nothing is mapped in [start, end)."""
        index = bisect.bisect_left(self._starts, end) - 1
        return index < 0 or self._mappings[index].end <= start

    def gaps(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The unmapped ranges [start, end) within [low, high), ascending."""
        position = low
        for mapping in self._mappings[max(bisect.bisect_right(self._starts, low) - 1, 0) :]:
            if mapping.start >= high:
                break
            if mapping.start > position:
                yield position, mapping.start
            position = max(position, mapping.end)
        if position < high:
            yield position, high

    @property
    def heap_end(self) -> int:
        """End of [heap], 0 when there is none."""
        return max(
            (mapping.end for mapping in self._mappings if mapping.path == "[heap]"), default=0
        )

    @property
    def stack(self) -> Mapping | None:
        """The main thread's [stack]."""
        for mapping in self._mappings:
            if mapping.path == "[stack]":
                return mapping
        return None
