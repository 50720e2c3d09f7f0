# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which processes an operator has opted out of patching. It stands beside a state, and changes
none.
"""

from __future__ import annotations

import fnmatch
import typing as t

from ansible.errors import AnsibleError

Values = dict[str, t.Any]

#: What a rule may go by, as the rollout policy has it (schemas/rollout.schema.json), less hosts.
KINDS = ("services", "processes", "users", "paths")


def check_rules(rules: t.Mapping[str, t.Any]) -> dict[str, list[str]]:
    """The rules, each kind a list of texts. Raises AnsibleError for anything else."""
    unknown = sorted(set(rules) - {*KINDS, "hosts"})
    if unknown:
        raise AnsibleError(
            f"opt-outs go by {', '.join(KINDS)} and hosts, not by {', '.join(unknown)}"
        )
    checked = {}
    for kind in KINDS:
        words = rules.get(kind) or []
        if not isinstance(words, list) or not all(isinstance(each, (str, int)) for each in words):
            raise AnsibleError(f"the opt-outs by {kind} have to be a list of texts")
        checked[kind] = [str(each) for each in words]
    return checked


def opted_out_by(process: t.Mapping[str, t.Any], rules: t.Mapping[str, list[str]]) -> str | None:
    """What opts a process out: a rule of the host's store, or of the operator's as
    ``kind=pattern``; None where nothing does.
    """
    if process["opted_out"] is not None:
        return str(process["opted_out"])
    unit = process["unit"] or ""
    tried = {
        # A unit may be named without its suffix, as systemctl(1) takes it.
        "services": (unit, unit.removesuffix(".service")) if unit else (),
        "processes": (process["comm"],),
        "users": tuple(str(each) for each in (process["user"], process["uid"]) if each is not None),
        "paths": (process["exe"], *(item["path"] for item in process["objects"])),
    }
    for kind in KINDS:
        for pattern in rules.get(kind, ()):
            if any(fnmatch.fnmatchcase(value, pattern) for value in tried[kind]):
                return f"{kind}={pattern}"
    return None
