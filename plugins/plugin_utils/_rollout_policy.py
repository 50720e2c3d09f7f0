# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A rollout policy as a run uses it. See schemas/rollout.schema.json and docs/rollouts.md."""

from __future__ import annotations

import datetime
import json
import os
import typing as t
import zoneinfo
from dataclasses import dataclass

from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._maintenance_window import time_zone
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._manifest_yaml import (
    Path,
    YamlDocument,
    read_manifest_yaml,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import dotted
from ansible_collections.wfpatch.fleet.plugins.plugin_utils.validation import (
    Violation,
    schema_violations,
)

MAX_SIZE = 1 << 20
#: What a policy may keep from being patched on a host, and the kind that the applier knows it by.
OPT_OUTS = {"services": "service", "processes": "process", "users": "user", "paths": "path"}
GATE_KINDS = ("service", "url", "command", "error_rate")

Values = dict[str, t.Any]


class PolicyInvalid(AnsibleError):
    """The policy is not valid; ``violations`` are all the reasons why."""

    reason = "rollout_policy_invalid"

    def __init__(self, violations: t.Sequence[Violation | str]) -> None:
        self.violations = [str(violation) for violation in violations]
        count = len(self.violations)
        super().__init__(
            f"rollout_policy_invalid: {count} violation{'s' if count != 1 else ''} in the rollout "
            "policy:\n" + "\n".join(self.violations)
        )


@dataclass(frozen=True)
class WavePolicy:
    """One wave. ``hosts``: patterns, () for all; ``count`` and ``percent``: 0 for all the rest."""

    name: str
    hosts: tuple[str, ...]
    count: int
    percent: int
    soak: int
    gates: tuple[Values, ...]


@dataclass(frozen=True)
class RolloutPolicy:
    """A valid policy, with what was left out filled in. ``opt_outs``: the rules for the hosts'
    stores (applier, opt_out.py), None to leave there what there is.
    """

    source: str
    name: str
    patches: Values
    waves: tuple[WavePolicy, ...]
    max_failures: int | str
    on_failure: str
    window: Values | None
    stragglers_timeout: int
    accept: tuple[str, ...]
    opt_out_hosts: tuple[str, ...]
    opt_outs: tuple[Values, ...] | None

    def failures_allowed(self, hosts: int) -> int:
        """How many of so many hosts may fail."""
        if isinstance(self.max_failures, int):
            return self.max_failures
        return hosts * int(self.max_failures.rstrip("%")) // 100


def gate(given: Values) -> Values:
    """A gate with what was left out filled in; ``kind`` is one of GATE_KINDS."""
    kind = next(each for each in GATE_KINDS if each in given)
    place = given.get("from", "controller" if kind == "error_rate" else "host")
    words: list[str] = {
        "service": [],
        "url": [given.get("url", "")],
        "command": given.get("command", []),
        "error_rate": given.get("error_rate", {}).get("command", []),
    }[kind]
    return {
        "name": given["name"],
        "kind": kind,
        "service": given.get("service", ""),
        "url": given.get("url", ""),
        "statuses": given.get("statuses", [200]),
        "command": words if kind in ("command", "error_rate") else [],
        "at_most": given.get("error_rate", {}).get("at_most", "0"),
        "controller": place == "controller",
        "each_host": place == "host" or any("{host}" in word for word in words),
        "timeout": given.get("timeout", 30),
        "retries": given.get("retries", 0),
        "delay": given.get("delay", 5),
    }


def _no_such_day(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return True
    return False


def _sense(data: Values) -> t.Iterator[tuple[Path, str]]:
    """What a schema cannot say; only called for documents that fit it."""
    before = data["patches"].get("released_before")
    if before is not None and _no_such_day(before):
        yield ("patches", "released_before"), f"there is no such day as {before}"
    names: set[str] = set()
    for index, wave in enumerate(data["waves"]):
        if wave["name"] in names:
            yield ("waves", index, "name"), f"{wave['name']} is the name of an earlier wave, too"
        names.add(wave["name"])
    places: list[tuple[Path, list[Values]]] = [(("gates",), data.get("gates", []))]
    places += [
        (("waves", index, "gates"), wave.get("gates", []))
        for index, wave in enumerate(data["waves"])
    ]
    for path, gates in places:
        for index, each in enumerate(gates):
            if "service" in each and each.get("from") == "controller":
                yield (*path, index, "from"), "a service is asked for on the hosts themselves"
            if "statuses" in each and "url" not in each:
                yield (*path, index, "statuses"), "is for a url"
    if "window" in data:
        try:
            time_zone(data["window"]["timezone"])
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            yield (
                ("window", "timezone"),
                f"{data['window']['timezone']} is not a time zone that this controller knows",
            )
        for index, span in enumerate(data["window"]["open"]):
            if span["from"] == span["to"]:
                yield ("window", "open", index), "from and to are the same"


def _document(given: t.Any) -> tuple[YamlDocument, str]:
    """The policy of a file, or one that stands among the variables."""
    if isinstance(given, t.Mapping):
        return YamlDocument(data=json.loads(json.dumps(given))), "the variable"
    if not isinstance(given, str) or not given:
        raise AnsibleError(f"{given!r} is neither a rollout policy nor the path of one")
    path = os.path.expanduser(given)
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_SIZE + 1)
    except OSError as exc:
        raise PolicyInvalid([Violation(path, 0, "", f"cannot be read: {exc.strerror}")]) from exc
    try:
        return read_manifest_yaml(text.decode("utf-8")), path
    except UnicodeDecodeError as exc:
        raise PolicyInvalid([Violation(path, 0, "", "is not UTF-8")]) from exc


def read_policy(given: t.Any) -> RolloutPolicy:
    """The policy, read from a path on the controller or given as a mapping.

    Raises PolicyInvalid with everything that is wrong.
    """
    document, source = _document(given)
    violations = [
        Violation(source, problem.line, dotted(problem.path), problem.message)
        for problem in document.problems
    ]
    if document.data is not None:
        by_path: dict[str, Violation] = {}
        for violation in schema_violations(document, source, "rollout"):
            by_path.setdefault(violation.path, violation)
        violations.extend(by_path.values())
    if not violations:
        violations.extend(
            Violation(source, document.line(path), dotted(path), message)
            for path, message in _sense(document.data)
        )
    if violations:
        raise PolicyInvalid(sorted(set(violations)))
    return _policy(source, document.data)


def _opt_outs(given: Values) -> tuple[Values, ...]:
    """The rules. A service is a systemd unit, and systemd takes a name without a suffix for that
    of a service unit.
    """
    return tuple(
        {
            "kind": kind,
            "pattern": f"{value}.service"
            if kind == "service" and not value.endswith((".service", ".scope", "*"))
            else value,
        }
        for name, kind in OPT_OUTS.items()
        for value in given.get(name, ())
    )


def _policy(source: str, data: Values) -> RolloutPolicy:
    opt_out = data.get("opt_out", {})
    accept = dict.fromkeys(data.get("accept", []))
    if "all_applicable" in data["patches"]:
        accept["not_affected"] = None
    return RolloutPolicy(
        source=source,
        name=data["name"],
        patches=data["patches"],
        waves=tuple(
            WavePolicy(
                wave["name"],
                tuple(wave.get("hosts", ())),
                wave.get("count", 0),
                wave.get("percent", 0),
                wave.get("soak", data.get("soak", 0)),
                tuple(gate(each) for each in wave.get("gates", data.get("gates", []))),
            )
            for wave in data["waves"]
        ),
        max_failures=data.get("max_failures", 0),
        on_failure=data.get("on_failure", "stop"),
        window=data.get("window"),
        stragglers_timeout=data.get("stragglers_timeout", 0),
        accept=tuple(accept),
        opt_out_hosts=tuple(opt_out.get("hosts", ())),
        opt_outs=_opt_outs(data["opt_out"]) if "opt_out" in data else None,
    )
