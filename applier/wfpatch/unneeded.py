# SPDX-License-Identifier: GPL-3.0-or-later
"""Which bundles of the store nobody needs any more, and their removal.

A bundle is needed while it is wanted, while one that is wanted requires it, while a running process
has its code in memory (in force, or loaded once and reverted: a revert and a verification read the
bundle), and for a time after it was pushed. What cannot be told is needed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .audit import AuditLog, log_of
from .backend import Backend
from .backend.selection import select_backend
from .bundle import Bundle
from .discovery import find_targets
from .errors import WfpatchError
from .live_process import open_process
from .report import printable
from .store import Store

#: Seconds for which a bundle stays that was pushed and not applied yet.
GRACE = 86400
#: What a push that was interrupted leaves: a new folder before, or an old one after the exchange.
_SCRATCH = (".new-", ".old-")


@dataclass(frozen=True)
class Kept:
    """A bundle that stays, and why."""

    id: str
    why: str


@dataclass(frozen=True)
class Removed:
    """A bundle that was (or would be) removed; ``bytes`` on the disk."""

    id: str
    digest: str
    bytes: int


@dataclass(frozen=True)
class Collection:
    """What a run of ``wfpatch gc`` found; ``leftovers`` are names of interrupted pushes."""

    removed: tuple[Removed, ...]
    kept: tuple[Kept, ...]
    leftovers: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether something was (or would be) removed."""
        return bool(self.removed or self.leftovers)


def collect(store: Store, wait: float, grace: float = GRACE, dry_run: bool = False) -> Collection:
    """Remove what nobody needs; with ``dry_run`` only say it. Raises Refused busy."""
    with store.lock(wait):
        removed, kept = _judge(store, grace)
        leftovers = tuple(sorted(_leftovers(store.path / "bundles", grace)))
        if not dry_run:
            audit = AuditLog(log_of(store.path), "command")
            for each in removed:
                _remove(store.path / "bundles", each.id)
                audit.note("remove", patch=each.id, digest=each.digest)
            for name in leftovers:
                shutil.rmtree(store.path / "bundles" / name, ignore_errors=True)
        return Collection(tuple(removed), tuple(kept), leftovers)


def _judge(store: Store, grace: float) -> tuple[list[Removed], list[Kept]]:
    wanted = store.wanted()
    bundles: dict[str, Bundle] = {}
    kept: list[Kept] = []
    for patch_id in store.ids():
        try:
            bundles[patch_id] = store.bundle(patch_id, believed=False)
        except WfpatchError as error:
            kept.append(Kept(patch_id, f"nobody can tell who needs it: {error}"))
    required = _required(wanted, bundles)
    backend = select_backend("auto")
    removed: list[Removed] = []
    for patch_id, bundle in bundles.items():
        folder = store.path / "bundles" / patch_id
        if patch_id in wanted:
            why = "it is wanted"
        elif patch_id in required:
            why = f"{required[patch_id]} is wanted and requires it"
        elif time.time() - folder.stat().st_ctime < grace:
            why = f"it was pushed less than {grace:g} seconds ago"
        else:
            why = _in_memory(backend, bundle)
        if why:
            kept.append(Kept(patch_id, why))
        else:
            removed.append(Removed(patch_id, bundle.digest, _size(folder)))
    return removed, kept


def _required(wanted: tuple[str, ...], bundles: dict[str, Bundle]) -> dict[str, str]:
    """What wanted patches require, directly or not, each with a wanted one."""
    found: dict[str, str] = {}
    for first in wanted:
        pending = [first]
        while pending:
            bundle = bundles.get(pending.pop())
            for needed in bundle.manifest.requires if bundle else ():
                if needed not in found:
                    found[needed] = first
                    pending.append(needed)
    return found


def _in_memory(backend: Backend, bundle: Bundle) -> str:
    """Which process has the patch in its memory; "" when none has. One that cannot be read may."""
    for target in find_targets(bundle.patch.object):
        if not target.matches:
            continue
        name = f"{printable(target.comm)}[{target.pid}]"
        try:
            with open_process(backend, target) as process:
                loaded = {note.digest for live in process.regions for note in live.header.loaded}
        except WfpatchError as error:
            if error.reason == "target_exited":
                continue
            return f"{name} cannot be read: {error.reason}"
        if bundle.digest in loaded:
            return f"{name} has it in memory"
    return ""


def _leftovers(folder: Path, grace: float) -> Iterator[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(_SCRATCH) and time.time() - (folder / name).stat().st_ctime >= grace:
            yield name


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(folder: Path, patch_id: str) -> None:
    """First out of sight, then off the disk: whoever is killed here leaves a leftover."""
    scratch = tempfile.mkdtemp(prefix=".old-", dir=folder)
    os.rename(folder / patch_id, Path(scratch) / "bundle")
    shutil.rmtree(scratch)
