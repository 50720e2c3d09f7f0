# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The advisories file of a compliance report, on the controller."""

from __future__ import annotations

import json
import typing as t

from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._manifest_yaml import read_manifest_yaml
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import dotted, problems

MAX_SIZE = 8 << 20


class AdvisoriesInvalid(AnsibleError):
    """The file is not valid; ``violations`` are all the reasons why."""

    def __init__(self, path: str, violations: list[str]) -> None:
        self.violations = violations
        super().__init__(
            f"{path} does not fit schemas/advisories.schema.json:\n" + "\n".join(violations)
        )

    def result(self) -> dict[str, t.Any]:
        """The task's result."""
        return {
            "failed": True,
            "msg": str(self),
            "reason": "manifest_invalid",
            "violations": self.violations,
        }


def read_advisories(path: str) -> str:
    """The contents of the file as canonical JSON, for the applier. YAML is read as strictly as a
    manifest's. Raises AdvisoriesInvalid, or AnsibleError when there is no such file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_SIZE + 1)
    except (OSError, UnicodeDecodeError) as exc:
        raise AnsibleError(f"the advisories {path} cannot be read: {exc}") from exc
    if len(text) > MAX_SIZE:
        raise AnsibleError(f"the advisories {path} have more than {MAX_SIZE} characters")
    document = read_manifest_yaml(text)
    found = [
        f"{path}:{problem.line}: {dotted(problem.path)}: {problem.message}"
        for problem in document.problems
    ] or problems("advisories", document.data)
    if found:
        raise AdvisoriesInvalid(path, found)
    return json.dumps(document.data, sort_keys=True, separators=(",", ":"))
