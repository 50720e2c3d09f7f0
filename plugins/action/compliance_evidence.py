# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Have a host gather its evidence, and measure its clock by the way."""

from __future__ import annotations

import datetime
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._advisories import (
    AdvisoriesInvalid,
    read_advisories,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._checked_result import check_evidence
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._clock_offset import clock_offset
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import (
    PatchesInvalid,
    locate,
    read_patches,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._file_in_base64 import (
    file_in_base64,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._staged_file import staged_file
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._task_arguments import task_arguments

#: A host without an applier, or with an older one that does not know the command.
LACKING = ("applier_missing", "usage")

Values = dict[str, t.Any]


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Values | None = None) -> Values:
        """Run the task."""
        self._variables = task_vars or {}
        result = super().run(tmp, self._variables)
        args = task_arguments(self)
        args.pop("known", None)
        try:
            if args.get("src"):
                args["payloads"] = [patch.payload() for patch in read_patches(self, args["src"])]
            if args.get("advisories"):
                args["known"] = read_advisories(locate(self, args["advisories"]))
        except (PatchesInvalid, AdvisoriesInvalid) as exc:
            return {**result, **exc.result()}
        if args.get("revoked_src"):
            args["revoked"] = file_in_base64(self, args["revoked_src"])
        outcome = self._call(args)
        if outcome.get("reason") in LACKING and args.get("applier_src"):
            with staged_file(self, locate(self, args["applier_src"])) as staged:
                outcome = self._call(args, staged=staged)
        result.update(outcome)
        result.setdefault("reason", None)
        return result

    def _call(self, args: Values, **more: t.Any) -> Values:
        asked = datetime.datetime.now(datetime.UTC)
        outcome = self._execute_module(
            module_name="wfpatch.fleet.compliance_evidence",
            module_args={**args, **more},
            task_vars=self._variables,
        )
        answered = datetime.datetime.now(datetime.UTC)
        checked = check_evidence(outcome)
        if "evidence" in checked:
            checked["clock"] = clock_offset(checked["evidence"], asked, answered)
        return checked
