# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The applier and its one dependency as a single file that any host's Python can run.

The file is a zip archive with an interpreter line, of sources only: it is the same for every Python
from 3.9 on. Equal sources give equal bytes (names sorted, times fixed, modes fixed), so that a host
that has it already need not be sent it again.

Imports nothing of Ansible: `setup/pack_applier.py` packs with it, too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import pathlib
import re
import zipfile

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
#: Releases of pyelftools that the applier runs with and that run on Python 3.9.
ELFTOOLS_FROM, ELFTOOLS_BELOW = (0, 29), (0, 33)
WANTED = "pyelftools>=0.29,<0.33"


class CannotPack(Exception):
    """What is needed for the archive is not there; the message says what to do."""


def applier_files(package: pathlib.Path) -> dict[str, bytes]:
    """The applier's own sources and data, by their names in the archive. ``package``: its
    folder.
    """
    found = {
        str(path.relative_to(package.parent)): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if "wfpatch/cli.py" not in found:
        raise CannotPack(f"{package} does not hold the applier's sources")
    return found


def elftools_version() -> str:
    """The version of pyelftools that this Python has. Raises CannotPack."""
    try:
        version = importlib.metadata.version("pyelftools")
    except importlib.metadata.PackageNotFoundError as exc:
        raise CannotPack(
            f"the applier is packed with pyelftools, and this Python has none; install {WANTED} "
            "for it, or take a collection that was built with `make artifact`"
        ) from exc
    match = re.match(r"(\d+)\.(\d+)", version)
    if not match or not ELFTOOLS_FROM <= (int(match[1]), int(match[2])) < ELFTOOLS_BELOW:
        raise CannotPack(
            f"the applier is packed with pyelftools, and this Python has {version}; "
            f"expected is {WANTED}"
        )
    return version


def elftools_files() -> dict[str, bytes]:
    """pyelftools' sources, and its licence where the installation has it. Raises CannotPack."""
    elftools_version()
    spec = importlib.util.find_spec("elftools")
    if spec is None or spec.origin is None:
        raise CannotPack(f"pyelftools' sources were not found; install {WANTED} anew")
    package = pathlib.Path(spec.origin).parent
    found = {
        str(path.relative_to(package.parent)): path.read_bytes()
        for path in package.rglob("*.py")
        if "__pycache__" not in path.parts
    }
    if "elftools/elf/elffile.py" not in found:
        raise CannotPack(f"{package} does not hold pyelftools' sources; install {WANTED} anew")
    for file in importlib.metadata.distribution("pyelftools").files or ():
        if file.name == "LICENSE":
            found["elftools/LICENSE"] = file.read_binary()
    return found


def archive(files: dict[str, bytes]) -> bytes:
    """The files as an archive with its interpreter line."""
    stream = io.BytesIO()
    stream.write(SHEBANG)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = 3  # Unix, wherever it is packed
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, files[name])
    return stream.getvalue()


def all_files(package: pathlib.Path) -> dict[str, bytes]:
    """Everything that the archive holds. Raises CannotPack."""
    return {"__main__.py": MAIN.encode(), **elftools_files(), **applier_files(package)}
