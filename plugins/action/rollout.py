# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Plan a rollout and decide after each wave how it goes on."""

from __future__ import annotations

import datetime
import typing as t

from ansible import context
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._fleet_report import plain
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._inventory_hosts import (
    InventoryHosts,
    patterns,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._maintenance_window import is_open
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._printable import printable
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._progress import IN_FORCE
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_journal import RolloutJournal
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_judgement import (
    LOST,
    HostOutcome,
    judge,
    to_revert_at_end,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_policy import (
    PolicyInvalid,
    read_policy,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_waves import make_waves

display = Display()

Values = dict[str, t.Any]

STATES = ("plan", "wave", "record", "verdict", "end")
ARGUMENTS: Values = {
    "state": {"type": "str", "choices": list(STATES), "required": True},
    "policy": {"type": "raw", "default": ""},
    "hosts": {"type": "list", "elements": "str", "default": []},
    "plan": {"type": "dict"},
    "journal": {"type": "path"},
    "expected": {"type": "list", "elements": "str", "default": []},
    "asked": {"type": "bool", "default": False},
}
CLOSED = "maintenance_window_closed"


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Values | None = None) -> Values:
        """Run the task."""
        self._variables = task_vars or {}
        result = super().run(tmp, self._variables)
        _validation, args = self.validate_argument_spec(ARGUMENTS)
        self._hosts: list[str] = [str(host) for host in args["hosts"]]
        self._expected: list[str] = args["expected"]
        self._asked: bool = args["asked"]
        if args["state"] == "plan":
            try:
                result.update(self._plan(args["policy"], args["journal"]))
            except PolicyInvalid as exc:
                result.update(
                    failed=True, reason=exc.reason, msg=str(exc), violations=exc.violations
                )
        else:
            if args["plan"] is None:
                raise AnsibleError(f"state {args['state']} needs the plan")
            self._planned: Values = plain(args["plan"])
            self._journal = RolloutJournal(self._planned["journal"])
            result.update(getattr(self, f"_{args['state']}")())
        result.setdefault("changed", False)
        return result

    def _plan(self, given: t.Any, journal: str | None) -> Values:
        """Without a policy: whoever fails ends the run, and nothing is taken back."""
        wanted = patterns(self._hosts)
        limit = context.CLIARGS.get("subset")
        inventory = InventoryHosts(self._loader, self._variables.get("groups") or {})
        if not given:
            return {
                "name": None,
                "hosts": inventory.matching(wanted, limit),
                "opted_out": [],
                "waves": [],
                "patches": None,
                "failures_allowed": 0,
                "on_failure": "stop",
                "window": None,
                "stragglers_timeout": 0,
                "accept": [],
                "opt_outs": [],
                "opt_outs_managed": False,
                "journal": "",
            }
        policy = read_policy(plain(given))
        waves = make_waves(policy, inventory, wanted, limit)
        if journal is None:
            raise AnsibleError("a rollout needs a journal")
        for wave in waves.waves:
            display.v(f"wave {wave.name}: {', '.join(wave.hosts)}")
        return {
            "name": policy.name,
            "hosts": [*waves.hosts, *waves.opted_out],
            "opted_out": list(waves.opted_out),
            "waves": [
                {
                    "name": wave.name,
                    "hosts": list(wave.hosts),
                    "soak": wave.policy.soak,
                    "gates": list(wave.policy.gates),
                }
                for wave in waves.waves
            ],
            "patches": policy.patches,
            "failures_allowed": policy.failures_allowed(len(waves.hosts)),
            "on_failure": policy.on_failure,
            "window": policy.window,
            "stragglers_timeout": policy.stragglers_timeout,
            "accept": list(policy.accept),
            "opt_outs": list(policy.opt_outs or ()),
            "opt_outs_managed": policy.opt_outs is not None,
            "journal": journal.replace("{name}", policy.name.replace(" ", "-")),
        }

    def _wave_here(self) -> Values:
        """The wave that this task's host belongs to."""
        name = str(self._variables["inventory_hostname"])
        nobody: Values = {"name": None, "hosts": self._hosts, "soak": 0, "gates": []}
        return next((wave for wave in self._planned["waves"] if name in wave["hosts"]), nobody)

    def _wave(self) -> Values:
        wave = self._wave_here()
        now = datetime.datetime.now(datetime.UTC)
        go = bool(self._task.check_mode) or is_open(self._planned["window"], now)
        if not go:
            display.warning(f"the maintenance window is closed: wave {wave['name']} does not begin")
        elif wave["name"] is not None:
            display.v(f"wave {wave['name']} begins: {', '.join(wave['hosts'])}")
        return {"go": go, "wave": wave["name"], "soak": wave["soak"], "gates": wave["gates"]}

    def _record(self) -> Values:
        found = {}
        for host in self._hosts:
            reading = self._variables["hostvars"][host].get("patch_before")
            if reading and isinstance(reading.get("result"), t.Mapping):
                found[host] = [
                    str(patch["id"])
                    for process in reading["result"]["processes"]
                    for patch in process["patches"]
                    if patch["state"] in IN_FORCE
                ]
        if not self._task.check_mode:
            self._journal.add(found)
        return {}

    def _outcomes(self) -> list[HostOutcome]:
        alive = set(self._variables.get("ansible_play_hosts", self._planned["hosts"]))
        return [
            self._outcome(host, host in alive)
            for host in self._planned["hosts"]
            if host not in self._planned["opted_out"]
        ]

    def _outcome(self, host: str, alive: bool) -> HostOutcome:
        known = self._variables["hostvars"][host]
        failure = known.get("report_failure", None)
        outcome = known.get("patch_outcome", None) or {}
        state = str(outcome.get("state", "unknown"))
        if not failure and not alive:
            failure = {"reason": LOST, "msg": "Ansible has given the host up"}
        elif not failure and outcome and self._expected and state not in self._expected:
            failure = {"msg": f"the state is {state}, not {' or '.join(self._expected)}"}
        brought: tuple[str, ...] = ()
        if self._planned["journal"] and host in self._journal.before:
            before = self._journal.before[host]
            selected = (known.get("patch_manifests", None) or {}).get("patches") or []
            brought = tuple(
                str(patch["id"]) for patch in selected if str(patch["id"]) not in before
            )
        return HostOutcome(
            host,
            plain(failure) or None,
            bool(known.get("patch_verdict", None)) or host in self._hosts,
            brought,
            bool(known.get("patch_reverted", False)),
        )

    def _verdict(self) -> Values:
        wave = self._wave_here()
        # Those that Ansible has lost belong to the wave, too.
        batch = self._hosts if wave["name"] is None else wave["hosts"]
        verdict = judge(self._planned, self._outcomes(), batch)
        stop = verdict.stop and not self._task.check_mode
        waiting = not self._task.check_mode and not self._asked and (wave["soak"] or wave["gates"])
        if stop and wave["name"] is not None:
            display.warning(printable(f"wave {wave['name']} ends the rollout: {verdict.why}"))
        return {
            "wave": wave["name"],
            "stop": stop,
            "final": stop or not waiting,
            "unwell": list(verdict.failed),
            "revert": {} if self._task.check_mode else verdict.revert,
            "why": verdict.why if stop else "",
        }

    def _end(self) -> Values:
        outcomes = self._outcomes()
        known = {outcome.name: self._variables["hostvars"][outcome.name] for outcome in outcomes}
        verdicts = [host.get("patch_verdict", None) or {} for host in known.values()]
        stopped = next((each for each in verdicts if each.get("stop")), None)
        closed = not stopped and any(
            (host.get("patch_wave", None) or {}).get("go") is False for host in known.values()
        )
        revert = to_revert_at_end(self._planned, outcomes) if stopped else {}
        due = set(revert).union(*(each.get("revert", {}) for each in verdicts))
        left = [outcome.name for outcome in outcomes if outcome.name in due and outcome.to_revert]
        if self._planned["journal"] and not self._task.check_mode and not left and not closed:
            # What could not be taken back, or is to go on, is known to the next run.
            self._journal.forget(known)
        failures = {
            outcome.name: {
                "reason": CLOSED,
                "msg": "the maintenance window closed before the host's wave began; run it again "
                "in the next one",
            }
            for outcome in outcomes
            if closed and not outcome.reached
        }
        return {
            "stop": bool(stopped),
            "why": str(stopped["why"]) if stopped else "",
            "revert": revert,
            "failures": failures,
            "attention": bool(revert or failures) or any(outcome.failure for outcome in outcomes),
        }
