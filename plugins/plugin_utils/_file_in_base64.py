# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A file of the controller as a module can be sent it: a list of revoked keys (KRL) is no text."""

from __future__ import annotations

import base64
import typing as t

from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import locate


def file_in_base64(action: t.Any, path: str) -> str:
    """The contents of a file that a task names; raises AnsibleError."""
    place = locate(action, path)
    try:
        with open(place, "rb") as file:
            return base64.b64encode(file.read()).decode("ascii")
    except OSError as exc:
        raise AnsibleError(f"{place} cannot be read: {exc.strerror}") from exc
