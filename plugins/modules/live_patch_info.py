#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read from live memory which patches are in force on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: live_patch_info
short_description: Read from live memory which patches are in force
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Returns, for each process that maps an object of a patch, what its memory says. Changes
    nothing and stops no thread.
  - A process whose memory is not as was recorded in it fails the task, see O(tampered).
options:
  ids:
    description:
      - Only these patches. All in the host's store, and all in force in a process, when empty.
    type: list
    elements: str
    default: []
  verify:
    description:
      - Whether each function's entry, table and code are read and compared, rather than the
        region's header believed.
    type: bool
    default: true
  tampered:
    description:
      - What to do when live memory is not as was recorded.
      - With V(report) the task succeeds, and RV(reason) says V(tampered).
    type: str
    choices: [fail, report]
    default: fail
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: Nothing is changed.
  idempotent:
    support: full
  action:
    details: It checks the result against its schema.
extends_documentation_fragment:
  - wfpatch.fleet.applier_command
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
  - wfpatch.fleet.attributes.fleet
seealso:
  - module: wfpatch.fleet.live_patch
"""

EXAMPLES = r"""
- name: Read what is in force
  wfpatch.fleet.live_patch_info:
  become: true
  register: live

- name: Show the state of one host
  ansible.builtin.debug:
    msg: "{{ live.state }}"
"""

RETURN = r"""
state:
  description: The host's state, that of its worst process.
  returned: when the applier answered
  type: str
  sample: patched
cves:
  description: The state of each CVE, that of its worst process. As in the facts
    C(ansible_local.wfpatch), and of several patches for a CVE the one that says most.
  returned: when the applier answered
  type: dict
  sample: {CVE-2026-0001: patched}
patches:
  description: The state of each patch that a process has or was asked for.
  returned: when the applier answered
  type: dict
  sample: {example-cve-2026-0001: patched}
opted_out:
  description: How many processes are opted out, whatever their state.
  returned: when the applier answered
  type: int
  sample: 0
reason:
  description: The reason code of a failure.
  returned: always, null when there is none
  type: str
  sample: tampered
exit_code:
  description: The applier's exit code.
  returned: when the applier answered
  type: int
  sample: 0
result:
  description: All that the applier said. It fits C(schemas/result.schema.json), see
    C(docs/schemas.md).
  returned: when the applier answered
  type: dict
  sample:
    schema: 1
    changed: false
    state: patched
    reason: null
    message: ""
    before: {state: patched, processes: []}
    after: {state: patched, processes: []}
    processes: []
    cves:
      - {id: CVE-2026-0001, state: patched, patch: example-cve-2026-0001}
    warnings: []
    applier: {version: 0.1.0, backend: null}
    host: {boot_id: 1f0e3dad-9990-4345-b743-9f8ffabdffc4, hostname: web1}
    time: "2026-01-15T10:00:00Z"
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import (
    BLOCKED,
    NO_PROCESS,
    OK,
    PENDING,
    TAMPERED,
    ApplierFailure,
    argument_spec,
    call,
    worst,
)

#: Ends that say something about the processes, rather than that they could not be read.
INFORMATIVE = (OK, BLOCKED, PENDING, NO_PROCESS)


def states(pairs):
    """The worst state for each name."""
    found = {}
    for name, state in pairs:
        found[name] = worst([state, found.get(name, "not_affected")])
    return found


def overview(result):
    """What a play asks for most: states by CVE and patch, and how many are opted out."""
    processes = result["processes"]
    return {
        "cves": states((cve["id"], cve["state"]) for cve in result["cves"]),
        "patches": states(
            (patch["id"], patch["state"]) for each in processes for patch in each["patches"]
        ),
        "opted_out": sum(1 for each in processes if each.get("opted_out")),
    }


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=dict(
            argument_spec(),
            ids={"type": "list", "elements": "str", "default": []},
            verify={"type": "bool", "default": True},
            tampered={"type": "str", "choices": ["fail", "report"], "default": "fail"},
        ),
        supports_check_mode=True,
    )
    try:
        answer = call(
            module, "verify" if module.params["verify"] else "status", "--", *module.params["ids"]
        )
    except ApplierFailure as failure:
        failure.fail(module)
    facts = dict(answer.facts(), changed=False, **overview(answer.result))
    for warning in answer.result["warnings"]:
        module.warn(warning)
    if answer.exit_code in INFORMATIVE or (
        answer.exit_code == TAMPERED and module.params["tampered"] == "report"
    ):
        module.exit_json(msg=answer.result["message"], **facts)
    module.fail_json(msg=answer.message, **facts)


if __name__ == "__main__":
    main()
