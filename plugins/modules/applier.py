#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Install or remove the applier on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: applier
short_description: Install or remove the live-patch applier
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Installs the applier, one file that needs nothing but Python 3.9, and the list of those who
    may sign patches, or removes both and the store.
  - The action half sends the applier only to hosts that do not have this very file.
  - Removing the applier changes no process. What was patched stays patched, and what was
    reverted keeps its region, until the process ends.
options:
  state:
    description:
      - Whether the applier is there.
      - V(absent) also removes the store with all bundles and the list of allowed signers.
    type: str
    choices: [present, absent]
    default: present
  src:
    description:
      - The applier on the controller, as C(make applier) builds it.
      - Required if O(state=present).
    type: path
  signers:
    description:
      - Contents of the file O(allowed_signers), one signer a line. Everything else in the file
        is removed.
      - The file is left as it is when this is not given.
    type: str
  revoked_src:
    description:
      - File on the controller with the keys that are revoked, a KRL or public keys one a line, see
        C(ssh-keygen -k). It becomes C(revoked_keys) beside O(allowed_signers).
      - The file on the host is left as it is when this is not given. An empty one revokes nothing.
    type: path
  revoked:
    description:
      - The contents of O(revoked_src) in base64. Set by the action half, not for use in tasks.
    type: str
  watch:
    description:
      - Whether the unit C(wfpatch-watch.service) is installed, enabled and running. It brings what
        the store wants into processes that start later.
      - It is left as it is when this is not given.
    type: bool
  watch_arguments:
    description:
      - Further words for C(wfpatch watch), as C(--backend kernel).
    type: list
    elements: str
    default: []
  unit_folder:
    description:
      - Where systemd reads unit files on the host.
    type: path
    default: /etc/systemd/system
  facts_file:
    description:
      - Where the host's facts get RV(ignore:ansible_local.wfpatch) from,
        C(/etc/ansible/facts.d/wfpatch.fact).
      - Nothing is installed when this is not given.
    type: path
  library:
    description:
      - The folder on the host in which the applier lies.
    type: path
    default: /usr/local/lib/wfpatch
  interpreter:
    description:
      - The Python on the host that runs the applier.
    type: path
    default: /usr/bin/python3
  digest:
    description:
      - SHA-256 of O(src). Set by the action half, not for use in tasks.
    type: str
  staged:
    description:
      - Where the action half has put O(src) on the host. Not for use in tasks.
    type: path
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
extends_documentation_fragment:
  - wfpatch.fleet.applier_command
  - wfpatch.fleet.attributes
  - wfpatch.fleet.attributes.controller
  - wfpatch.fleet.attributes.fleet
seealso:
  - module: wfpatch.fleet.bundle
  - module: wfpatch.fleet.live_patch
"""

EXAMPLES = r"""
- name: Install the applier and say who may sign patches
  wfpatch.fleet.applier:
    src: dist/wfpatch
    signers: "{{ lookup('ansible.builtin.file', 'allowed_signers') }}\n"
  become: true

- name: Remove the applier
  wfpatch.fleet.applier:
    state: absent
  become: true
"""

RETURN = r"""
version:
  description: The version of the applier that is installed.
  returned: when O(state=present), unless check mode found it missing
  type: str
  sample: 0.1.0
paths:
  description: What was (or would be) written or removed.
  returned: success
  type: list
  elements: str
  sample:
    - /usr/local/lib/wfpatch/wfpatch
    - /usr/local/sbin/wfpatch
services:
  description: What was (or would be) changed in systemd.
  returned: success
  type: list
  elements: str
  sample:
    - "wfpatch-watch.service: enabled"
    - "wfpatch-watch.service: started"
reason:
  description: The reason code of a failure.
  returned: failure
  type: str
  sample: no_permission
"""

import base64
import hashlib
import os
import re
import shlex
import shutil
import tempfile
import zipfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import (
    OK,
    ApplierFailure,
    argument_spec,
    converse,
)
from ansible_collections.wfpatch.fleet.plugins.module_utils._file_failure import file_failure
from ansible_collections.wfpatch.fleet.plugins.module_utils._watch_unit import (
    DEFAULT_FOLDER,
    WatchUnit,
    unit_text,
)

#: Facts are gathered for many reasons: one that cannot be had is an empty one, soon.
FACTS = """#!/bin/sh
# Installed by wfpatch.fleet.applier.
timeout 20 %s --store %s --allowed-signers %s --json facts 2>/dev/null || echo '{}'
"""
WRAPPER = """#!/bin/sh
# Installed by wfpatch.fleet.applier.
exec %s -I -B %s "$@"
"""
VERSION_FILE = "wfpatch/__init__.py"
VERSION = re.compile(r'(?m)^__version__ = "([^"]+)"$')
#: What the applier itself writes into the store; nothing else there is removed.
STORE_CONTENT = ("bundles", "wanted.json", "opt-outs.json", ".lock", ".watch")


def read(path):
    """The file's bytes; None when there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


class Installation:
    """The files of the applier on this host; ``paths`` lists what was changed."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.program = self.params["program"]
        self.zipapp = os.path.join(self.params["library"], "wfpatch")
        self.unit = WatchUnit(module, self.params["unit_folder"])
        self.paths = []

    @property
    def revoked(self):
        """Where the applier looks for revoked keys."""
        return os.path.join(os.path.dirname(self.params["allowed_signers"]), "revoked_keys")

    def differs(self):
        """Whether the applier has to be sent."""
        data = read(self.zipapp)
        return data is None or hashlib.sha256(data).hexdigest() != self.params["digest"]

    def _changed(self, path):
        self.paths.append(path)
        return not self.module.check_mode

    def _folder(self, path, mode):
        if not os.path.isdir(path) and self._changed(path):
            os.makedirs(path, mode)

    def _file(self, path, data, mode):
        if read(path) == data and os.stat(path).st_mode & 0o7777 == mode:
            return
        if self._changed(path):
            descriptor, scratch = tempfile.mkstemp(dir=self.module.tmpdir)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(scratch, mode)
            self.module.atomic_move(scratch, path, keep_dest_attrs=False)
            os.chmod(path, mode)

    def _check_interpreter(self):
        interpreter = self.params["interpreter"]
        code, stdout, stderr = self.module.run_command(
            [interpreter, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            handle_exceptions=False,
        )
        version = stdout.strip()
        if code != 0 or tuple(int(part) for part in version.split(".")) < (3, 9):
            found = version or stderr.strip()[-200:]
            raise ApplierFailure(
                "python_too_old",
                f"the applier needs Python 3.9 or newer, and {interpreter} is {found}",
            )

    def _require_interpreter(self):
        try:
            self._check_interpreter()
        except OSError as exc:
            raise ApplierFailure(
                "python_missing",
                "{} cannot be run: {}".format(self.params["interpreter"], exc.strerror),
            ) from exc

    def install(self):
        """Bring every file up to date; the applier itself was sent to ``staged`` when it
        differs.
        """
        interpreter, zipapp = shlex.quote(self.params["interpreter"]), shlex.quote(self.zipapp)
        wrapper = (WRAPPER % (interpreter, zipapp)).encode("utf-8")
        if self.differs() or read(self.program) != wrapper:
            # What is installed as it should be was started when it was.
            self._require_interpreter()
        self._folder(self.params["library"], 0o755)
        self._folder(os.path.dirname(self.program), 0o755)
        self._folder(self.params["store"], 0o755)
        if self.differs():
            staged = self.params["staged"]
            if staged is None:
                self._changed(self.zipapp)
            else:
                self._file(self.zipapp, read(staged), 0o755)
        self._file(self.program, wrapper, 0o755)
        if self.params["signers"] is not None:
            self._folder(os.path.dirname(self.params["allowed_signers"]), 0o755)
            self._file(
                self.params["allowed_signers"], self.params["signers"].encode("utf-8"), 0o644
            )
        if self.params["revoked"] is not None:
            self._folder(os.path.dirname(self.revoked), 0o755)
            self._file(self.revoked, base64.b64decode(self.params["revoked"]), 0o644)
        if self.params["facts_file"] is not None:
            self._folder(os.path.dirname(self.params["facts_file"]), 0o755)
            words = (self.program, self.params["store"], self.params["allowed_signers"])
            facts = FACTS % tuple(shlex.quote(word) for word in words)
            self._file(self.params["facts_file"], facts.encode("utf-8"), 0o755)
        if self.params["watch"] is not None:
            self._watch(self.zipapp in self.paths or self.program in self.paths)

    def _watch(self, anew):
        if not self.params["watch"]:
            self._unwatch()
            return
        self.unit.require_systemd()
        words = [self.program, "--store", self.params["store"]]
        words += ["--allowed-signers", self.params["allowed_signers"], "watch"]
        text = unit_text(words + self.params["watch_arguments"])
        self._folder(os.path.dirname(self.unit.path), 0o755)
        self._file(self.unit.path, text.encode("utf-8"), 0o644)
        self.unit.present(self.unit.path in self.paths, anew)

    def _unwatch(self):
        self.unit.absent()
        if os.path.lexists(self.unit.path):
            self._remove(self.unit.path)
            self.unit.removed()

    def version(self):
        """The installed applier's version: what it says of itself after a change, else what its
        file says, which costs no start.
        """
        if not self.paths:
            try:
                with zipfile.ZipFile(self.zipapp) as archive:
                    text = archive.read(VERSION_FILE).decode("utf-8")
            except (OSError, KeyError, ValueError, zipfile.BadZipFile):
                text = ""
            found = VERSION.search(text)
            if found:
                return found.group(1)
        exit_code, value = converse(self.module, "version")
        if exit_code != OK or "version" not in value:
            raise ApplierFailure("applier_failed", f"the applier does not start: {value}")
        return value["version"]

    def _remove(self, path):
        if not os.path.lexists(path):
            return
        if self._changed(path):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def _remove_empty(self, path):
        if os.path.isdir(path) and not self.module.check_mode and not os.listdir(path):
            os.rmdir(path)

    def remove(self):
        """Remove every file of the applier, and the folders that are empty then."""
        self._unwatch()
        if self.params["facts_file"] is not None:
            self._remove(self.params["facts_file"])
        self._remove(self.revoked)
        self._remove(self.program)
        self._remove(self.zipapp)
        self._remove(self.params["allowed_signers"])
        for name in STORE_CONTENT:
            self._remove(os.path.join(self.params["store"], name))
        for folder in (
            self.params["library"],
            self.params["store"],
            os.path.dirname(self.params["allowed_signers"]),
        ):
            self._remove_empty(folder)

    def difference(self):
        """Names of files as Ansible shows them with --diff."""
        text = "".join(f"{line}\n" for line in [*self.paths, *self.unit.services])
        if self.params["state"] == "absent":
            return {"before": text, "after": ""}
        return {"before": "", "after": text}


def run(module):
    """Do what the options say; raises ApplierFailure."""
    installation = Installation(module)
    if os.geteuid() != 0:
        raise ApplierFailure("no_permission", "the applier is installed by root: use become")
    if module.params["state"] == "absent":
        installation.remove()
        result = {}
    else:
        if module.params["digest"] is None:
            raise ApplierFailure(
                "usage",
                "the action half of wfpatch.fleet.applier did not run: use the full name "
                "of the module",
            )
        if installation.differs() and module.params["staged"] is None and not module.check_mode:
            # The action half sends the file and calls again.
            return {"changed": False, "paths": [], "_wanted": True}
        installation.install()
        result = {}
        if not (module.check_mode and installation.paths):
            result["version"] = installation.version()
    services = installation.unit.services
    result.update(
        changed=bool(installation.paths or services), paths=installation.paths, services=services
    )
    if module._diff:
        result["diff"] = installation.difference()
    return result


def main():
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=dict(
            argument_spec(),
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
            src={"type": "path"},
            signers={"type": "str"},
            revoked_src={"type": "path"},
            revoked={"type": "str"},
            watch={"type": "bool"},
            watch_arguments={"type": "list", "elements": "str", "default": []},
            unit_folder={"type": "path", "default": DEFAULT_FOLDER},
            facts_file={"type": "path"},
            library={"type": "path", "default": "/usr/local/lib/wfpatch"},
            interpreter={"type": "path", "default": "/usr/bin/python3"},
            digest={"type": "str"},
            staged={"type": "path"},
        ),
        required_if=[("state", "present", ["src"])],
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
