#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack the applier and its one dependency into a single file that any host's Python can run.

  setup/pack_applier.py [OUTPUT]      default: dist/wfpatch

What the file is, plugins/plugin_utils/_applier_archive.py says; controllers with an install from
git pack with it, too. Run with the environment's Python (``make applier``): pyelftools is taken
from there, at the version that requirements/applier.txt pins.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "plugins" / "plugin_utils"))

import _applier_archive as applier_archive  # noqa: E402


def pinned() -> str:
    """The version of pyelftools that the applier is made for."""
    text = (TOP / "requirements" / "applier.txt").read_text()
    match = re.search(r"(?m)^pyelftools==(\S+)$", text)
    if not match:
        raise SystemExit("pack_applier: requirements/applier.txt does not pin pyelftools")
    return match[1]


def content() -> bytes:
    """The archive, with exactly the pinned release and its licence."""
    try:
        version = applier_archive.elftools_version()
        if version != pinned():
            raise SystemExit(
                f"pack_applier: pyelftools {version} is installed, {pinned()} is pinned"
            )
        files = applier_archive.all_files(TOP / "applier" / "wfpatch")
    except applier_archive.CannotPack as exc:
        raise SystemExit(f"pack_applier: {exc}") from exc
    if "elftools/LICENSE" not in files:
        raise SystemExit("pack_applier: pyelftools' licence was not found")
    return applier_archive.archive(files)


def main() -> int:
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else TOP / "dist" / "wfpatch"
    packed = content()
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.exists() or output.read_bytes() != packed:
        scratch = output.with_name(f".{output.name}.{os.getpid()}")
        scratch.write_bytes(packed)
        scratch.chmod(0o755)
        scratch.replace(output)
    output.chmod(0o755)
    print(f"{output}: {len(packed)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
