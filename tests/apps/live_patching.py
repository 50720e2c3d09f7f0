# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators and patch authors do: build, sign, run a playbook, read its report."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

TOP = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = pathlib.Path(sys.executable).parent
#: Ansible's own commands: of another ansible-core where `make test-newest` says so.
CONTROLLER = pathlib.Path(os.environ.get("WFPATCH_CONTROLLER") or COMMANDS.parent) / "bin"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)", re.M)


@dataclasses.dataclass(frozen=True)
class Signer:
    """A signing key, and the list of allowed signers that names it alone."""

    key: pathlib.Path
    allowed: pathlib.Path


def make_signer(folder: pathlib.Path) -> Signer:
    """A new key in that folder."""
    key = folder / "signing_key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", key], check=True
    )
    allowed = folder / "allowed_signers"
    public = key.with_suffix(".pub").read_text()
    allowed.write_text(f'tests namespaces="wfpatch" {public}')
    return Signer(key, allowed)


def build(
    recipe: str, folder: pathlib.Path, signer: Signer
) -> tuple[pathlib.Path | None, dict[str, Any]]:
    """The signed bundle of a recipe, and what the builder said of it.

    No bundle when it refused; then what it said is the reason and the message.
    """
    bundle = folder / recipe
    done = subprocess.run(
        [
            *(COMMANDS / "wfpatch-build", "--quiet", "debian", "--json"),
            *("--recipe", TOP / "catalogue" / recipe / "recipe.yml"),
            *("--key", signer.key, "--output", bundle),
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        refusal = re.search(r"^wfpatch-build: ([a-z_]+): (.*)", done.stderr, re.M | re.S)
        assert refusal, done.stdout + done.stderr
        return None, {"reason": refusal[1], "message": refusal[2]}
    said: dict[str, Any] = json.loads(done.stdout)
    return bundle, said


@dataclasses.dataclass(frozen=True)
class Run:
    """A playbook's exit code, output, changed tasks by host, and report (of install, none)."""

    code: int
    output: str
    changed: dict[str, int]
    report: dict[str, Any]

    def processes(self, host: str) -> list[dict[str, Any]]:
        """The processes of the host in the report."""
        return [
            process
            for entry in self.report["hosts"]
            if entry["name"] == host and entry["result"]
            for process in entry["result"]["processes"]
        ]


def play(
    name: str,
    inventory: pathlib.Path,
    folder: pathlib.Path,
    *options: str,
    prefix: Sequence[str] = (),
    commands: pathlib.Path = CONTROLLER,
    **variables: Any,
) -> Run:
    """Runs playbooks/NAME.yml on the inventory; `prefix` is a command line that runs it elsewhere,
    such as a network namespace, and `commands` is where the ansible-playbook to use is."""
    play = begin(name, inventory, folder, *options, prefix=prefix, commands=commands, **variables)
    return play.end()


class Play:
    """A playbook that runs."""

    def __init__(self, name: str, report: pathlib.Path, process: subprocess.Popen[str]) -> None:
        self.name, self.report, self.process = name, report, process

    def end(self) -> Run:
        """Waits for its end."""
        output = "".join(self.process.communicate())
        assert self.report.exists() or self.name in ("install", "compliance"), output
        changed = {match[1]: int(match[3]) for match in RECAP.finditer(output)}
        written = json.loads(self.report.read_text()) if self.report.exists() else {}
        return Run(self.process.returncode, output, changed, written)


def begin(
    name: str,
    inventory: pathlib.Path,
    folder: pathlib.Path,
    *options: str,
    prefix: Sequence[str] = (),
    commands: pathlib.Path = COMMANDS,
    **variables: Any,
) -> Play:
    """As play, without waiting. It leads a process group of its own."""
    report = folder / f"{name}.report.json"
    report.unlink(missing_ok=True)
    settings = json.dumps({**variables, "wfpatch_report": str(report)})
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(TOP / ".work" / "collections"),
        "ANSIBLE_FORCE_COLOR": "0",
    }
    process = subprocess.Popen(
        [
            *(*prefix, commands / "ansible-playbook", TOP / "playbooks" / f"{name}.yml"),
            *("-i", inventory, "-e", settings, *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    return Play(name, report, process)


def gdb_agrees(outer: int, inner: int, report: dict[str, Any], host: str) -> tuple[bool, str]:
    """Whether gdb reads from the live process what the report says of it, and what gdb said."""
    own = {"hosts": [entry for entry in report["hosts"] if entry["name"] == host]}
    reader = pathlib.Path(__file__).with_name("gdb_reader")
    done = subprocess.run(
        [sys.executable, reader, str(outer), "-", f"--inner-pid={inner}"],
        input=json.dumps(own),
        capture_output=True,
        text=True,
    )
    return done.returncode == 0, done.stdout + done.stderr


def names(processes: Sequence[dict[str, Any]], state: str) -> list[str]:
    """The patches of the processes that are in that state, without repetitions."""
    found = (
        patch["id"]
        for process in processes
        for patch in process["patches"]
        if patch["state"] == state
    )
    return list(dict.fromkeys(found))
