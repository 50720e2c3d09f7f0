# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and writing the memory of a process through one /proc/PID/mem descriptor.

The descriptor is opened once and kept: it stays bound to the address space it was opened on, so
that after an exec it reads nothing, where a call by pid would hit the new program.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Optional

from wfpatch.backend.steps import step
from wfpatch.errors import Failed, Refused

_CHUNK = 1 << 30


class ProcessMemory:
    """The memory of one process. Page protections do not stop writes (FOLL_FORCE).

    ``force(address, data)`` is asked where they do: kernels with PROC_MEM_FORCE_PTRACE let only
    the process's tracer write to what it may not write to itself. True when all was written.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.force: Optional[Callable[[int, bytes], bool]] = None
        try:
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise Failed(
                "target_exited", f"process {pid} is gone: no /proc/{pid}/mem", pid=pid
            ) from None
        except PermissionError as error:
            raise Refused(
                "no_permission",
                f"cannot open /proc/{pid}/mem ({error.strerror}); run as root with CAP_SYS_PTRACE",
                pid=pid,
            ) from error

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address``.

        Raises Failed("memory_unreadable") when a part of it is not mapped, Failed("target_exited")
        or Failed("target_changed") when the address space is gone.
        """
        data = self._pread(address, size)
        if len(data) == size:
            return data
        parts = [data]
        got = len(data)
        while got < size:
            data = self._pread(address + got, size - got)
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def _pread(self, address: int, size: int) -> bytes:
        if size == 0:
            return b""
        try:
            data = os.pread(self._fd, min(size, _CHUNK), address)
        except OSError as error:
            # EIO: not mapped. EINVAL, EOVERFLOW: no user address.
            if error.errno in (errno.EIO, errno.EFAULT, errno.EINVAL, errno.EOVERFLOW):
                raise Failed(
                    "memory_unreadable",
                    f"process {self.pid}: {size} bytes at {address:#x} are not readable",
                    pid=self.pid,
                    address=address,
                    size=size,
                ) from None
            raise
        except OverflowError:
            raise Failed(
                "memory_unreadable",
                f"process {self.pid}: {address:#x} is no user address",
                pid=self.pid,
                address=address,
                size=size,
            ) from None
        if not data:
            raise self.gone()
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data`` at ``address``.

        Raises Failed("memory_unwritable") when a part of it is not mapped, Failed("target_exited")
        or Failed("target_changed") when the address space is gone.
        """
        written = 0
        while written < len(data):
            try:
                count = step(
                    "write memory",
                    os.pwrite,
                    self._fd,
                    data[written:] if written else data,
                    address + written,
                )
            except OSError as error:
                if error.errno in (errno.EIO, errno.EFAULT, errno.EINVAL, errno.EOVERFLOW):
                    if self.force is not None and self.force(address + written, data[written:]):
                        return
                    raise Failed(
                        "memory_unwritable",
                        f"process {self.pid}: {len(data)} bytes at {address:#x} are not writable"
                        f" ({written} written)",
                        pid=self.pid,
                        address=address,
                        size=len(data),
                    ) from None
                raise
            if count == 0:
                raise self.gone()
            written += count

    def read_u64(self, address: int) -> int:
        """The little-endian 64-bit word at ``address``."""
        value: int = struct.unpack("<Q", self.read(address, 8))[0]
        return value

    def write_u64(self, address: int, value: int) -> None:
        """Store a 64-bit word in one piece; ``address`` is 8-byte aligned.

        The kernel copies an aligned word with one store, so a thread that reads it at the same time
        sees the old or the new value; a misaligned one tears (MECHANISM.md: in 8-11 %).
        """
        if address % 8:
            raise AssertionError(f"store of a word at the misaligned address {address:#x}")
        self.write(address, struct.pack("<Q", value))

    def require_alive(self) -> None:
        """Raise Failed("target_exited" or "target_changed") when the address space has ended."""
        try:
            self._pread(0, 1)
        except Failed as error:
            # Nothing is mapped at 0: an address space that lives says just that.
            if error.reason != "memory_unreadable":
                raise

    def gone(self) -> Failed:
        """The error for an address space that has ended: by exit or by exec."""
        if os.path.exists(f"/proc/{self.pid}/exe"):
            try:
                os.readlink(f"/proc/{self.pid}/exe")
                return Failed(
                    "target_changed", f"process {self.pid} executed another program", pid=self.pid
                )
            except OSError:
                pass
        return Failed("target_exited", f"process {self.pid} is gone", pid=self.pid)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ProcessMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
