# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Call the applier on the host and turn what it says into a module's result."""

from __future__ import annotations

import json
import os

#: Exit codes of the applier.
OK = 0
FAILED = 1
USAGE = 2
BLOCKED = 3
PENDING = 4
TAMPERED = 5
BUSY = 6
NO_PROCESS = 7

DEFAULT_PROGRAM = "/usr/local/sbin/wfpatch"
DEFAULT_STORE = "/var/lib/wfpatch"
DEFAULT_ALLOWED_SIGNERS = "/etc/wfpatch/allowed_signers"


#: A host takes its worst process: the later in this order, the worse. As in the applier.
STATES = (
    "not_affected",
    "fixed",
    "patched",
    "unknown",
    "pending",
    "partial",
    "unpatchable",
    "blocked",
    "vulnerable",
)


def worst(states):
    """The worst of the states; not_affected when there are none."""
    return max(
        states,
        key=lambda state: STATES.index(state) if state in STATES else len(STATES),
        default="not_affected",
    )


class ApplierFailure(Exception):
    """The host cannot do what was asked: ``reason`` is a reason code, ``facts`` go into the
    module's result.
    """

    def __init__(self, reason, message, **facts):
        super().__init__(message)
        self.reason = reason
        self.facts = facts

    def fail(self, module):
        """End the module with this failure."""
        module.fail_json(msg=str(self), reason=self.reason, **self.facts)


class Answer:
    """What one call of the applier said. ``result``: its JSON object, see
    schemas/result.schema.json.
    """

    def __init__(self, exit_code, result):
        self.exit_code = exit_code
        self.result = result

    @property
    def state(self):
        """The host's state with regard to the patches asked for."""
        return self.result["state"]

    @property
    def reason(self):
        """The reason code, or None."""
        return self.result["reason"]

    @property
    def message(self):
        """A text for people, never empty for a failure."""
        return self.result["message"] or (
            f"the applier ended with exit code {self.exit_code}, state {self.state}"
        )

    def facts(self):
        """The answer as a part of a module's result."""
        return {
            "state": self.state,
            "reason": self.reason,
            "exit_code": self.exit_code,
            "result": self.result,
        }


def argument_spec():
    """The options of every module that calls the applier."""
    return {
        "program": {"type": "path", "default": DEFAULT_PROGRAM},
        "store": {"type": "path", "default": DEFAULT_STORE},
        "allowed_signers": {"type": "path", "default": DEFAULT_ALLOWED_SIGNERS},
    }


def payloads_spec():
    """The option in which an action half sends the contents of bundles."""
    return {
        "type": "list",
        "elements": "dict",
        "options": {
            "id": {"type": "str", "required": True},
            # Kept out of logs for their size, not because they were secret.
            "bundle": {"type": "str", "required": True, "no_log": True},
            "signature": {"type": "str", "required": True, "no_log": True},
            "patch": {"type": "str", "required": True, "no_log": True},
        },
    }


def _parse(stdout):
    try:
        value = json.loads(stdout)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_result(value):
    return value.get("schema") == 1 and all(
        key in value
        for key in ("changed", "state", "reason", "message", "before", "after", "warnings")
    )


def command_line(module, *arguments, **paths):
    """The applier with the module's paths, or those given. Raises ApplierFailure with
    applier_missing.
    """
    program = paths.get("program", module.params["program"])
    if not os.access(program, os.X_OK):
        raise ApplierFailure(
            "applier_missing",
            f"{program} is not there or not executable: install the applier first "
            "(module wfpatch.fleet.applier, playbook wfpatch.fleet.install)",
        )
    command = [
        program,
        "--store",
        paths.get("store", module.params["store"]),
        "--allowed-signers",
        paths.get("allowed_signers", module.params["allowed_signers"]),
        "--json",
    ]
    command.extend(arguments)
    return command


def said(command, exit_code, stdout, stderr):
    """The JSON object that a command printed. Raises ApplierFailure with result_invalid."""
    value = _parse(stdout)
    if value is None:
        words = (stderr or stdout).strip()[-2000:] or "no output"
        raise ApplierFailure(
            "result_invalid",
            f"{' '.join(command)} ended with exit code {exit_code} and gave no JSON that this "
            f"version of the collection reads: {words}",
            exit_code=exit_code,
        )
    return value


def answer_of(command, exit_code, stdout, stderr):
    """An Answer out of what a command printed. Raises ApplierFailure with result_invalid."""
    value = said(command, exit_code, stdout, stderr)
    if not _is_result(value):
        raise ApplierFailure(
            "result_invalid",
            "the applier's answer to {} has another form than this version of the "
            "collection reads".format(" ".join(command)),
            exit_code=exit_code,
        )
    return Answer(exit_code, value)


def _run(module, command):
    return module.run_command(command, environ_update={"LC_ALL": "C.UTF-8"})


def converse(module, *arguments, **paths):
    """Run the applier with the module's paths, or those given; returns its exit code and its
    JSON object.

    Raises ApplierFailure with applier_missing or result_invalid.
    """
    command = command_line(module, *arguments, **paths)
    exit_code, stdout, stderr = _run(module, command)
    return exit_code, said(command, exit_code, stdout, stderr)


def call(module, *arguments, **paths):
    """As converse, for commands that answer with a result; returns an Answer."""
    command = command_line(module, *arguments, **paths)
    return answer_of(command, *_run(module, command))


def _details(process, changes):
    """What a plan says of a process besides its state."""
    if process.get("opted_out"):
        yield "  is left as it is: {}".format(process["opted_out"])
    if process["reason"] is not None:
        yield "  is refused: {}: {}".format(process["reason"], process["message"])
    elif changes:
        for function in process["functions"]:
            yield "  {} at {:#x}: new code, armed by {}".format(
                function["name"], function["entry"], function["arming"] or "what is there"
            )


def _lines(summary, details=None):
    lines = ["state: {}".format(summary.get("state"))]
    for process in summary.get("processes", []):
        lines.append(
            "{}[{}] {}: {}, generation {}, patches in force: {}".format(
                process.get("comm"),
                process.get("pid"),
                process.get("object"),
                process.get("state"),
                process.get("generation"),
                ", ".join(process.get("patches", [])) or "none",
            )
        )
        lines.extend((details or {}).get((process.get("pid"), process.get("object")), ()))
    return "\n".join(lines) + "\n"


def difference(answer, planned=False):
    """Before and after as Ansible shows them with --diff; ``planned``: with the functions that
    would be replaced, and what would be refused.
    """
    details = {}
    if planned:
        before = {
            (each["pid"], each["object"]): each for each in answer.result["before"]["processes"]
        }
        after = {
            (each["pid"], each["object"]): each for each in answer.result["after"]["processes"]
        }
        for process in answer.result["processes"]:
            key = (process["pid"], process["object"]["name"])
            details[key] = list(_details(process, before.get(key) != after.get(key)))
    return {
        "before": _lines(answer.result["before"]),
        "after": _lines(answer.result["after"], details),
        "before_header": "live memory",
        "after_header": "live memory",
    }
