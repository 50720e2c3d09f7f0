# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Validate patches on the controller, then send them with the module that stores them: one trip
for all.
"""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._checked_result import check_result
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import (
    PatchesInvalid,
    read_patches,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._progress import Progress
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._task_arguments import task_arguments


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Run the task."""
        variables = task_vars or {}
        result = super().run(tmp, variables)
        args = task_arguments(self)
        sizes: dict[str, int] = {}
        if args.get("state", "present") == "present" and "src" in args:
            try:
                patches = read_patches(self, args["src"])
            except PatchesInvalid as exc:
                return {**result, **exc.result()}
            args["payloads"] = [patch.payload() for patch in patches]
            sizes = {
                patch.id: len(patch.bundle) + len(patch.signature) + len(patch.patch)
                for patch in patches
            }
        outcome = self._execute_module(
            module_name="wfpatch.fleet.bundle", module_args=args, task_vars=variables
        )
        result.update(check_result(outcome))
        result.setdefault("reason", None)
        progress = Progress(
            str(variables.get("inventory_hostname", "")), str(args.get("progress", "auto"))
        )
        would = "would be " if self._task.check_mode else ""
        for bundle in result.get("bundles", []):
            if bundle["id"] not in sizes:
                continue
            if bundle["changed"]:
                progress.line(f"{bundle['id']}: {would}pushed, {sizes[bundle['id']]} bytes")
                if not would:
                    progress.line(f"{bundle['id']}: signature and digests verified")
            else:
                progress.line(f"{bundle['id']}: is in the store")
        return result
