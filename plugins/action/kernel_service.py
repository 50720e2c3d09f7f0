# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Send the kernel service's source to a host, but only when the module says that the host does
not have this very source.
"""

from __future__ import annotations

import os
import tempfile
import typing as t

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import locate
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._failure_reason import name_reason
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._kernel_source import KernelSource
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._staged_file import staged_file
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._task_arguments import task_arguments

MODULE = "wfpatch.fleet.kernel_service"


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
        args.pop("version", None)
        source = None
        if args.get("state", "loaded") != "absent" and args.get("src"):
            source = KernelSource(locate(self, args["src"]))
            args.update(version=source.version, digest=source.digest)
        outcome = self._execute_module(module_name=MODULE, module_args=args, task_vars=variables)
        if outcome.pop("_wanted", False) and source is not None:
            with tempfile.TemporaryDirectory(dir=C.DEFAULT_LOCAL_TMP) as folder:
                path = os.path.join(folder, f"wfpatch-{source.version}.tar.gz")
                source.archive(path)
                with staged_file(self, path) as staged:
                    outcome = self._execute_module(
                        module_name=MODULE,
                        module_args={**args, "staged": staged},
                        task_vars=variables,
                    )
        result.update(name_reason(outcome))
        result.setdefault("reason", None)
        return result
