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
      - Whether live memory is read once more at the end, by a new run of the applier.
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
      - Whether each step is done by a call of its own and told in a line. V(auto) does so when
        standard output is a terminal or with C(-v).
    type: str
    choices: [auto, always, never]
    default: auto
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
  description: Whether a second reading of live memory agreed. Null when there was none.
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

import base64
import json
import os
import shlex
import shutil
import sys
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import (
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


def ask(module):
    """Have the applier do it, or plan it; returns its Answer."""
    plan = module.check_mode or module.params["plan"]
    if plan and module.params["state"] == "reverted":
        return planned_revert(call(module, "status", "--", *module.params["ids"]), module.params)
    arguments = words(module.params, plan)
    if not module.check_mode:
        answer = call(module, *arguments)
        return planned_apply(answer, module.params) if plan else answer
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
        answer = call(module, *arguments, **planned_paths(module, scratch))
        return planned_apply(answer, module.params)


def planned_paths(module, scratch):
    """What check mode plans with: where the host lacks something that would be there, a stand-in
    in the scratch folder.
    """
    paths = {}
    if module.params["staged"] is not None:
        paths["program"] = os.path.join(scratch, "wfpatch")
        with open(paths["program"], "w", encoding="utf-8") as file:
            file.write(
                '#!/bin/sh\nexec {} -I -B {} "$@"\n'.format(
                    shlex.quote(sys.executable), shlex.quote(module.params["staged"])
                )
            )
        os.chmod(paths["program"], 0o700)
    if module.params["signers"] is not None:
        paths["allowed_signers"] = os.path.join(scratch, "allowed_signers")
        with open(paths["allowed_signers"], "w", encoding="utf-8") as file:
            file.write(module.params["signers"])
    if module.params["payloads"]:
        paths["store"] = planned_store(module, os.path.join(scratch, "store"))
    return paths


def planned_store(module, planned):
    """A copy of the host's store with the bundles that would be pushed. The applier verifies
    them as it reads them.
    """
    store = module.params["store"]
    if os.path.isdir(store):
        shutil.copytree(
            store,
            planned,
            ignore=lambda _folder, names: [name for name in names if name.startswith(".")],
        )
    for payload in module.params["payloads"]:
        folder = os.path.join(planned, "bundles", os.path.basename(payload["id"]))
        os.makedirs(folder, 0o755, exist_ok=True)
        for name, field in (
            ("bundle.json", "bundle"),
            ("bundle.json.sig", "signature"),
            ("patch.elf", "patch"),
        ):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(base64.b64decode(payload[field]))
    return planned


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
            plan={"type": "bool", "default": False},
            staged={"type": "path"},
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
    try:
        answer = ask(module)
    except ApplierFailure as failure:
        failure.fail(module)
    facts = dict(answer.facts(), changed=answer.result["changed"], verified=None)
    if module._diff:
        facts["diff"] = difference(answer)
    for warning in answer.result["warnings"]:
        module.warn(warning)
    if not accepted(module, answer):
        message = answer.message
        if answer.exit_code == OK:
            facts["reason"] = facts["reason"] or "no_matching_process"
            message = "; ".join(answer.result["warnings"]) or "no process maps a patched object"
        module.fail_json(msg=message, **facts)
    module.exit_json(msg=answer.result["message"], **facts)


if __name__ == "__main__":
    main()
