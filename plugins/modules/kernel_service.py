#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build, sign and load the kernel service on a host, or remove it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_service
short_description: Build, sign and load the kernel service, or remove it
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - The kernel service is a kernel module by which the applier patches processes without stopping
    any of their threads. It is built on each host by DKMS, for the host's own kernel.
  - The action half sends the source only to hosts that do not have this very source.
  - Headers of the kernel, DKMS and a compiler must be there. The role
    P(wfpatch.fleet.kernel_service#role) installs them, and goes on without the kernel service where
    that is not possible.
  - Nothing of what protects a machine's boot is changed. Where Secure Boot or a kernel lockdown
    wants a signature by an enrolled key, the module says so, with the command that asks the
    machine's owner to enrol it.
options:
  state:
    description:
      - V(present) has the module built and installed, loaded at each boot, and its device
        accessible to root only.
      - V(loaded) also has it loaded now, in the version of O(src), and checks that its device
        answers. An older one is replaced when nobody uses it.
      - V(absent) unloads the module and removes all of its versions. It is refused while a
        session is open or an entry is being armed.
    type: str
    choices: [absent, loaded, present]
    default: loaded
  src:
    description:
      - Folder of the source on the controller, C(kmod) of the collection.
      - Required unless O(state=absent).
    type: path
  kernel:
    description:
      - The kernel to build for, with O(state=present) only. The running one when not given.
    type: str
  sign:
    description:
      - By which key the module is signed, at kernel upgrades too.
      - V(none) leaves it to DKMS. DKMS 3 signs all modules of a host by a key that it made, DKMS 2
        by none.
      - V(generate) signs by DKMS's own key, C(/var/lib/dkms/mok.key) or what C(framework.conf)
        names, and makes one if there is none.
      - V(given) signs by O(sign_key).
    type: str
    choices: [none, generate, given]
    default: none
  sign_key:
    description:
      - The private key on the host, or the URI of one on a token (C(pkcs11:)).
      - Required if O(sign=given).
    type: str
  sign_certificate:
    description:
      - The certificate of O(sign_key) on the host, in DER form.
      - Required if O(sign=given).
    type: path
  prerequisites:
    description:
      - V(assume) plans, in check mode, as if headers, compiler and DKMS were there, for a play that
        would have installed them. Without effect outside check mode.
    type: str
    choices: [assume, check]
    default: check
  version:
    description:
      - Version of the source. Set by the action half, not for use in tasks.
    type: str
  digest:
    description:
      - SHA-256 of the source. Set by the action half, not for use in tasks.
    type: str
  staged:
    description:
      - Where the action half has put the source on the host. Not for use in tasks.
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
extends_documentation_fragment:
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
requirements:
  - DKMS 2.8 or newer on the host
  - the headers of the running kernel, the compiler that they name, and make on the host
  - openssl on the host, to sign
notes:
  - DKMS builds the module again for each kernel that is installed later.
seealso:
  - module: wfpatch.fleet.applier
  - module: wfpatch.fleet.live_patch
"""

EXAMPLES = r"""
- name: Build and load the kernel service
  wfpatch.fleet.kernel_service:
    src: kmod
  become: true

- name: Build it, signed by the site's own key
  wfpatch.fleet.kernel_service:
    src: kmod
    state: present
    sign: given
    sign_key: /etc/keys/modules.key
    sign_certificate: /etc/keys/modules.der
  become: true

- name: Remove it
  wfpatch.fleet.kernel_service:
    state: absent
  become: true
"""

RETURN = r"""
version:
  description: The version that is installed for the kernel; null when there is none.
  returned: always
  type: str
  sample: 0.1.0
uapi_version:
  description: The version of its interface.
  returned: always
  type: str
  sample: "1"
kernel:
  description: The kernel's release.
  returned: always
  type: str
  sample: 6.1.0-56-amd64
loaded:
  description: Whether the module is loaded.
  returned: always
  type: bool
  sample: true
loaded_version:
  description: The version that is loaded; null when none is.
  returned: always
  type: str
  sample: 0.1.0
device:
  description: The device; null when it does not answer.
  returned: always
  type: str
  sample: /dev/wfpatch
users:
  description: How many hold the module that is loaded, by an open session for example.
  returned: always
  type: int
  sample: 0
signed:
  description: Whether the module that is installed is signed.
  returned: always
  type: bool
  sample: true
signer:
  description: The signer's name, as the module says it.
  returned: always
  type: str
  sample: DKMS module signing key
sign_key_id:
  description: The serial number of the signer's certificate.
  returned: always
  type: str
  sample: 5A:0F:3D:7E
enrolment:
  description:
    - Whether the certificate is one that the machine's owner trusts, V(enrolled), V(pending) until
      the next boot's console, V(not_enrolled), or V(unknown), as on a machine without UEFI.
  returned: always
  type: str
  sample: unknown
secure_boot:
  description: Whether Secure Boot is V(enabled), V(disabled), or V(unknown).
  returned: always
  type: str
  sample: disabled
lockdown:
  description: The kernel's lockdown, V(none), V(integrity), V(confidentiality), or V(unknown).
  returned: always
  type: str
  sample: none
tainted:
  description: The kernel's taint flags.
  returned: always
  type: str
  sample: OE
taint:
  description: Those of them that the kernel service brought; null when it is not loaded.
  returned: always
  type: str
  sample: OE
missing:
  description: Reason codes of what the host lacks for a build.
  returned: always
  type: list
  elements: str
  sample: []
actions:
  description: What was (or would be) done.
  returned: always
  type: list
  elements: str
  sample:
    - place the source in /usr/src/wfpatch-0.1.0
    - register wfpatch 0.1.0 with DKMS
    - build it for 6.1.0-56-amd64
    - install it
    - load it
reason:
  description: The reason code of a failure.
  returned: failure
  type: str
  sample: kernel_headers_missing
log:
  description: The last lines of the build's log.
  returned: when a build failed
  type: list
  elements: str
  sample:
    - "load.c:10:1: error: unknown type name 'foo'"
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import ApplierFailure
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service import KernelService


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["absent", "loaded", "present"],
                "default": "loaded",
            },
            "src": {"type": "path"},
            "kernel": {"type": "str"},
            "sign": {"type": "str", "choices": ["none", "generate", "given"], "default": "none"},
            "sign_key": {"type": "str", "no_log": False},
            "sign_certificate": {"type": "path"},
            "prerequisites": {"type": "str", "choices": ["assume", "check"], "default": "check"},
            "version": {"type": "str"},
            "digest": {"type": "str"},
            "staged": {"type": "path"},
        },
        required_if=[
            ("state", "present", ["src"]),
            ("state", "loaded", ["src"]),
            ("sign", "given", ["sign_key", "sign_certificate"]),
        ],
        supports_check_mode=True,
    )
    service = KernelService(module)
    try:
        result = service.reach(module.params["state"])
    except ApplierFailure as failure:
        failure.facts = dict(service.result(), **failure.facts)
        failure.fail(module)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
