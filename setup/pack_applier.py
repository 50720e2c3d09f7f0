#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack the applier and its one dependency into a single file that any host's Python can run.

  setup/pack_applier.py [OUTPUT]      default: dist/wfpatch

The file is a zip archive with an interpreter line, of sources only: it is the same for every Python
from 3.9 on. Equal sources give equal bytes (names sorted, times fixed, modes fixed), so that a host
that has it already need not be sent it again.

Run with the environment's Python (``make applier``): pyelftools is taken from there, at the version
that requirements/applier.txt pins.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import pathlib
import re
import sys
import zipfile

TOP = pathlib.Path(__file__).resolve().parent.parent
#: -I: neither PYTHON* variables nor a user's site directory may change what runs as root.
SHEBANG = b"#!/usr/bin/python3 -I\n"
MAIN = """\
# SPDX-License-Identifier: GPL-3.0-or-later
import sys

if sys.version_info < (3, 9):
    sys.exit("wfpatch: Python 3.9 or newer is needed, this is " + sys.version.split()[0])

from wfpatch.cli import main

sys.exit(main())
"""
#: The earliest time that a zip archive can hold.
EPOCH = (1980, 1, 1, 0, 0, 0)


def pinned() -> str:
    """The version of pyelftools that the applier is made for."""
    text = (TOP / "requirements" / "applier.txt").read_text()
    match = re.search(r"(?m)^pyelftools==(\S+)$", text)
    if not match:
        raise SystemExit("pack_applier: requirements/applier.txt does not pin pyelftools")
    return match[1]


def applier_files() -> dict[str, bytes]:
    """The applier's own sources and data, by their names in the archive."""
    package = TOP / "applier" / "wfpatch"
    return {
        str(path.relative_to(package.parent)): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def elftools_files() -> dict[str, bytes]:
    """pyelftools' sources and its licence."""
    distribution = importlib.metadata.distribution("pyelftools")
    if distribution.version != pinned():
        raise SystemExit(
            f"pack_applier: pyelftools {distribution.version} is installed, {pinned()} is pinned"
        )
    found = {}
    for file in distribution.files or []:
        if file.parts[0] == "elftools" and file.suffix == ".py":
            found[str(file)] = file.read_binary()
        elif file.name == "LICENSE":
            found["elftools/LICENSE"] = file.read_binary()
    if "elftools/elf/elffile.py" not in found or "elftools/LICENSE" not in found:
        raise SystemExit("pack_applier: pyelftools' files or its licence were not found")
    return found


def pack(files: dict[str, bytes]) -> bytes:
    """The archive with its interpreter line."""
    stream = io.BytesIO()
    stream.write(SHEBANG)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, wherever it is packed
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])
    return stream.getvalue()


def main() -> int:
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else TOP / "dist" / "wfpatch"
    content = pack({"__main__.py": MAIN.encode(), **elftools_files(), **applier_files()})
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.exists() or output.read_bytes() != content:
        scratch = output.with_name(f".{output.name}.{os.getpid()}")
        scratch.write_bytes(content)
        scratch.chmod(0o755)
        scratch.replace(output)
    output.chmod(0o755)
    print(f"{output}: {len(content)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
