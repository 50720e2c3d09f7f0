# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Validate patches on the controller."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import (
    PatchesInvalid,
    read_patches,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_policy import PolicyInvalid


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _requires_connection = False
    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Run the task."""
        result = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(
            {
                "src": {"type": "list", "elements": "path", "required": True},
                "select": {"type": "dict"},
            }
        )
        try:
            patches = read_patches(self, args["src"], args["select"])
        except PatchesInvalid as exc:
            return {**result, **exc.result()}
        except PolicyInvalid as exc:
            return {
                **result,
                "failed": True,
                "reason": exc.reason,
                "msg": str(exc),
                "violations": exc.violations,
            }
        result.update(
            changed=False,
            reason=None,
            patches=[
                {
                    "id": patch.id,
                    "summary": patch.manifest["summary"],
                    "cves": list(patch.cves),
                    "src": patch.path,
                    "digest": patch.digest,
                }
                for patch in patches
            ],
        )
        return result
