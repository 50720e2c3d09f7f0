# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The patches that a task names by their folders on the controller."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._bundle_directory import (
    BundleDirectory,
    read_bundle_directory,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._requirements import apply_order
from ansible_collections.wfpatch.fleet.plugins.plugin_utils.validation import Violation


class PatchesInvalid(AnsibleError):
    """The patches are not valid; ``violations`` are all the reasons why."""

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = [str(violation) for violation in violations]
        count = len(violations)
        super().__init__(
            "\n".join(
                [f"{count} violation{'s' if count != 1 else ''} in the patches:", *self.violations]
            )
        )

    def result(self) -> dict[str, t.Any]:
        """The task's result."""
        return {
            "failed": True,
            "msg": str(self),
            "reason": "manifest_invalid",
            "violations": self.violations,
        }


def locate(action: t.Any, path: str) -> str:
    """A path on the controller: absolute, below the working directory, or where Ansible looks
    for a role's or play's files.
    """
    expanded = os.path.expanduser(path)
    if os.path.isabs(expanded) or os.path.exists(expanded):
        return expanded
    return action._find_needle("files", expanded)


def read_patches(action: t.Any, source: t.Any) -> list[BundleDirectory]:
    """Read and validate the folders, in the order in which they are applied.

    Raises PatchesInvalid with everything that is wrong in any of them, AnsibleError for an empty
    list or a missing folder.
    """
    folders = [source] if isinstance(source, str) else source
    if (
        not isinstance(folders, list)
        or not folders
        or not all(isinstance(folder, str) and folder for folder in folders)
    ):
        raise AnsibleError(
            "no patch is named: src has to be a list of folders, and an empty one is an "
            "error, never a success"
        )
    patches: list[BundleDirectory] = []
    violations: list[Violation] = []
    for folder in folders:
        patch, found = read_bundle_directory(locate(action, folder))
        violations.extend(found)
        if patch is not None:
            patches.append(patch)
    order, found = apply_order(patches)
    violations.extend(found)
    if violations:
        raise PatchesInvalid(violations)
    return order
