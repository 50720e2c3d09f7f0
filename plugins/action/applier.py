# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Send the applier to a host, but only when the module says that the host does not have this
very file.
"""

from __future__ import annotations

import hashlib
import os
import typing as t

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._collection_applier import (
    locate_applier,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._failure_reason import name_reason
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._file_in_base64 import (
    file_in_base64,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._staged_file import staged_file
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
        source = args.get("src")
        if args.get("state", "present") == "present" and source:
            source = locate_applier(self, source)
            try:
                with open(source, "rb") as file:
                    args["digest"] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as exc:
                raise AnsibleError(
                    f"the applier {source} cannot be read ({exc.strerror}); build it "
                    "with: make applier"
                ) from exc
        if args.get("state", "present") == "present" and args.get("revoked_src"):
            args["revoked"] = file_in_base64(self, args["revoked_src"])
        outcome = self._execute_module(
            module_name="wfpatch.fleet.applier", module_args=args, task_vars=variables
        )
        if outcome.pop("_wanted", False):
            with staged_file(self, os.path.abspath(source)) as staged:
                outcome = self._execute_module(
                    module_name="wfpatch.fleet.applier",
                    module_args={**args, "staged": staged},
                    task_vars=variables,
                )
        result.update(name_reason(outcome))
        result.setdefault("reason", None)
        return result
