#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decide how a rollout goes on. The action plugin of the same name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout
short_description: Plan a rollout and decide after each wave how it goes on
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Reads the rollout policy, says which host belongs to which wave, and after each wave whether
    the next one may begin and which hosts have to go back.
  - Ansible itself does the rest. The waves are C(serial), see P(wfpatch.fleet.waves#lookup).
  - Runs on the controller only and connects to no host.
options:
  state:
    description:
      - V(plan) validates the policy and makes the waves.
      - V(wave) says whether a wave may begin now.
      - V(record) writes down what is in force on the hosts of a wave before they change.
      - V(verdict) judges a wave.
      - V(end) judges the whole rollout, and forgets what was written down unless hosts have to
        go back. It is asked again after they did.
    type: str
    choices: [plan, wave, record, verdict, end]
    required: true
  policy:
    description:
      - Path of the rollout policy on the controller, or the policy itself. Empty for none.
    type: raw
    default: ""
  hosts:
    description:
      - For V(plan), the host patterns of the play; else the names of the hosts of the wave.
    type: list
    elements: str
    default: []
  plan:
    description:
      - What V(plan) returned. Required for the other states.
    type: dict
  journal:
    description:
      - The file on the controller in which V(record) writes. Required for V(plan).
      - C({name}) in it stands for the policy's name.
    type: path
  expected:
    description:
      - States of a host that are a success. Every state is when this is empty.
    type: list
    elements: str
    default: []
  asked:
    description:
      - For V(verdict), whether the wave's health gates were asked.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    details: In check mode every wave is planned, whatever happens to earlier ones.
  diff_mode:
    support: none
  idempotent:
    support: full
  action:
    details: There is only the action half.
requirements:
  - The Python package jsonschema, 4.18 or newer, on the controller
extends_documentation_fragment:
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
seealso:
  - plugin: wfpatch.fleet.waves
    plugin_type: lookup
  - module: wfpatch.fleet.live_patch
"""

EXAMPLES = r"""
- name: Plan the rollout
  wfpatch.fleet.rollout:
    state: plan
    policy: rollout.yml
    hosts: [all]
    journal: wfpatch-rollout.json
  register: patch_plan
  run_once: true

- name: Judge the wave
  wfpatch.fleet.rollout:
    state: verdict
    plan: "{{ patch_plan }}"
    hosts: "{{ ansible_play_batch }}"
  register: patch_verdict
  run_once: true
"""

RETURN = r"""
waves:
  description: The waves that have hosts, in order. Empty without a policy.
  returned: for state V(plan)
  type: list
  elements: dict
  sample:
    - name: canary
      hosts: [web1]
      soak: 600
      gates: []
hosts:
  description: All hosts of the play, those that are opted out at the end.
  returned: for state V(plan)
  type: list
  elements: str
  sample: [web1, web2]
opted_out:
  description: Hosts that the policy takes no part of.
  returned: for state V(plan)
  type: list
  elements: str
  sample: []
go:
  description: Whether the wave may begin.
  returned: for state V(wave)
  type: bool
  sample: true
wave:
  description: The wave's name. Null without a policy.
  returned: for states V(wave) and V(verdict)
  type: str
  sample: canary
soak:
  description: Seconds to wait before the wave's health gates.
  returned: for state V(wave)
  type: int
  sample: 600
gates:
  description: The wave's health gates.
  returned: for state V(wave)
  type: list
  elements: dict
  sample: []
stop:
  description: Whether no further wave may begin.
  returned: for states V(verdict) and V(end)
  type: bool
  sample: false
final:
  description: Whether nothing of the wave is left to do, neither soaking nor asking its gates.
  returned: for state V(verdict)
  type: bool
  sample: true
unwell:
  description: Hosts of the wave that failed.
  returned: for state V(verdict)
  type: list
  elements: str
  sample: []
revert:
  description: Ids of the patches that have to be reverted, by host.
  returned: for states V(verdict) and V(end)
  type: dict
  sample:
    web1: [example-cve-2026-0001]
why:
  description: Why the rollout stopped.
  returned: for states V(verdict) and V(end)
  type: str
  sample: ""
attention:
  description: Whether a host failed or has to go back.
  returned: for state V(end)
  type: bool
  sample: false
failures:
  description: Failures of hosts to which no wave came although one should have, by host.
  returned: for state V(end)
  type: dict
  sample: {}
"""
