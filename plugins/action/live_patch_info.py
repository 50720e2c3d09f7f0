# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read what is in force, and check what the host says against the schema."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._checked_result import check_result


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Run the task."""
        result = super().run(tmp, task_vars)
        outcome = self._execute_module(
            module_name="wfpatch.fleet.live_patch_info",
            module_args=dict(self._task.args),
            task_vars=task_vars or {},
        )
        result.update(check_result(outcome))
        result.setdefault("reason", None)
        return result
