# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write the fleet's report on the controller and show it."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._fleet_report import (
    fleet_report,
    host_row,
    plain,
    rollout_summary,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._report_table import report_table
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import problems

display = Display()

ARGUMENTS: dict[str, t.Any] = {
    "dest": {"type": "path", "required": True},
    "action": {
        "type": "str",
        "choices": ["patch", "revert", "status", "uninstall"],
        "required": True,
    },
    "hosts": {"type": "list", "elements": "str", "required": True},
    "outcome": {"type": "str", "default": "patch_outcome"},
    "failure": {"type": "str", "default": "report_failure"},
    "table": {"type": "bool", "default": True},
    "rollout": {"type": "dict", "default": {}},
}


def write_report(path: str, report: dict[str, t.Any]) -> None:
    """Write the file in one piece, so that nobody reads half a report."""
    folder, name = os.path.split(os.path.abspath(path))
    scratch = os.path.join(folder, f".{name}.{os.getpid()}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(scratch, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2, sort_keys=True)
            file.write("\n")
        os.replace(scratch, path)
    except OSError as exc:
        raise AnsibleError(f"the report {path} cannot be written: {exc.strerror}") from exc


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _requires_connection = False
    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Run the task."""
        variables = task_vars or {}
        result = super().run(tmp, variables)
        _validation, args = self.validate_argument_spec(ARGUMENTS)
        if not args["hosts"]:
            raise AnsibleError("a report about no hosts is an error, never a success")
        alive = set(variables.get("ansible_play_hosts", args["hosts"]))
        plan = plain(args["rollout"])
        self._waves = {
            host: wave["name"] for wave in plan.get("waves", []) for host in wave["hosts"]
        }
        self._opted_out = set(plan.get("opted_out", []))
        rows = [
            self._row(variables["hostvars"], name, args, name in alive) for name in args["hosts"]
        ]
        verdicts = {
            host: plain(variables["hostvars"].get(host, {}).get("patch_verdict", None))
            for host in self._waves
        }
        rows = plain(rows)
        report = fleet_report(
            args["action"],
            bool(self._task.check_mode),
            rows,
            rollout_summary(plan, verdicts, rows),
        )
        found = problems("report", report)
        if found:
            raise AnsibleError(
                "the report does not fit schemas/report.schema.json: " + "; ".join(found[:20])
            )
        dest = os.path.expanduser(args["dest"])
        write_report(dest, report)
        if args["table"]:
            display.display(report_table(report))
        result.update(changed=False, dest=dest, state=report["state"], states=report["states"])
        return result

    def _row(
        self, hostvars: t.Any, name: str, args: dict[str, t.Any], alive: bool
    ) -> dict[str, t.Any]:
        known = hostvars.get(name, {})
        outcome, failure = (known.get(args[which], None) for which in ("outcome", "failure"))
        return host_row(
            str(name),
            outcome or None,
            failure or None,
            alive,
            self._waves.get(name),
            name in self._opted_out,
            bool(known.get("patch_reverted", False)),
        )
