# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files of the host that cannot be read or written. Apart, so that it goes to a host only with the
modules that write there.
"""

from __future__ import annotations

import errno

from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import ApplierFailure


def file_failure(error):
    """An OSError of a file that a module reads or writes, as an ApplierFailure."""
    reason = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "task_failed"
    return ApplierFailure(
        reason, "{}: {}".format(error.filename2 or error.filename or "a file", error.strerror)
    )
