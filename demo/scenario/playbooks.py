# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of the collection's playbooks, and what their recaps and reports say."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import referencing

from .checkout import COMMANDS, OUTPUT, TOP
from .narration import Failure, expect, show

RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.M)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: exit code, output, changed tasks by host, and its report where it wrote one."""

    code: int
    output: str
    changed: dict[str, int]
    report: dict[str, Any] | None


def validator() -> jsonschema.Draft202012Validator:
    """Of reports; the schema refers to that of the applier's results."""
    schemas = [json.loads(path.read_text()) for path in sorted((TOP / "schemas").glob("*.json"))]
    registry: referencing.Registry[Any] = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema)) for schema in schemas
    )
    report = json.loads((TOP / "schemas" / "report.schema.json").read_text())
    return jsonschema.Draft202012Validator(report, registry=registry)


class Playbooks:
    """The playbooks with the inventory and the variables that all runs have alike."""

    def __init__(self, inventory: pathlib.Path, variables: dict[str, Any]) -> None:
        self.inventory = inventory
        self.variables = variables
        self.runs = 0

    def run(self, name: str, *options: str, **variables: Any) -> Run:
        """Runs playbooks/NAME.yml; raises Failure when its report is not what the schema says."""
        self.runs += 1
        stem = OUTPUT / f"{self.runs:02d}-{name}"
        report = stem.with_suffix(".report.json")
        report.unlink(missing_ok=True)
        settings = {**self.variables, **variables, "wfpatch_report": str(report)}
        given = stem.with_suffix(".vars.json")
        given.write_text(json.dumps(settings, indent=1))
        command = [
            # A real controller is another machine; here it yields to the hosts' services.
            *("nice", "-n", "10"),
            str(COMMANDS / "ansible-playbook"),
            str(TOP / "playbooks" / f"{name}.yml"),
            *("-i", str(self.inventory), "-e", f"@{given}"),
            *options,
        ]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(TOP / ".work" / "collections"),
            "ANSIBLE_NOCOWS": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        }
        code, output = show(command, stem.with_suffix(".log"), environment)
        changed = {match[1]: int(match[3]) for match in RECAP.finditer(output)}
        return Run(code, output, changed, self._read(report))

    def succeed(self, name: str, *options: str, hosts: Sequence[str], **variables: Any) -> Run:
        """As `run`, but the run must succeed on exactly these hosts and leave a report."""
        run = self.run(name, *options, **variables)
        expect(run.code == 0, f"playbooks/{name}.yml exits 0")
        expect(sorted(run.changed) == sorted(hosts), f"it ran on {', '.join(hosts)}")
        expect(run.report is not None, "it left a report that its schema accepts")
        return run

    @staticmethod
    def _read(path: pathlib.Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        report: dict[str, Any] = json.loads(path.read_text())
        problems = [
            f"{problem.json_path}: {problem.message[:200]}"
            for problem in validator().iter_errors(report)
        ]
        if problems:
            raise Failure(f"{path.name} is not valid: " + "; ".join(problems[:5]))
        return report


def processes(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(host, process) for all processes of a report."""
    return [
        (host["name"], process)
        for host in report["hosts"]
        if host["result"]
        for process in host["result"]["processes"]
    ]
