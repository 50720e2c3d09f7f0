# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A file of the controller in the task's temporary folder on the host."""

from __future__ import annotations

import contextlib
import os
import typing as t


@contextlib.contextmanager
def staged_file(action: t.Any, source: str) -> t.Iterator[str]:
    """Send a file and yield its path on the host. The folder is removed at the end, with what
    modules wrote into it.
    """
    folder = action._connection._shell.tmpdir
    made = folder is None
    if made:
        folder = action._make_tmp_path()
    try:
        staged = action._transfer_file(
            source, action._connection._shell.join_path(folder, os.path.basename(source))
        )
        action._fixup_perms2((folder, staged))
        yield staged
    finally:
        if made:
            action._remove_tmp_path(folder, force=True)
            action._connection._shell.tmpdir = None
