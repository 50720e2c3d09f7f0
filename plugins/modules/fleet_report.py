#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write the fleet's report on the controller. The action plugin of the same name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_report
short_description: Write and show what is known of each host
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Collects what M(wfpatch.fleet.live_patch) and M(wfpatch.fleet.live_patch_info) returned for
    each host of the play, writes it as one JSON file and shows it as a table.
  - Runs on the controller only and connects to no host.
  - A host without a result is C(unknown) in the report, with a reason code, never left out.
options:
  dest:
    description:
      - The file on the controller to write. It is replaced in one piece.
    type: path
    required: true
  action:
    description:
      - What the run is for.
    type: str
    choices: [patch, revert, status, uninstall]
    required: true
  hosts:
    description:
      - Names of all hosts of the play.
    type: list
    elements: str
    required: true
  outcome:
    description:
      - Name of the variable of each host in which the task's result was registered.
    type: str
    default: patch_outcome
  failure:
    description:
      - Name of the variable of each host that holds the result of the task that failed.
    type: str
    default: report_failure
  table:
    description:
      - Whether the table is shown.
    type: bool
    default: true
  rollout:
    description:
      - What M(wfpatch.fleet.rollout) returned for O(wfpatch.fleet.rollout#module:state=plan).
    type: dict
    default: {}
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
extends_documentation_fragment:
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
seealso:
  - module: wfpatch.fleet.live_patch
  - module: wfpatch.fleet.live_patch_info
"""

EXAMPLES = r"""
- name: Read what is in force
  wfpatch.fleet.live_patch_info:
  become: true
  register: patch_outcome

- name: Write the report
  wfpatch.fleet.fleet_report:
    dest: wfpatch-report.json
    action: status
    hosts: "{{ ansible_play_hosts_all }}"
  run_once: true
"""

RETURN = r"""
dest:
  description: The file that was written.
  returned: success
  type: str
  sample: /home/admin/wfpatch-report.json
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
"""
