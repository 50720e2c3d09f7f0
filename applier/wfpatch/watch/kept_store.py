# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's store as the watch reads it: a bundle is verified once, and again when any file that
the verification rests on has changed, or when a minute has passed (keys come to their ends)."""

from __future__ import annotations

import os
import time
from pathlib import Path

from wfpatch.bundle import Bundle
from wfpatch.store import Store
from wfpatch.trust import revoked_keys

_TRUSTED_FOR = 60.0

Stamp = tuple[tuple[int, ...], ...]


def stamp_of(*paths: Path) -> Stamp:
    """What changes whenever one of the files does: nobody but the kernel sets a ctime."""
    found: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.append((0,))
        else:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(found)


class KeptStore(Store):
    """A Store that remembers the bundles that it verified."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.path, store.signers)
        self._bundles: dict[str, tuple[Stamp, float, Bundle]] = {}

    def bundle(self, patch_id: str, believed: bool = True) -> Bundle:
        """As Store.bundle."""
        if not believed:
            return super().bundle(patch_id, believed)
        folder = self.path / "bundles" / patch_id
        files = (
            folder,
            *(folder / name for name in ("bundle.json", "bundle.json.sig", "patch.elf")),
        )
        stamp = stamp_of(*files, *self.trust_files())
        known = self._bundles.get(patch_id)
        now = time.monotonic()
        if known is None or known[0] != stamp or now - known[1] > _TRUSTED_FOR:
            self._bundles.pop(patch_id, None)
            known = (stamp, now, super().bundle(patch_id))
            self._bundles[patch_id] = known
        return known[2]

    def trust_files(self) -> tuple[Path, ...]:
        """The files that say whom to believe."""
        return (self.signers, revoked_keys(self.signers))

    def stamp(self) -> Stamp:
        """What changes whenever something of it does that the watch goes by."""
        bundles = self.path / "bundles"
        return stamp_of(
            self.path / "wanted.json",
            self.path / "opt-outs.json",
            bundles,
            *(bundles / patch_id for patch_id in self.ids()),
            *self.trust_files(),
        )
