# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder's cache: directories, complete or absent, named by a digest of their inputs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_COMPLETE = ".complete"


def cache_root() -> Path:
    """${WFPATCH_CACHE:-/var/cache/wfpatch}/builder."""
    return Path(os.environ.get("WFPATCH_CACHE") or "/var/cache/wfpatch") / "builder"


def key_of(*inputs: Any) -> str:
    """A digest of JSON-able inputs, short enough for a directory's name."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@contextlib.contextmanager
def entry(kind: str, name: str) -> Iterator[tuple[Path, bool]]:
    """Give (directory, complete) of a cache entry, locked against other builders.

    When it is not complete the directory is new and empty; the caller fills it, and it becomes
    complete when the block ends without an exception. An incomplete rest of a killed run is
    removed first.
    """
    place = cache_root() / kind
    place.mkdir(parents=True, exist_ok=True)
    directory = place / name
    with (place / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (directory / _COMPLETE).exists():
            yield directory, True
            return
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir()
        yield directory, False
        (directory / _COMPLETE).touch()
