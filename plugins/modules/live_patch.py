#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Apply patches to the running processes of a host, or revert them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: live_patch
short_description: Apply patches to running processes, or revert them
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Applies patches from the host's store to all running processes that map an object they are
    for, thread by thread, or reverts them.
  - No process is restarted, and no error ends, signals or stops one for good. A run that was
    interrupted is completed by the next one.
  - In check mode the applier plans instead. It reads the processes and says what would happen
    and what would be refused.
  - After a change the action half has the applier read live memory once more and fails when that
    does not show what was asked for.
options:
  state:
    description:
      - Whether the patches are in force.
    type: str
    choices: [applied, reverted]
    default: applied
  ids:
    description:
      - Ids of the patches, each after those that it requires. They are reverted backwards.
      - One of O(ids) and O(src) is required.
    type: list
    elements: str
  src:
    description:
      - Folders of the patches on the controller. They are validated, and ids and their order are
        taken from them.
      - Outside check mode the bundles must be in the host's store already, see
        M(wfpatch.fleet.bundle).
      - In check mode a bundle that would be pushed is planned with, too. For that it is verified
        in a temporary store.
    type: list
    elements: path
  applier_src:
    description:
      - The applier on the controller.
      - Used in check mode only. A host that has no applier yet plans with this one, from a
        temporary folder.
    type: path
  signers:
    description:
      - Who may sign patches, as for M(wfpatch.fleet.applier).
      - Used in check mode only, instead of the contents of O(allowed_signers).
    type: str
  revoked_src:
    description:
      - The keys that are revoked, as for M(wfpatch.fleet.applier).
      - Used in check mode only, instead of those that the host has.
    type: path
  revoked:
    description:
      - The contents of O(revoked_src) in base64. Set by the action half, not for use in tasks.
    type: str
  pids:
    description:
      - Only these processes. All that match when not given.
    type: list
    elements: int
    default: []
  policy:
    description:
      - Who decides when a thread migrates. The manifest says so when not given.
    type: str
    choices: [auto, global]
  backend:
    description:
      - What touches the processes. V(auto) takes V(kernel) where the kernel service answers,
        see M(wfpatch.fleet.kernel_service), and V(ptrace) elsewhere.
    type: str
    choices: [auto, kernel, ptrace]
    default: auto
  timeout:
    description:
      - Seconds to wait for a transition to end. The manifest says so when not given.
    type: int
  wait:
    description:
      - Seconds to wait for another applier that works on the host. Only one may.
    type: int
    default: 30
  include_init:
    description:
      - Whether a process with the pid 1 is patched, too.
    type: bool
    default: false
  opt_out:
    description:
      - Processes that no patch touches. It replaces what the host's store has of this, and stays
        there, so that it also holds for processes that start later.
      - What the store has is left as it is when not given.
    type: list
    elements: dict
    suboptions:
      kind:
        description:
          - By what the processes are known. V(service) is a systemd unit, V(process) the name
            that the kernel has of a process, V(path) that of the executable.
        type: str
        choices: [service, process, user, path]
        required: true
      pattern:
        description: A shell pattern.
        type: str
        required: true
  accept:
    description:
      - States that are no failure although the patches are not in force everywhere.
      - V(not_affected) stands for a host on which no process maps an affected object.
    type: list
    elements: str
    choices: [pending, partial, not_affected]
    default: []
  until:
    description:
      - Ends after this step. The next run goes on from there.
    type: str
    choices: [load, arm, finish]
    default: finish
  verify:
    description:
      - Whether live memory is read once more after a change, by a new run of the applier.
    type: bool
    default: true
  plan:
    description:
      - Says what would happen and what would be refused, and changes nothing, as check mode does.
    type: bool
    default: false
  staged:
    description:
      - Where the action half has put O(applier_src) on the host. Not for use in tasks.
    type: path
  progress:
    description:
      - Whether a line is printed for each change while the host works. V(auto) prints when standard
        output is a terminal or with C(-v).
      - The lines come over an SSH channel of their own where the Python that runs Ansible has
        paramiko. Else, and where that is not possible, the host is asked again and again over
        Ansible's connection; a line says why.
    type: str
    choices: [auto, always, never]
    default: auto
  events:
    description:
      - The name under which the applier tells what happens. Set by the action half, not for use in
        tasks.
    type: str
  background:
    description:
      - Whether the applier only begins, to be asked for with O(offset). Set by the action half, not
        for use in tasks.
    type: bool
    default: false
  offset:
    description:
      - Where to go on reading what is told of O(events). Set by the action half, not for use in
        tasks.
    type: int
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
extends_documentation_fragment:
  - wfpatch.fleet.applier_command
  - wfpatch.fleet.applier_command.payloads
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
  - wfpatch.fleet.attributes.fleet
seealso:
  - module: wfpatch.fleet.bundle
  - module: wfpatch.fleet.live_patch_info
"""

EXAMPLES = r"""
- name: Apply two patches that are in the store
  wfpatch.fleet.live_patch:
    ids:
      - example-cve-2026-0001
      - example-cve-2026-0002
  become: true

- name: Apply a patch where the service runs, and pass over hosts without it
  wfpatch.fleet.live_patch:
    ids:
      - example-cve-2026-0001
    accept:
      - not_affected
  become: true

- name: Revert a patch
  wfpatch.fleet.live_patch:
    state: reverted
    ids:
      - example-cve-2026-0001
  become: true
"""

RETURN = r"""
state:
  description: The host's state with regard to these patches, that of its worst process.
  returned: when the applier answered
  type: str
  sample: patched
reason:
  description: The reason code of a refusal or failure.
  returned: always, null when there is none
  type: str
  sample: build_id_mismatch
exit_code:
  description: The applier's exit code.
  returned: when the applier answered
  type: int
  sample: 0
verified:
  description: Whether a second reading of live memory agreed. Null when there was none, as nothing
    was changed.
  returned: when the applier answered
  type: bool
  sample: true
result:
  description: All that the applier said. It fits C(schemas/result.schema.json), see
    C(docs/schemas.md).
  returned: when the applier answered
  type: dict
  sample:
    schema: 1
    changed: true
    state: patched
    reason: null
    message: ""
    before:
      state: vulnerable
      processes:
        - pid: 812
          comm: example
          object: example
          generation: 0
          state: vulnerable
          patches: []
    after:
      state: patched
      processes:
        - pid: 812
          comm: example
          object: example
          generation: 1
          state: patched
          patches: [example-cve-2026-0001]
    processes: []
    cves:
      - {id: CVE-2026-0001, state: patched, patch: example-cve-2026-0001}
    warnings: []
    applier: {version: 0.1.0, backend: ptrace}
    host: {boot_id: 1f0e3dad-9990-4345-b743-9f8ffabdffc4, hostname: web1}
    time: "2026-01-15T10:00:00Z"
"""

import json
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wfpatch.fleet.plugins.module_utils import _background
from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import (
    BLOCKED,
    NO_PROCESS,
    OK,
    PENDING,
    Answer,
    ApplierFailure,
    argument_spec,
    call,
    difference,
    payloads_spec,
    worst,
)
from ansible_collections.wfpatch.fleet.plugins.module_utils._stand_in import (
    stand_in_program,
    stand_in_signers,
    stand_in_store,
)

#: As the applier's store has it.
OPT_OUTS = "opt-outs.json"
#: Ends of a reading that say something about the processes.
INFORMATIVE = (OK, BLOCKED, PENDING, NO_PROCESS)


def words(params, plan):
    """The applier's command line."""
    revert = params["state"] == "reverted"
    command = "revert" if revert else "plan" if plan else "apply"
    arguments = ["--wait", str(params["wait"]), command]
    for pid in params["pids"]:
        arguments.extend(["--pid", str(pid)])
    if params["policy"] is not None:
        arguments.extend(["--policy", params["policy"]])
    arguments.extend(["--backend", params["backend"]])
    if params["timeout"] is not None:
        arguments.extend(["--timeout", str(params["timeout"])])
    if params["include_init"] and not revert:
        arguments.append("--include-init")
    if command != "plan" and params["events"] is not None:
        arguments.extend(["--events", params["events"]])
    if command == "apply" and params["until"] != "finish":
        arguments.extend(["--until", params["until"]])
    arguments.append("--")
    arguments.extend(reversed(params["ids"]) if revert else params["ids"])
    return arguments


def planned_apply(answer, params):
    """A plan lists the processes as they are; this says how they would be, for the difference."""
    if not answer.result["changed"] or answer.result["after"] != answer.result["before"]:
        return answer
    planned = {
        (process["pid"], process["object"]["name"]): [
            patch["id"] for patch in process["patches"] if patch["id"] in params["ids"]
        ]
        for process in answer.result["processes"]
        if process["reason"] is None
    }
    after = json.loads(json.dumps(answer.result["after"]))
    for process in after["processes"]:
        added = [
            patch
            for patch in planned.get((process["pid"], process["object"]), [])
            if patch not in process["patches"]
        ]
        if added:
            process["patches"] += added
            process["generation"] += len(added)
            process["state"] = "patched"
    after["state"] = worst(process["state"] for process in after["processes"])
    return Answer(answer.exit_code, dict(answer.result, after=after))


def planned_revert(answer, params):
    """What a revert would change, from what is in force now: the applier plans for apply only."""
    pids, ids = params["pids"], set(params["ids"])
    after = json.loads(json.dumps(answer.result["after"]))
    changed = False
    for process in after["processes"]:
        if (not pids or process["pid"] in pids) and ids.intersection(process["patches"]):
            changed = True
            process["patches"] = [each for each in process["patches"] if each not in ids]
            process["generation"] += 1
            process["state"] = "patched" if process["patches"] else "vulnerable"
    after["state"] = worst(process["state"] for process in after["processes"])
    result = dict(answer.result, before=answer.result["after"], after=after, changed=changed)
    return Answer(OK if answer.exit_code == PENDING else answer.exit_code, result)


def write_opt_outs(store, rules):
    """Write the store's opt-outs in one piece; returns whether they changed."""
    path = os.path.join(store, OPT_OUTS)
    wanted = json.dumps({"schema": 1, "rules": rules}, sort_keys=True)
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == wanted:
                return False
    except (OSError, ValueError):
        if not rules and not os.path.lexists(path):
            return False
    os.makedirs(store, 0o755, exist_ok=True)
    scratch = os.path.join(store, f".{OPT_OUTS}.{os.getpid()}")
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(wanted)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    return True


def ask(module):
    """Have the applier do it, or plan it; returns its Answer."""
    plan = module.check_mode or module.params["plan"]
    if plan and module.params["state"] == "reverted":
        return planned_revert(call(module, "status", "--", *module.params["ids"]), module.params)
    arguments = words(module.params, plan)
    if not module.check_mode:
        answer = call(module, *arguments)
        if module.params["events"] is not None:
            _background.forget(module.params["events"])
        return planned_apply(answer, module.params) if plan else answer
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
        answer = call(module, *arguments, **planned_paths(module, scratch))
        return planned_apply(answer, module.params)


def watched(module, written):
    """Begin in the background, or look at what was begun: what was told, and the Answer. Ends the
    module while there is none. ``written``: whether opt-outs were changed before.
    """
    params = module.params
    if params["offset"] is None:
        _background.begin(module, params["events"], *words(params, plan=False))
        module.exit_json(changed=written, _told=[], _offset=0)
    lines, offset, code = _background.look(params["events"], params["offset"])
    if code is None:
        module.exit_json(changed=False, _told=lines, _offset=offset)
    return lines, _background.end(params["events"], code)


def planned_paths(module, scratch):
    """What check mode plans with: where the host lacks something that would be there, a stand-in
    in the scratch folder.
    """
    paths = {}
    if module.params["staged"] is not None:
        paths["program"] = stand_in_program(module.params["staged"], scratch)
    if module.params["signers"] is not None or module.params["revoked"] is not None:
        paths["allowed_signers"] = stand_in_signers(
            module.params["signers"],
            scratch,
            module.params["allowed_signers"],
            module.params["revoked"],
        )
    if module.params["payloads"] or module.params["opt_out"] is not None:
        paths["store"] = stand_in_store(
            module.params["store"], module.params["payloads"] or [], scratch
        )
    if module.params["opt_out"] is not None:
        write_opt_outs(paths["store"], module.params["opt_out"])
    return paths


def read_again(module, answer, facts):
    """Have a new run of the applier read live memory; the facts with what that says. Fails the
    module when it says something else.
    """
    facts["verified"] = False
    try:
        reading = call(module, "verify", "--", *module.params["ids"])
    except ApplierFailure as failure:
        module.fail_json(msg=str(failure), **dict(facts, reason=failure.reason))
    if reading.exit_code in INFORMATIVE and reading.state == answer.state:
        facts["verified"] = True
        return
    found = reading.reason or f"the state {reading.state}"
    facts.update(reading.facts(), reason=reading.reason or "tampered")
    module.fail_json(
        msg=(
            f"the applier said {answer.state}, but live memory read once more shows {found}: "
            f"{reading.message}"
        ),
        **facts,
    )


def accepted(module, answer):
    """Whether this end of the run is a success."""
    if answer.state == "not_affected" and module.params["state"] == "applied":
        # Nothing was patched: whatever the exit code, that is no success unless it was foreseen.
        return "not_affected" in module.params["accept"]
    if answer.exit_code == OK:
        return True
    if answer.exit_code == PENDING:
        return answer.state in module.params["accept"] or module.params["until"] != "finish"
    if answer.exit_code == NO_PROCESS:
        return "not_affected" in module.params["accept"]
    return False


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=dict(
            argument_spec(),
            state={"type": "str", "choices": ["applied", "reverted"], "default": "applied"},
            ids={"type": "list", "elements": "str"},
            src={"type": "list", "elements": "path"},
            pids={"type": "list", "elements": "int", "default": []},
            policy={"type": "str", "choices": ["auto", "global"]},
            backend={"type": "str", "choices": ["auto", "kernel", "ptrace"], "default": "auto"},
            timeout={"type": "int"},
            opt_out={
                "type": "list",
                "elements": "dict",
                "options": {
                    "kind": {
                        "type": "str",
                        "choices": ["service", "process", "user", "path"],
                        "required": True,
                    },
                    "pattern": {"type": "str", "required": True},
                },
            },
            accept={
                "type": "list",
                "elements": "str",
                "choices": ["pending", "partial", "not_affected"],
                "default": [],
            },
            wait={"type": "int", "default": 30},
            include_init={"type": "bool", "default": False},
            until={"type": "str", "choices": ["load", "arm", "finish"], "default": "finish"},
            verify={"type": "bool", "default": True},
            progress={"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
            applier_src={"type": "path"},
            signers={"type": "str"},
            revoked_src={"type": "path"},
            revoked={"type": "str"},
            plan={"type": "bool", "default": False},
            staged={"type": "path"},
            events={"type": "str"},
            background={"type": "bool", "default": False},
            offset={"type": "int"},
            payloads=payloads_spec(),
        ),
        required_one_of=[("ids", "src")],
        supports_check_mode=True,
    )
    if not module.params["ids"]:
        module.fail_json(
            msg="no patch is named: an empty list of ids is an error, never a success",
            reason="usage",
        )
    opting = module.params["opt_out"] is not None and module.params["state"] == "applied"
    # What is only looked at was begun with them.
    opting = opting and module.params["offset"] is None
    written = False
    told = []
    try:
        if opting and not module.check_mode and not module.params["plan"]:
            written = write_opt_outs(module.params["store"], module.params["opt_out"])
        if module.params["background"]:
            told, answer = watched(module, written)
        else:
            answer = ask(module)
    except ApplierFailure as failure:
        failure.fail(module)
    except OSError as exc:
        module.fail_json(
            msg=f"the opt-outs in {module.params['store']} cannot be written: {exc}",
            reason="opt_outs_invalid",
        )
    changed = answer.result["changed"] or written
    facts = dict(answer.facts(), changed=changed, verified=None, _told=told)
    if module._diff:
        plan = module.check_mode or module.params["plan"]
        facts["diff"] = difference(answer, plan and module.params["state"] == "applied")
    for warning in answer.result["warnings"]:
        module.warn(warning)
    if not accepted(module, answer):
        message = answer.message
        if answer.exit_code == OK:
            facts["reason"] = facts["reason"] or "no_matching_process"
            message = "; ".join(answer.result["warnings"]) or "no process maps a patched object"
        module.fail_json(msg=message, **facts)
    planned = module.check_mode or module.params["plan"]
    # Without a change, the answer itself is what live memory says.
    if module.params["verify"] and changed and not planned:
        read_again(module, answer, facts)
    module.exit_json(msg=answer.result["message"], **facts)


if __name__ == "__main__":
    main()
