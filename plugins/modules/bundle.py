#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring bundles into a host's store, or remove them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Push signed patch bundles to a host's store
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Brings patches into the store of a host, or removes them from it. No process is touched.
  - The action half validates each patch on the controller. The manifest must fit its schema, say
    the same as C(bundle.json), and name the digest of C(patch.elf).
  - The host verifies signature and digests before a bundle enters the store.
options:
  state:
    description:
      - Whether the bundles are in the store.
      - Removing the bundle of a patch that is in force does not revert it, and it can no longer
        be reverted by its name.
    type: str
    choices: [present, absent]
    default: present
  src:
    description:
      - Folders on the controller, each with C(manifest.yml), C(bundle.json), C(bundle.json.sig)
        and C(patch.elf).
      - Required if O(state=present).
    type: list
    elements: path
  ids:
    description:
      - Ids of the patches to remove.
      - One of O(ids) and O(unneeded) is required if O(state=absent).
    type: list
    elements: str
  unneeded:
    description:
      - Removes all bundles that nobody needs any more, as C(wfpatch gc) does.
      - A bundle is needed while it is wanted, or required by one that is, or in the memory of a
        process, in force or not, and for a day after it was pushed.
    type: bool
  progress:
    description:
      - Whether a line is printed for each bundle that was pushed. V(auto) prints when standard
        output is a terminal or with C(-v).
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
  - module: wfpatch.fleet.manifest
  - module: wfpatch.fleet.live_patch
"""

EXAMPLES = r"""
- name: Push two patches
  wfpatch.fleet.bundle:
    src:
      - patches/example-cve-2026-0001
      - patches/example-cve-2026-0002
  become: true

- name: Remove a superseded patch from the store
  wfpatch.fleet.bundle:
    state: absent
    ids:
      - example-cve-2026-0001
  become: true

- name: Remove what nobody needs any more
  wfpatch.fleet.bundle:
    state: absent
    unneeded: true
  become: true
"""

RETURN = r"""
bundles:
  description: One item per bundle.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The patch's id.
      type: str
      sample: example-cve-2026-0001
    changed:
      description: Whether it was (or would be) pushed or removed.
      type: bool
      sample: true
    digest:
      description: SHA-256 of the signed bytes; null after removal.
      type: str
      sample: 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef
reason:
  description: The reason code of a failure.
  returned: failure
  type: str
  sample: signature_invalid
violations:
  description: Everything that is wrong with the patches on the controller, each with file and
    line.
  returned: when a patch is not valid
  type: list
  elements: str
  sample:
    - "patches/a/manifest.yml:7: policy: 'fast' is not one of auto, points, global"
"""

import base64
import hashlib
import os
import re
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import (
    OK,
    ApplierFailure,
    argument_spec,
    converse,
    payloads_spec,
)
from ansible_collections.wfpatch.fleet.plugins.module_utils._file_failure import file_failure

#: File names in the store and the field of the payload that holds their contents.
FILES = (("bundle.json", "bundle"), ("bundle.json.sig", "signature"), ("patch.elf", "patch"))
ID = re.compile(r"[a-z0-9][A-Za-z0-9._-]{0,127}\Z")


def read_files(folder):
    """Contents of a bundle's files by name; a file that is not there is None."""
    contents = {}
    for name, _field in FILES:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                contents[name] = file.read()
        except FileNotFoundError:
            contents[name] = None
    return contents


def digest(contents):
    """SHA-256 of the signed bytes; None when there are none."""
    signed = contents["bundle.json"]
    return None if signed is None else hashlib.sha256(signed).hexdigest()


class BundleStore:
    """The folder bundles/ of the store."""

    def __init__(self, module):
        self.module = module
        self.folder = os.path.join(module.params["store"], "bundles")

    def path(self, patch_id):
        """Where a bundle lies. Raises ApplierFailure for what is not an id: it is a folder's
        name here.
        """
        if not ID.match(patch_id):
            raise ApplierFailure("usage", f"{patch_id!r} is not a patch id")
        return os.path.join(self.folder, patch_id)

    def _verify(self, staged):
        """Let the applier verify signature and digests. Raises ApplierFailure."""
        try:
            exit_code, value = converse(self.module, "bundle", "verify", staged)
        except ApplierFailure as failure:
            if failure.reason == "applier_missing" and self.module.check_mode:
                patch_id = os.path.basename(staged)
                self.module.warn(
                    f"the signature of {patch_id} is verified once the applier is installed"
                )
                return
            raise
        if exit_code != OK:
            raise ApplierFailure(
                value.get("reason") or "applier_failed",
                value.get("message") or "the applier refused the bundle",
                exit_code=exit_code,
                **({"result": value} if "state" in value else {}),
            )

    def push(self, payload):
        """Verify a bundle and put it into the store in one piece. Returns (changed, digest
        before, digest after).
        """
        target = self.path(payload["id"])
        wanted = {name: base64.b64decode(payload[field]) for name, field in FILES}
        present = read_files(target)
        if wanted == present:
            return False, digest(present), digest(wanted)
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as scratch:
            staged = os.path.join(scratch, payload["id"])
            os.mkdir(staged, 0o755)
            for name, data in wanted.items():
                with open(os.path.join(staged, name), "wb") as file:
                    file.write(data)
            self._verify(staged)
            if not self.module.check_mode:
                self._replace(staged, target)
        return True, digest(present), digest(wanted)

    def _replace(self, staged, target):
        os.makedirs(self.folder, 0o755, exist_ok=True)
        # The store's names never begin with a dot, so nobody takes a half-copied folder for a
        # bundle.
        new = tempfile.mkdtemp(prefix=".new-", dir=self.folder)
        try:
            for name, _field in FILES:
                shutil.copyfile(os.path.join(staged, name), os.path.join(new, name))
                os.chmod(os.path.join(new, name), 0o644)
            os.chmod(new, 0o755)
        except OSError:
            shutil.rmtree(new)
            raise
        old = None
        if os.path.lexists(target):
            old = tempfile.mkdtemp(prefix=".old-", dir=self.folder)
            os.rename(target, os.path.join(old, "bundle"))
        os.rename(new, target)
        if old is not None:
            shutil.rmtree(old)

    def remove(self, patch_id):
        """Remove a bundle. Returns (changed, digest before, None)."""
        target = self.path(patch_id)
        if not os.path.lexists(target):
            return False, None, None
        before = digest(read_files(target))
        if not self.module.check_mode:
            shutil.rmtree(target)
        return True, before, None


def unneeded(module):
    """Have the applier remove what nobody needs; a list as of BundleStore.remove."""
    options = ["--dry-run"] if module.check_mode else []
    exit_code, value = converse(module, "--wait", "30", "gc", *options)
    if exit_code != OK or "removed" not in value:
        raise ApplierFailure(
            value.get("reason") or "applier_failed",
            value.get("message") or f"the applier did not look for garbage: {value}",
            exit_code=exit_code,
        )
    return [(each["id"], (True, each["digest"], None)) for each in value["removed"]]


def run(module):
    """Do what the options say; raises ApplierFailure."""
    store = BundleStore(module)
    if module.params["state"] == "absent":
        ids = module.params["ids"] or []
        steps = [(patch_id, store.remove(patch_id)) for patch_id in ids]
        if module.params["unneeded"]:
            steps += unneeded(module)
    else:
        payloads = module.params["payloads"]
        if not payloads:
            raise ApplierFailure(
                "usage",
                "the action half of wfpatch.fleet.bundle did not run: use the full name "
                "of the module",
            )
        steps = [(payload["id"], store.push(payload)) for payload in payloads]
    result = {
        "changed": any(changed for _id, (changed, _before, _after) in steps),
        "bundles": [
            {"id": patch_id, "changed": changed, "digest": after}
            for patch_id, (changed, _before, after) in steps
        ],
    }
    if module._diff:
        before = "".join(
            f"{patch_id} {before}\n" for patch_id, (_changed, before, _after) in steps if before
        )
        after = "".join(
            f"{patch_id} {after}\n" for patch_id, (_changed, _before, after) in steps if after
        )
        result["diff"] = {
            "before": before,
            "after": after,
            "before_header": store.folder,
            "after_header": store.folder,
        }
    return result


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=dict(
            argument_spec(),
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
            src={"type": "list", "elements": "path"},
            ids={"type": "list", "elements": "str"},
            unneeded={"type": "bool"},
            progress={"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
            payloads=payloads_spec(),
        ),
        required_if=[("state", "present", ["src"]), ("state", "absent", ["ids", "unneeded"], True)],
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except ApplierFailure as failure:
        failure.fail(module)
    except OSError as exc:
        file_failure(exc).fail(module)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
