# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sign bundles on the controller."""

from __future__ import annotations

import os
import tempfile
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _signing as signing
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._bundle_directory import (
    BUNDLE_FILE,
    SIGNATURE_FILE,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._controller_bundles import (
    PatchesInvalid,
    locate,
    unsigned_violations,
)


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    _requires_connection = False
    _supports_check_mode = True

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        """Run the task."""
        result = super().run(tmp, task_vars)
        _validation, args = self.validate_argument_spec(
            {
                "src": {"type": "list", "elements": "path", "required": True},
                "key": {"type": "path", "required": True, "no_log": False},
                "signers": {"type": "path"},
                "revoked": {"type": "path"},
            }
        )
        try:
            return {**result, **self._sign(args)}
        except PatchesInvalid as exc:
            return {**result, **exc.result()}
        except signing.SigningFailed as exc:
            return {**result, "failed": True, "msg": str(exc), "reason": exc.reason}

    def _sign(self, args: dict[str, t.Any]) -> dict[str, t.Any]:
        folders = [locate(self, folder) for folder in args["src"]]
        violations = unsigned_violations(folders)
        if violations:
            raise PatchesInvalid(violations)
        blob = signing.public_blob(args["key"])
        signers, revoked = args["signers"] or "", args["revoked"] or ""
        signed = []
        for folder in folders:
            data, path = os.path.join(folder, BUNDLE_FILE), os.path.join(folder, SIGNATURE_FILE)
            changed = not signing.is_signed(data, path, blob)
            principal = None
            if changed and not self._task.check_mode:
                principal = self._make(data, path, args["key"], signers, revoked)
            elif not changed and signers:
                with open(data, "rb") as content, open(path, "rb") as signature:
                    principal = signing.check_allowed(
                        content.read(), signature.read(), signers, revoked
                    )
            signed.append({"src": folder, "changed": changed, "signer": principal})
        key = signing.fingerprint(blob)
        result: dict[str, t.Any] = {
            "changed": any(each["changed"] for each in signed),
            "reason": None,
            "fingerprint": key,
            "bundles": signed,
        }
        if self._task.diff:
            anew = [each["src"] for each in signed if each["changed"]]
            after = "".join(f"{src}: signed by {key}\n" for src in anew)
            result["diff"] = {"before": "", "after": after}
        return result

    @staticmethod
    def _make(data: str, path: str, key: str, signers: str, revoked: str) -> str | None:
        """Sign, let the list of signers judge it, and only then put it into the folder."""
        signature = signing.sign(data, key)
        principal = None
        if signers:
            with open(data, "rb") as content:
                principal = signing.check_allowed(content.read(), signature, signers, revoked)
        descriptor, scratch = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".signature-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(signature)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
        return principal
