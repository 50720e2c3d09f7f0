#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gather a host's evidence for the compliance report, from live memory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: compliance_evidence
short_description: Gather evidence of every CVE that manifests name, from live memory
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Says for each running image that is affected by a CVE, or goes by the name of one that is,
    which state it is in, as its memory says; never what was asked for. Manifests are those of the
    bundles in the host's store, whose signatures verify, and those given in O(src).
  - Finds processes that run outdated executables and libraries after an upgrade, by build-id.
  - Changes nothing, stops no thread, and leaves nothing behind. A host that has nothing of
    wfpatch yet is read with O(applier_src) and O(src) from a temporary folder.
options:
  src:
    description:
      - Folders of patches on the controller, whose CVEs are looked for besides those of the
        host's store. They are validated on the controller and verified on the host.
    type: list
    elements: path
    default: []
  advisories:
    description:
      - A YAML or JSON file on the controller that fits C(schemas/advisories.schema.json). It names
        fixed builds and versions, and builds that no live patch can help.
    type: path
  applier_src:
    description:
      - The applier on the controller, for hosts that have none, or one without the command
        C(compliance).
    type: path
  signers:
    description:
      - Who may sign patches, in the format of C(ALLOWED SIGNERS) in ssh-keygen(1), besides the
        contents of O(allowed_signers).
    type: str
  revoked_src:
    description:
      - File on the controller with the keys that are revoked, a KRL or public keys one a line, see
        C(ssh-keygen -k). It counts here instead of the host's C(revoked_keys).
    type: path
  revoked:
    description:
      - The contents of O(revoked_src) in base64. Set by the action half, not for use in tasks.
    type: str
  known:
    description:
      - The contents of O(advisories) as JSON. Set by the action half, not for use in tasks.
    type: str
  staged:
    description:
      - Where the action half has put O(applier_src) on the host. Not for use in tasks.
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: Nothing is changed.
  idempotent:
    support: full
  action:
    details: It validates the patches and advisories, sends what the host lacks, measures the host's
      clock, and checks the evidence against its schema.
extends_documentation_fragment:
  - wfpatch.fleet.applier_command
  - wfpatch.fleet.applier_command.payloads
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
  - wfpatch.fleet.attributes.fleet
seealso:
  - module: wfpatch.fleet.compliance_report
  - module: wfpatch.fleet.live_patch_info
"""

EXAMPLES = r"""
- name: Gather the evidence
  wfpatch.fleet.compliance_evidence:
    src:
      - bundles/example-cve-2026-0001
    applier_src: dist/wfpatch
    signers: "{{ lookup('ansible.builtin.file', 'keys/allowed_signers') }}"
  become: true
  register: compliance_evidence

- name: Show the states
  ansible.builtin.debug:
    msg: "{{ compliance_evidence.evidence.cves }}"
"""

RETURN = r"""
evidence:
  description: What the applier said. It fits C(schemas/evidence.schema.json), see
    C(docs/compliance.md).
  returned: success
  type: dict
  sample:
    schema: 1
    begun: "2026-01-15T10:00:00.000000Z"
    ended: "2026-01-15T10:00:00.250000Z"
    cves:
      - id: CVE-2026-0001
        severity: high
        references: []
        patches: [example-cve-2026-0001]
        state: patched
    processes: []
clock:
  description: How far the host's clock is ahead of the controller's, in microseconds, and how
    far off that may be.
  returned: success
  type: dict
  sample:
    offset_us: 1200
    uncertainty_us: 250000
reason:
  description: The reason code of a failure.
  returned: failure
  type: str
  sample: applier_missing
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import (
    OK,
    ApplierFailure,
    argument_spec,
    converse,
    payloads_spec,
)
from ansible_collections.wfpatch.fleet.plugins.module_utils._stand_in import (
    stand_in_program,
    stand_in_signers,
    stand_in_store,
)


def paths(params, scratch):
    """What the applier is called with: the host's own, and stand-ins for what was sent along."""
    chosen = {}
    if params["staged"] is not None:
        chosen["program"] = stand_in_program(params["staged"], scratch)
    text = params["signers"]
    if text is not None and os.path.exists(params["allowed_signers"]):
        with open(params["allowed_signers"], encoding="utf-8", errors="replace") as file:
            text = file.read().rstrip("\n") + "\n" + text
    if text is not None or params["revoked"] is not None:
        # Whose key the host has revoked is no more believed for being sent along.
        chosen["allowed_signers"] = stand_in_signers(
            text, scratch, params["allowed_signers"], params["revoked"]
        )
    if params["payloads"]:
        chosen["store"] = stand_in_store(params["store"], params["payloads"], scratch)
    return chosen


def gather(module):
    """Ask the applier; returns the evidence. Raises ApplierFailure."""
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
        words = ["compliance"]
        if module.params["known"] is not None:
            words.extend(["--advisories", os.path.join(scratch, "advisories.json")])
            with open(words[-1], "w", encoding="utf-8") as file:
                file.write(module.params["known"])
        exit_code, value = converse(module, *words, **paths(module.params, scratch))
    if exit_code != OK:
        raise ApplierFailure(
            value.get("reason") or "applier_failed",
            value.get("message") or f"the applier ended with exit code {exit_code}",
            exit_code=exit_code,
        )
    if value.get("schema") != 1 or "processes" not in value or "ended" not in value:
        raise ApplierFailure(
            "result_invalid",
            "the applier's evidence has another form than this version of the collection reads",
        )
    return value


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=dict(
            argument_spec(),
            src={"type": "list", "elements": "path", "default": []},
            advisories={"type": "path"},
            applier_src={"type": "path"},
            signers={"type": "str"},
            revoked_src={"type": "path"},
            revoked={"type": "str"},
            known={"type": "str"},
            staged={"type": "path"},
            payloads=payloads_spec(),
        ),
        supports_check_mode=True,
    )
    try:
        evidence = gather(module)
    except ApplierFailure as failure:
        failure.fail(module)
    for refused in evidence.get("refused", []):
        module.warn(
            "{} is not believed: {}: {}".format(
                refused.get("id") or "the store's list of opt-outs",
                refused.get("reason"),
                refused.get("message"),
            )
        )
    module.exit_json(changed=False, evidence=evidence, reason=None)


if __name__ == "__main__":
    main()
