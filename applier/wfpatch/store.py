# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: the one fixed path of a host where its bundles and the wanted state lie."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .bundle import Bundle, load_bundle
from .errors import Refused, Usage
from .manifest import ID
from .strict_json import Fields, Invalid, parse

DEFAULT_STORE = Path("/var/lib/wfpatch")
DEFAULT_SIGNERS = Path("/etc/wfpatch/allowed_signers")
#: How long the lock of an applier that is gone may outlive it, in seconds.
DEAD_HOLDER = 2.0


class Store:
    """``bundles/<id>/`` and ``wanted.json`` below ``path``; signatures against ``signers``."""

    def __init__(self, path: Path = DEFAULT_STORE, signers: Path = DEFAULT_SIGNERS) -> None:
        self.path = path
        self.signers = signers

    def ids(self) -> tuple[str, ...]:
        """The ids of all bundles in the store, sorted."""
        folder = self.path / "bundles"
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return ()
        return tuple(sorted(name for name in names if ID.match(name)))

    def bundle(self, patch_id: str) -> Bundle:
        """The verified bundle; raises Usage when there is none, Refused when it is not sound."""
        if not ID.match(patch_id):
            raise Usage("usage", f"{patch_id[:64]!r} is not a patch id")
        folder = self.path / "bundles" / patch_id
        if not folder.is_dir():
            known = ", ".join(self.ids()) or "none"
            raise Usage(
                "usage", f"no bundle {patch_id} in {self.path}; there are: {known}", id=patch_id
            )
        return load_bundle(folder, self.signers)

    def wanted(self) -> tuple[str, ...]:
        """Ids of the patches that shall be in force, in the order in which they were applied."""
        path = self.path / "wanted.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return ()
        try:
            fields = Fields(parse(data, 1 << 20))
            fields.number("schema", 1, 1)
            result = fields.texts("patches", 4096, 128)
            fields.done()
        except Invalid as error:
            raise Refused("manifest_invalid", f"{path}: {error}") from None
        return result

    def set_wanted(self, patches: tuple[str, ...]) -> bool:
        """Write the wanted state atomically; returns whether it changed."""
        if patches == self.wanted():
            return False
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = self.path / "wanted.json"
        scratch = self.path / f".wanted.{os.getpid()}"
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump({"schema": 1, "patches": list(patches)}, file, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        return True

    @contextmanager
    def lock(self, wait: float) -> Iterator[None]:
        """One applier per host at a time; raises Refused("busy") after ``wait`` seconds.

        A file lock: it goes with its holder, so a killed applier leaves none behind.
        """
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            begun = time.monotonic()
            deadline = begun + wait
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno != errno.EWOULDBLOCK:
                        raise
                holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
                if holder.isdigit() and not os.path.exists(f"/proc/{holder}"):
                    # Killed between the fork and the exec of a child, which has the lock until the
                    # exec closes it.
                    deadline = max(deadline, begun + DEAD_HOLDER)
                if time.monotonic() >= deadline:
                    raise Refused(
                        "busy",
                        f"another applier (pid {holder or 'unknown'}) works on this host",
                        holder=holder,
                    )
                time.sleep(0.05)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
            yield
        finally:
            os.close(descriptor)
