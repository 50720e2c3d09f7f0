#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write the compliance report on the controller. The action plugin of the same name does it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: compliance_report
short_description: Write the compliance report of a fleet in every format
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Collects what M(wfpatch.fleet.compliance_evidence) returned for each host of the play and writes
    it as JSON, CSV, a page for browsers, OpenVEX, CSAF VEX, CycloneDX VEX, OSCAL assessment
    results, JUnit, Prometheus' text format and a check for Nagios. See C(docs/compliance.md).
  - VEX documents are written one per host.
  - Runs on the controller only and connects to no host.
  - A host without evidence is C(unknown) in the report, with a reason code, never left out.
options:
  dest:
    description:
      - The folder on the controller. Each file in it is replaced in one piece.
      - Summaries of the report that is there already become the trends of the new one.
    type: path
    required: true
  hosts:
    description:
      - Names of all hosts of the play. One of O(hosts) and O(source) is required.
    type: list
    elements: str
  source:
    description:
      - The C(report.json) of an earlier run, to write all formats of it again. Its evidence is
        judged anew by the time that is now.
    type: path
  src:
    description:
      - Folders of patches on the controller. Their CVEs stand in the report though no host could
        tell of them.
    type: list
    elements: path
    default: []
  advisories:
    description:
      - A file that fits C(schemas/advisories.schema.json), for the same end.
    type: path
  formats:
    description:
      - What is written besides C(report.json).
    type: list
    elements: str
    choices: [csv, html, openvex, csaf, cyclonedx, oscal, junit, prometheus, nagios]
    default: [csv, html, openvex, csaf, cyclonedx, oscal, junit, prometheus, nagios]
  limit:
    description:
      - Seconds for which evidence counts. What is older is C(unknown), and stale.
    type: int
    default: 86400
  sign_key:
    description:
      - A key to sign the report with, by C(ssh-keygen -Y sign -n wfpatch-report). The public half
        of a key that an agent or a hardware token holds will do.
    type: path
  publisher:
    description:
      - Who publishes the documents, for VEX and OSCAL.
    type: str
    default: Operator of the fleet
  namespace:
    description:
      - An address that is the publisher's own.
    type: str
    default: https://wfpatch.invalid/
  opt_out:
    description:
      - Which processes are opted out of patching, as the rollout policy has it, by C(services),
        C(processes), C(users) and C(paths). It is said beside their states and changes none.
    type: dict
    default: {}
  opted_out_hosts:
    description:
      - Names of hosts that are opted out as a whole.
    type: list
    elements: str
    default: []
  control:
    description:
      - The id of the objective that OSCAL assessment results are about.
    type: str
    default: si-2_obj
  plan:
    description:
      - The address of the OSCAL assessment plan that the results belong to.
    type: str
    default: "#"
  outcome:
    description:
      - Name of the variable of each host in which the task's result was registered.
    type: str
    default: compliance_evidence
  failure:
    description:
      - Name of the variable of each host that holds the result of the task that failed.
    type: str
    default: compliance_failure
  table:
    description:
      - Whether a summary is shown.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    details: The report is written in check mode too. It is a product of the run, not a part of a
      host's state.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A report holds the time at which it was made. Writing it is never a change.
  action:
    details: There is only the action half.
requirements:
  - The Python package jsonschema, 4.18 or newer, on the controller
  - ssh-keygen of OpenSSH 8.2 or newer on the controller, for O(sign_key)
extends_documentation_fragment:
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
seealso:
  - module: wfpatch.fleet.compliance_evidence
"""

EXAMPLES = r"""
- name: Gather the evidence
  wfpatch.fleet.compliance_evidence:
    src: [bundles/example-cve-2026-0001]
  become: true
  register: compliance_evidence

- name: Write the report
  wfpatch.fleet.compliance_report:
    dest: compliance
    hosts: "{{ ansible_play_hosts_all }}"
    sign_key: keys/auditor
  run_once: true

- name: Write it again from what was gathered then
  wfpatch.fleet.compliance_report:
    dest: compliance
    source: compliance/report.json
  run_once: true
"""

RETURN = r"""
dest:
  description: The folder that was written to.
  returned: success
  type: str
  sample: /home/admin/compliance
files:
  description: The files that were written, below that folder.
  returned: success
  type: list
  elements: str
  sample: [SHA256SUMS, report.csv, report.html, report.json]
state:
  description: The worst state of all hosts.
  returned: success
  type: str
  sample: patched
states:
  description: Number of hosts per state.
  returned: success
  type: dict
  sample:
    patched: 3
flagged:
  description: Number of running images that are outdated and not patched in memory.
  returned: success
  type: int
  sample: 0
"""
