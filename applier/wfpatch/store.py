# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: the one fixed path of a host where its bundles and the wanted state lie."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .bundle import Bundle, load_bundle
from .errors import NO_ROOM, Failed, Refused, Usage
from .manifest import ID
from .opt_out import MAX_FILE as MAX_OPT_OUTS
from .opt_out import OptOut, parse_opt_outs
from .strict_json import Fields, Invalid, parse

DEFAULT_STORE = Path("/var/lib/wfpatch")  # audit.py knows it too
DEFAULT_SIGNERS = Path("/etc/wfpatch/allowed_signers")
#: How long the lock of an applier that is gone may outlive it, in seconds.
DEAD_HOLDER = 2.0


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What cannot be written has a reason code."""
    try:
        yield
    except OSError as error:
        full = error.errno in NO_ROOM
        reason = "disk_full" if full else "store_invalid"
        raise Failed(reason, f"{path} cannot be written: {error.strerror}") from None


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

    def bundle(self, patch_id: str, believed: bool = True) -> Bundle:
        """The verified bundle; raises Usage when there is none, Refused when it is not sound.

        ``believed`` as for bundle.load_bundle.
        """
        if not ID.match(patch_id):
            raise Usage("usage", f"{patch_id[:64]!r} is not a patch id")
        folder = self.path / "bundles" / patch_id
        if not folder.is_dir():
            known = ", ".join(self.ids()) or "none"
            raise Usage(
                "usage", f"no bundle {patch_id} in {self.path}; there are: {known}", id=patch_id
            )
        return load_bundle(folder, self.signers, believed)

    def wanted(self) -> tuple[str, ...]:
        """Ids of the patches that shall be in force, in the order in which they were applied."""
        path = self.path / "wanted.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise Refused("store_invalid", f"{path}: {error.strerror}") from None
        try:
            fields = Fields(parse(data, 1 << 20))
            fields.number("schema", 1, 1)
            result = fields.texts("patches", 4096, 128)
            fields.done()
        except Invalid as error:
            raise Refused(
                "store_invalid",
                f"{path}, the list of the patches that shall be in force, is damaged: {error}; "
                "move it away, and patch again what shall be in force: status says what is",
            ) from None
        return result

    def opt_outs(self) -> tuple[OptOut, ...]:
        """What is to be left as it is; raises Refused when the file is not sound.

        A file that cannot be read opts nothing in: better no patch than one that was forbidden.
        """
        path = self.path / "opt-outs.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise Refused("opt_outs_invalid", f"{path}: {error.strerror}") from None
        try:
            return parse_opt_outs(parse(data, MAX_OPT_OUTS))
        except Invalid as error:
            raise Refused("opt_outs_invalid", f"{path}: {error}") from None

    def set_wanted(self, patches: tuple[str, ...]) -> bool:
        """Write the wanted state atomically; returns whether it changed.

        Raises Failed("disk_full") or Failed("store_invalid"); the file is then as it was.
        """
        if patches == self.wanted():
            return False
        with self._written(patches) as scratch:
            os.replace(scratch, self.path / "wanted.json")
        return True

    def require_room(self, patches: tuple[str, ...]) -> None:
        """Raises what set_wanted(patches) would raise, and changes nothing."""
        if patches != self.wanted():
            with self._written(patches):
                pass

    @contextmanager
    def _written(self, patches: tuple[str, ...]) -> Iterator[Path]:
        """A file with that wanted state beside the one that counts; it is gone afterwards."""
        scratch = self.path / f".wanted.{os.getpid()}"
        with _writing(scratch):
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            try:
                with open(scratch, "w", encoding="utf-8") as file:
                    json.dump({"schema": 1, "patches": list(patches)}, file, sort_keys=True)
                    file.flush()
                    os.fsync(file.fileno())
                yield scratch
            finally:
                with suppress(OSError):
                    scratch.unlink()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """One watch per store; raises Refused("watch_running") at once."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with _writing(self.path / ".watch"):
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".watch", flags, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused("watch_running", f"another watch works on {self.path}") from None
            yield
        finally:
            os.close(descriptor)

    def watched(self) -> bool:
        """Whether a watch works on this store."""
        try:
            descriptor = os.open(self.path / ".watch", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextmanager
    def lock(self, wait: float) -> Iterator[None]:
        """One applier per host at a time; raises Refused("busy") after ``wait`` seconds.

        A file lock: it goes with its holder, so a killed applier leaves none behind.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with _writing(self.path / ".lock"):
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", flags, 0o600)
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
            # Always as long, so that the file gives up no room; it only says who is at work.
            with suppress(OSError):
                os.pwrite(descriptor, f"{os.getpid():<20}\n".encode("ascii"), 0)
            yield
        finally:
            os.close(descriptor)
