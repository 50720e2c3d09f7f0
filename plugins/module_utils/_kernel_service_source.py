# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The source of the kernel service: what DKMS needs of it, and its digest. Both halves use this."""

from __future__ import annotations

import hashlib
import os
import re

#: What is built, and what DKMS and udev read. Neither tests nor what a build leaves behind.
NEEDED = re.compile(
    r"(?:[^/]+/)*[^/]+\.h|[^/]+(?<!\.mod)\.c|Kbuild|Makefile|dkms\.conf|dkms_sign|wfpatch\.rules"
)
SETTING = re.compile(r"""^(\w+)=["']?(.*?)["']?\s*$""", re.M)


def read_tree(top, needed=None):
    """The files below ``top``: {relative path: (bytes, whether it may be executed)}. With
    ``needed``, only those whose path it matches.
    """
    found = {}
    for folder, folders, names in os.walk(top):
        folders[:] = [
            name for name in folders if needed is None or not name.startswith((".", "tests"))
        ]
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, top)
            if needed is not None and not needed.fullmatch(relative):
                continue
            with open(path, "rb") as file:
                found[relative] = (file.read(), bool(os.stat(path).st_mode & 0o100))
    return found


def digest(files):
    """SHA-256 over names, contents and the right to execute, whatever the order."""
    total = hashlib.sha256()
    for name, (data, executable) in sorted(files.items()):
        line = f"{name}\0{int(executable)}\0{hashlib.sha256(data).hexdigest()}\n"
        total.update(line.encode("utf-8"))
    return total.hexdigest()


def dkms_settings(text):
    """The plain settings of a dkms.conf."""
    return dict(SETTING.findall(text))
