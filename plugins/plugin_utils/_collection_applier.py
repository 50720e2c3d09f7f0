# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The applier on the controller: the file that the collection brings, or, where it was installed
from git and has only the sources, one packed from these.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import stat
import typing as t

from ansible import constants
from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _applier_archive
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import locate

COLLECTION = pathlib.Path(os.path.abspath(__file__)).parents[2]
PACKED = COLLECTION / "dist" / "wfpatch"
SOURCES = COLLECTION / "applier" / "wfpatch"


def locate_applier(action: t.Any, path: str) -> str:
    """The applier's path on the controller. Raises AnsibleError when there is none."""
    wanted = os.path.abspath(os.path.expanduser(path))
    if wanted == str(PACKED) and not PACKED.exists() and SOURCES.is_dir():
        try:
            return packed_from_sources(
                pathlib.Path(constants.config.get_config_value("ANSIBLE_HOME"))
            )
        except _applier_archive.CannotPack as exc:
            raise AnsibleError(f"applier_missing: {exc}") from exc
    return locate(action, path)


def packed_from_sources(home: pathlib.Path) -> str:
    """The applier packed from the collection's sources, kept below Ansible's own folder of this
    user under the digest of what it was made from.

    Raises CannotPack, AnsibleError when that folder cannot be written or is somebody else's.
    """
    files = _applier_archive.all_files(SOURCES)
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    folder = home.expanduser() / "wfpatch"
    target = folder / f"applier-{digest.hexdigest()[:32]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(folder)
        if not target.exists():
            scratch = folder / f".{target.name}.{os.getpid()}"
            scratch.write_bytes(_applier_archive.archive(files))
            scratch.replace(target)
    except OSError as exc:
        raise AnsibleError(
            f"the applier was to be packed into {target}: {exc.strerror}; set ANSIBLE_HOME to a "
            "folder that this user can write"
        ) from exc
    return str(target)


def _check_owner(folder: pathlib.Path) -> None:
    """What lies there will run as root on every host, so nobody else may write it."""
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise AnsibleError(
            f"{folder} can be written by others (owner {found.st_uid}, mode "
            f"{stat.S_IMODE(found.st_mode):o}); expected is a folder of this user alone"
        )
