# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Options of the modules that call the applier."""

from __future__ import annotations


class ModuleDocFragment:
    """Where the applier and its data are on the host."""

    DOCUMENTATION = r"""
options:
  program:
    description:
      - The applier on the host.
    type: path
    default: /usr/local/sbin/wfpatch
  store:
    description:
      - Where the host keeps its bundles and the wanted state.
    type: path
    default: /var/lib/wfpatch
  allowed_signers:
    description:
      - The file on the host that lists who may sign patches, in the format of C(ALLOWED SIGNERS)
        in ssh-keygen(1).
    type: path
    default: /etc/wfpatch/allowed_signers
requirements:
  - Python 3.9 or newer on the host
  - ssh-keygen of OpenSSH 8.2 or newer on the host
"""

    PAYLOADS = r"""
options:
  payloads:
    description:
      - Contents of the bundles in O(src). Set by the action half, not for use in tasks.
    type: list
    elements: dict
    suboptions:
      id:
        description: The patch's id.
        type: str
        required: true
      bundle:
        description: The bytes of C(bundle.json) in base64.
        type: str
        required: true
      signature:
        description: The bytes of C(bundle.json.sig) in base64.
        type: str
        required: true
      patch:
        description: The bytes of C(patch.elf) in base64.
        type: str
        required: true
"""
