#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sign bundles on the controller. The action plugin of the same name does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: signature
short_description: Sign patch bundles on the controller
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Signs bundles with C(ssh-keygen -Y sign). Runs on the controller only and connects to no host.
  - A patch whose manifest is not valid, or says something else than its C(bundle.json), is not
    signed.
  - A bundle that the key signed already is left as it is. Another key's signature is replaced,
    as a rotation of keys wants it.
options:
  src:
    description:
      - Folders on the controller, each with C(manifest.yml), C(bundle.json) and C(patch.elf).
    type: list
    elements: path
    required: true
  key:
    description:
      - The private key. For a key that an agent or a piece of hardware holds, its public half, or
        the file that stands for it. C(ssh-keygen) asks for no passphrase here, so that of a key in
        a file belongs into C(ssh-agent).
    type: path
    required: true
  signers:
    description:
      - The list of allowed signers that the hosts have. A key that it does not allow at this time
        signs nothing.
    type: path
  revoked:
    description:
      - The list of revoked keys that the hosts have. A key that is in it signs nothing. It is used
        with O(signers) only.
    type: path
attributes:
  check_mode:
    support: full
    details: Nothing is signed, and so O(signers) judges only what was signed before.
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    details: There is only the action half.
requirements:
  - ssh-keygen of OpenSSH 8.2 or newer on the controller
  - The Python package jsonschema, 4.18 or newer, on the controller
extends_documentation_fragment:
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
seealso:
  - module: wfpatch.fleet.manifest
  - module: wfpatch.fleet.bundle
"""

EXAMPLES = r"""
- name: Sign two patches by a key in hardware
  wfpatch.fleet.signature:
    src:
      - patches/example-cve-2026-0001
      - patches/example-cve-2026-0002
    key: keys/release_sk.pub
    signers: keys/allowed_signers
"""

RETURN = r"""
bundles:
  description: One item per bundle.
  returned: success
  type: list
  elements: dict
  contains:
    src:
      description: Its folder on the controller.
      type: str
      sample: patches/example-cve-2026-0001
    changed:
      description: Whether it was (or would be) signed.
      type: bool
      sample: true
    signer:
      description: Who the signer is by O(signers). Null without it, and in check mode.
      type: str
      sample: release@example.org
fingerprint:
  description: The key's fingerprint.
  returned: success
  type: str
  sample: SHA256:irIjcTZrNUqjPmUjGW6zKpUbBn5JqzMpXcwiWUGaUPk
reason:
  description: The reason code of a failure.
  returned: failure
  type: str
  sample: signer_revoked
violations:
  description: Everything that is wrong with the patches, each with file and line.
  returned: when a patch is not valid
  type: list
  elements: str
  sample:
    - "patches/a/manifest.yml:7: policy: 'fast' is not one of auto, points, global"
"""
