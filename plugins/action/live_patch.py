# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Apply or revert patches: validate on the controller, tell what the host does while it does it,
then have memory read again.
"""

from __future__ import annotations

import contextlib
import secrets
import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import DEFAULT_PROGRAM
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._checked_result import check_result
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._collection_applier import (
    locate_applier,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import (
    PatchesInvalid,
    read_patches,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._event_stream import (
    EventStream,
    own_channel,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._file_in_base64 import (
    file_in_base64,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._printable import printable
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._progress import (
    Progress,
    planned_line,
    verified_line,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._refused_plan import (
    show_refused_plan,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._ssh_settings import (
    CannotStream,
    ssh_settings,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._staged_file import staged_file
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._task_arguments import task_arguments

MODULE = "wfpatch.fleet.live_patch"

Values = dict[str, t.Any]


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Values | None = None) -> Values:
        """Run the task."""
        self._variables = task_vars or {}
        result = super().run(tmp, self._variables)
        args = task_arguments(self)
        if "src" in args and "ids" in args:
            return {
                **result,
                "failed": True,
                "reason": "usage",
                "msg": "ids and src are both given; one of them names the patches",
            }
        if "src" in args:
            try:
                patches = read_patches(self, args["src"])
            except PatchesInvalid as exc:
                return {**result, **exc.result()}
            args["ids"] = [patch.id for patch in patches]
            if self._task.check_mode:
                args["payloads"] = [patch.payload() for patch in patches]
        if isinstance(args.get("ids"), str):
            args["ids"] = [patch_id.strip() for patch_id in args["ids"].split(",")]
        self._ids: list[str] = args.get("ids", [])
        self._progress = Progress(
            str(self._variables.get("inventory_hostname", "")), str(args.get("progress", "auto"))
        )
        if self._task.check_mode:
            outcome = self._plan(args)
        else:
            watched = self._progress.shown and not boolean(args.get("plan", False))
            outcome = self._watched(args) if watched else self._call(args)
            if outcome.get("verified"):
                self._progress.processes(outcome["result"], self._ids, verified_line)
        result.update(outcome)
        result.setdefault("reason", None)
        return result

    def _call(self, args: Values, **more: t.Any) -> Values:
        outcome = self._execute_module(
            module_name=MODULE, module_args={**args, **more}, task_vars=self._variables
        )
        outcome.pop("_told", None)
        return check_result(outcome)

    def _plan(self, args: Values) -> Values:
        if args.get("revoked_src"):
            args["revoked"] = file_in_base64(self, args["revoked_src"])
        outcome = self._call(args)
        if outcome.get("reason") == "applier_missing" and args.get("applier_src"):
            with staged_file(self, locate_applier(self, args["applier_src"])) as staged:
                outcome = self._call(args, staged=staged)
        if "result" in outcome:
            revert = args.get("state", "applied") == "reverted"
            self._progress.processes(
                outcome["result"],
                self._ids,
                lambda process: planned_line(process, revert, self._ids),
            )
            if self._task.diff:
                show_refused_plan(str(self._variables.get("inventory_hostname", "")), outcome)
        return outcome

    def _watched(self, args: Values) -> Values:
        """Do it, and tell meanwhile what happens: over a channel of its own, or by asking."""
        name = secrets.token_hex(16)
        program = str(args.get("program") or DEFAULT_PROGRAM)
        with contextlib.ExitStack() as stack:
            try:
                settings = ssh_settings(self._connection)
                command, password = own_channel(self._connection, (program, "follow", name))
                stream = EventStream(settings, command, password, self._progress.hear)
                stack.enter_context(stream)
            except CannotStream as exc:
                self._progress.line(printable(f"is asked over Ansible's own connection: {exc}"))
            else:
                return self._call(args, events=name)
        return self._asked(args, name)

    def _asked(self, args: Values, name: str) -> Values:
        """Begin in the background, then ask for what happened, and at last for the result."""
        args = {**args, "events": name, "background": True}
        offset: int | None = None
        changed = False
        while True:
            outcome = self._execute_module(
                module_name=MODULE,
                module_args=args if offset is None else {**args, "offset": offset},
                task_vars=self._variables,
            )
            told = outcome.pop("_told", None)
            for line in told if isinstance(told, list) else ():
                self._progress.hear(str(line))
            changed = changed or bool(outcome.get("changed"))
            following = outcome.pop("_offset", None)
            if not isinstance(following, int) or "result" in outcome or outcome.get("failed"):
                return check_result({**outcome, "changed": changed})
            offset = following
