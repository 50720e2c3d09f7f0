# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Apply or revert patches: validate on the controller, do it step by step where somebody looks
on, then have memory read again.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._checked_result import check_result
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import (
    PatchesInvalid,
    locate,
    read_patches,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._progress import Progress
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._staged_file import staged_file
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._staged_result import merge_results
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._task_arguments import task_arguments

PENDING = 4
STEPS = ("load", "arm", "finish")
MODULE = "wfpatch.fleet.live_patch"
INFO_MODULE = "wfpatch.fleet.live_patch_info"

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
            outcome = self._in_steps(args) if self._progress.shown else self._call(args)
            if not outcome.get("failed") and boolean(args.get("verify", True)):
                outcome = self._verified(args, outcome)
        result.update(outcome)
        result.setdefault("reason", None)
        return result

    def _call(self, args: Values, module: str = MODULE, **more: t.Any) -> Values:
        return check_result(
            self._execute_module(
                module_name=module, module_args={**args, **more}, task_vars=self._variables
            )
        )

    def _plan(self, args: Values) -> Values:
        outcome = self._call(args)
        if outcome.get("reason") == "applier_missing" and args.get("applier_src"):
            with staged_file(self, locate(self, args["applier_src"])) as staged:
                outcome = self._call(args, staged=staged)
        if "result" in outcome:
            self._show_plan(args, outcome["result"])
        return outcome

    def _show_plan(self, args: Values, result: Values) -> None:
        revert = args.get("state", "applied") == "reverted"
        self._progress.step("plan_revert" if revert else "plan", result, self._ids)

    def _in_steps(self, args: Values) -> Values:
        outcome = self._call(args, plan=True)
        if "result" not in outcome:
            return outcome
        self._show_plan(args, outcome["result"])
        if outcome.get("failed") or not outcome["changed"]:
            # Refused, or nothing to do: the applier says so itself, and writes down what is wanted.
            return self._call(args)
        so_far: Values | None = None
        stepwise = args.get("state", "applied") == "applied"
        for patch_id in self._to_change(outcome["result"]) if stepwise else ():
            outcome = self._patch_in_steps({**args, "ids": [patch_id]}, so_far)
            so_far = outcome.get("result", so_far)
            if "result" not in outcome or outcome.get("exit_code") == PENDING:
                # Where threads had their time, asking again would only wait as long once more.
                return outcome
            if outcome.get("failed"):
                # Refused, or without such steps: all at once, so that the others get their turn.
                break
        outcome = self._merged(so_far, self._call(args))
        if not stepwise and "result" in outcome:
            self._show_end(outcome["result"], self._ids)
        return outcome

    def _to_change(self, planned: Values) -> list[str]:
        """Ids of the patches of which the plan says that a process lacks them."""
        lacking = {
            patch["id"]
            for process in planned["processes"]
            for patch in process["patches"]
            if patch["state"] != "patched"
        }
        return [patch_id for patch_id in self._ids if patch_id in lacking]

    def _patch_in_steps(self, args: Values, so_far: Values | None) -> Values:
        """One patch, loaded, armed and finished; the outcome's result includes ``so_far``."""
        last = args.get("until", "finish")
        for step in STEPS[: STEPS.index(last) + 1] if last in STEPS else STEPS:
            outcome = self._merged(so_far, self._call(args, until=step), keep=True)
            so_far = outcome.get("result", so_far)
            if "result" not in outcome or outcome.get("failed"):
                return outcome
            if step == "finish":
                self._show_end(outcome["result"], args["ids"])
            else:
                self._progress.step(step, outcome["result"], args["ids"])
        return outcome

    def _show_end(self, result: Values, ids: list[str]) -> None:
        for step in ("threads", "finish"):
            self._progress.step(step, result, ids)

    @staticmethod
    def _merged(earlier: Values | None, outcome: Values, keep: bool = False) -> Values:
        if earlier is None:
            return outcome
        if "result" not in outcome:
            return {**outcome, "changed": earlier["changed"]}
        merged = merge_results(earlier, outcome["result"], keep)
        return {
            **outcome,
            "result": merged,
            "state": merged["state"],
            "changed": merged["changed"],
        }

    def _verified(self, args: Values, outcome: Values) -> Values:
        """The outcome, with the word of a second reading of live memory."""
        paths = {
            name: args[name] for name in ("program", "store", "allowed_signers") if name in args
        }
        reading = self._call({**paths, "ids": self._ids}, INFO_MODULE)
        if "result" not in reading:
            return {
                **outcome,
                **reading,
                "failed": True,
                "changed": outcome["changed"],
                "verified": False,
            }
        self._progress.step("verify", reading["result"], self._ids)
        if not reading.get("failed") and reading["state"] == outcome["state"]:
            return {**outcome, "verified": True}
        found = reading.get("reason") or f"the state {reading['state']}"
        return {
            **outcome,
            **reading,
            "failed": True,
            "changed": outcome["changed"],
            "verified": False,
            "reason": reading.get("reason") or "tampered",
            "msg": (
                f"the applier said {outcome['state']}, but live memory read once more shows "
                f"{found}: {reading.get('msg', '')}"
            ),
        }
