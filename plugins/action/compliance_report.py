# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write the compliance report on the controller and show a summary of it."""

from __future__ import annotations

import datetime
import json
import os
import socket
import typing as t

from ansible import __version__ as ansible_version
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._advisories import read_advisories
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._collection_version import (
    collection_version,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_check import check
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_files import (
    FORMATS,
    REPORT,
    contents,
    write_files,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_opt_out import check_rules
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_report import (
    HostRow,
    compliance_report,
    named_cves,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import (
    locate,
    read_patches,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._fleet_report import host_row, plain
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._printable import printable
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import problems

display = Display()

Values = dict[str, t.Any]

ARGUMENTS: Values = {
    "dest": {"type": "path", "required": True},
    "hosts": {"type": "list", "elements": "str"},
    "source": {"type": "path"},
    "src": {"type": "list", "elements": "path", "default": []},
    "advisories": {"type": "path"},
    "formats": {"type": "list", "elements": "str", "choices": FORMATS, "default": list(FORMATS)},
    "limit": {"type": "int", "default": 86400},
    "sign_key": {"type": "path"},
    "publisher": {"type": "str", "default": "Operator of the fleet"},
    "namespace": {"type": "str", "default": "https://wfpatch.invalid/"},
    "opt_out": {"type": "dict", "default": {}},
    "opted_out_hosts": {"type": "list", "elements": "str", "default": []},
    "control": {"type": "str", "default": "si-2_obj"},
    "plan": {"type": "str", "default": "#"},
    "outcome": {"type": "str", "default": "compliance_evidence"},
    "failure": {"type": "str", "default": "compliance_failure"},
    "table": {"type": "bool", "default": True},
}
MAX_REPORT = 1 << 30


def read_report(path: str) -> Values:
    """A report of an earlier run. Raises AnsibleError when it cannot be read or does not fit."""
    try:
        if os.path.getsize(path) > MAX_REPORT:
            raise AnsibleError(f"{path} is larger than {MAX_REPORT} bytes")
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
    except (OSError, ValueError) as exc:
        raise AnsibleError(f"the report {path} cannot be read: {exc}") from exc
    found = problems("compliance", report)
    if found:
        raise AnsibleError(
            f"{path} does not fit schemas/compliance.schema.json: " + "; ".join(found[:20])
        )
    return report


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Values | None = None) -> Values:
        """Run the task."""
        self._variables = task_vars or {}
        result = super().run(tmp, self._variables)
        _validation, args = self.validate_argument_spec(
            ARGUMENTS, mutually_exclusive=[("hosts", "source")]
        )
        if not args["hosts"] and not args["source"]:
            raise AnsibleError("a report about no hosts is an error, never a success")
        if args["limit"] < 1:
            raise AnsibleError("limit has to be at least one second")
        dest = os.path.expanduser(args["dest"])
        report = self._report(args, dest)
        found = problems("compliance", report)
        if found:
            raise AnsibleError(
                "the report does not fit schemas/compliance.schema.json: " + "; ".join(found[:20])
            )
        key = os.path.expanduser(args["sign_key"]) if args["sign_key"] else None
        files = contents(report, args["formats"], args["control"], args["plan"])
        written = write_files(dest, files, key)
        if args["table"]:
            line, _code = check(report, datetime.datetime.now(datetime.UTC))
            display.display(printable(line.split(" | ")[0]))
            display.display(printable(f"{len(written)} files written to {dest}"))
        result.update(
            changed=False,
            dest=dest,
            files=written,
            state=report["state"],
            states=report["states"],
            flagged=sum(host["flagged"] for host in report["hosts"]),
        )
        if not report["cves"]:
            # Nothing was looked for, so nothing was found: that must not pass for good news.
            result.update(
                failed=True,
                reason="manifest_missing",
                msg="no manifest at hand names a CVE: give the patches' folders, or push them; "
                f"the report in {dest} says what it could",
            )
        return result

    def _report(self, args: Values, dest: str) -> Values:
        now = datetime.datetime.now(datetime.UTC)
        rules = check_rules(args["opt_out"])
        controller = {
            "hostname": socket.gethostname(),
            "ansible": ansible_version,
            "collection": collection_version(),
            "publisher": args["publisher"],
            "namespace": args["namespace"],
        }
        if args["source"]:
            source = read_report(os.path.expanduser(args["source"]))
            again = compliance_report(
                [self._row_again(host, args) for host in source["hosts"]],
                controller,
                args["limit"],
                rules,
                source,
                now,
            )
            return {**again, "history": source["history"]}
        earlier = None
        before = os.path.join(dest, REPORT)
        if os.path.exists(before):
            try:
                earlier = read_report(before)
            except AnsibleError as exc:
                display.warning(f"there will be no trends: {exc}")
        last = {host["name"]: host["last_evidence"] for host in (earlier or {}).get("hosts", ())}
        rows = [self._row(name, args, last.get(name)) for name in args["hosts"]]
        named = self._named(args)
        return compliance_report(rows, controller, args["limit"], rules, earlier, now, named)

    def _named(self, args: Values) -> dict[str, Values]:
        """The CVEs that the run was given. What is wrong with them every host has said already."""
        manifests: list[Values] = []
        advisories: list[Values] = []
        try:
            if args["src"]:
                manifests = [patch.manifest for patch in read_patches(self, args["src"])]
            if args["advisories"]:
                text = read_advisories(locate(self, args["advisories"]))
                advisories = json.loads(text)["advisories"]
        except AnsibleError as exc:
            display.warning(printable(exc))
        return named_cves(manifests, advisories)

    @staticmethod
    def _row_again(host: Values, args: Values) -> HostRow:
        return HostRow(
            host["name"],
            host["evidence"],
            host["clock"],
            None if host["evidence"] else host["reason"],
            "" if host["evidence"] else host["message"],
            host["opted_out"] or host["name"] in args["opted_out_hosts"],
            host["last_evidence"],
        )

    def _row(self, name: str, args: Values, last: str | None) -> HostRow:
        known = self._variables["hostvars"].get(name, {})
        outcome, failure = (known.get(args[which]) or None for which in ("outcome", "failure"))
        opted_out = name in args["opted_out_hosts"]
        if outcome and not failure and outcome.get("evidence"):
            evidence, clock = plain(outcome["evidence"]), plain(outcome["clock"])
            # What a host says was checked when it said it; a variable may be anything since.
            if not problems("evidence", evidence):
                return HostRow(str(name), evidence, clock, None, "", opted_out, last)
            failure = {"reason": "result_invalid", "msg": "the evidence does not fit its schema"}
        alive = name in set(self._variables.get("ansible_play_hosts", args["hosts"]))
        row = host_row(str(name), outcome, failure, alive)
        reason = row["reason"] or "task_failed"
        return HostRow(str(name), None, None, reason, row["message"], opted_out, last)
