# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the parts of an ELF object that do not change, from a process's memory.

What is read is hostile input: a process may have altered its own headers. So every read is bounded
by the object's own extent, and a value that leads outside of it is an error, not a crash.
"""

from __future__ import annotations

import struct
from typing import Any, NoReturn, Protocol

from .errors import Failed

_BLOCK = 16384


class Memory(Protocol):
    """The memory of a process; ProcessMemory is one."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address``; raises a WfpatchError where that is not possible."""


class ObjectMemory:
    """``[start, end)`` of a process's memory, with a cache; for data that stay as they are.

    Raises Failed ``object_malformed`` for an address outside.
    """

    def __init__(self, memory: Memory, start: int, end: int, name: str) -> None:
        self._memory = memory
        self.start = start
        self.end = end
        self.name = name
        self._blocks: dict[int, bytes] = {}

    def fail(self, message: str, **facts: Any) -> NoReturn:
        """Refuse the object: its ELF structures contradict themselves."""
        raise Failed("object_malformed", f"{self.name}: {message}", object=self.name, **facts)

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes, from the cache where they were read before."""
        if size < 0 or address < self.start or size > self.end - address:
            self.fail(f"its headers lead to {size} bytes at {address:#x}, outside of it")
        first, last = address // _BLOCK, (address + size - 1) // _BLOCK
        if first == last:
            block = self._block(first)
            offset = address - max(first * _BLOCK, self.start)
            data = block[offset : offset + size]
            if len(data) == size:
                return data
        return self._memory.read(address, size)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = max(number * _BLOCK, self.start)
            end = min((number + 1) * _BLOCK, self.end)
            try:
                self._blocks[number] = self._memory.read(start, end - start)
            except Failed as error:
                if error.reason != "memory_unreadable":
                    raise
                self._blocks[number] = b""  # a gap between segments lies in the block
        return self._blocks[number]

    def unpack(self, form: str, address: int) -> tuple[Any, ...]:
        """Read and unpack a little-endian struct."""
        form = "<" + form
        return struct.unpack(form, self.read(address, struct.calcsize(form)))

    def string(self, address: int, limit: int = 16384) -> str:
        """The NUL-terminated string at ``address``, of at most ``limit`` bytes."""
        data = b""
        while b"\0" not in data:
            size = min(_BLOCK - address % _BLOCK, 256, self.end - address)
            if size <= 0 or len(data) > limit:
                self.fail("a name has no end")
            data += self.read(address, size)
            address += size
        return data[: data.index(b"\0")].decode("utf-8", "replace")
