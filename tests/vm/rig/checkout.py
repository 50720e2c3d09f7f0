# SPDX-License-Identifier: GPL-3.0-or-later
"""The checkout in a machine: the applier, its tests, and what they import."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Sequence

from .machine import Machine

TOP = pathlib.Path(__file__).resolve().parents[3]
#: Where it lies in the machine.
PLACE = "/root/wfpatch"
ENGINE = (
    *("applier", "tests/engine", "kmod", "plugins", "docs", "schemas", "pyproject.toml"),
    *("tests/unit", "tests/integration", "tests/fleet"),
)
#: What Debian does not package.
PACKAGES = ("iced_x86",)


def put(machine: Machine, scratch: pathlib.Path, more: Sequence[str] = ()) -> None:
    """Copy what git knows of ENGINE and ``more``, by way of an empty directory ``scratch``.

    Programs that were compiled here once need not be compiled there again.
    """
    tracked = subprocess.run(
        ["git", "-C", TOP, "ls-files", *ENGINE, *more],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in tracked:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (TOP / name).is_file():
            target.write_bytes((TOP / name).read_bytes())
            target.chmod((TOP / name).stat().st_mode & 0o777)
    machine.run(f"rm -rf {PLACE}")
    machine.put(scratch, PLACE)
    (packages,) = (TOP / ".venv").glob("lib/python3*/site-packages")
    for package in PACKAGES:
        machine.put(packages / package, f"/usr/local/lib/python3.11/dist-packages/{package}")
    cache = pathlib.Path(os.environ.get("WFPATCH_CACHE") or "/var/cache/wfpatch") / "test-programs"
    if cache.is_dir():
        machine.put(cache, "/var/cache/wfpatch/test-programs")
