#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Validate patches on the controller. The action plugin of the same name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: manifest
short_description: Validate the manifests of patches on the controller
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Validates patches before any host is touched. Runs on the controller only and connects to no
    host.
  - Each manifest must fit its JSON Schema, say exactly the same as the canonical C(bundle.json),
    and name size and digest of C(patch.elf).
  - All violations are listed, each with file and line.
  - Signatures are verified on the hosts, where the list of allowed signers is.
options:
  src:
    description:
      - Folders on the controller, each with C(manifest.yml), C(bundle.json), C(bundle.json.sig)
        and C(patch.elf).
      - A folder that holds such folders stands for these.
    type: list
    elements: path
    required: true
  select:
    description:
      - Only the patches that this section C(patches) of a rollout policy selects.
    type: dict
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: Nothing is changed.
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
  - module: wfpatch.fleet.bundle
"""

EXAMPLES = r"""
- name: Validate two patches
  wfpatch.fleet.manifest:
    src:
      - patches/example-cve-2026-0001
      - patches/example-cve-2026-0002
  register: manifests
"""

RETURN = r"""
patches:
  description: The patches, each after those that it requires.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The patch's id.
      type: str
      sample: example-cve-2026-0001
    summary:
      description: What is fixed.
      type: str
      sample: Length check in the parser
    cves:
      description: The CVEs that the patch fixes.
      type: list
      elements: str
      sample:
        - CVE-2026-0001
    src:
      description: Its folder on the controller.
      type: str
      sample: patches/example-cve-2026-0001
    digest:
      description: SHA-256 of the signed bytes.
      type: str
      sample: 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef
reason:
  description: The reason code of a failure.
  returned: failure
  type: str
  sample: manifest_invalid
violations:
  description: Everything that is wrong, each with file and line.
  returned: failure
  type: list
  elements: str
  sample:
    - "patches/a/manifest.yml:7: policy: 'fast' is not one of auto, points, global"
"""
