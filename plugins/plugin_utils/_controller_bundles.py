# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The patches that a task names by their folders on the controller."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._bundle_directory import (
    MANIFEST_FILES,
    SIGNATURE_FILE,
    BundleDirectory,
    read_bundle_directory,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._requirements import apply_order
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_patches import select_patches
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


def folders_of_patches(folder: str) -> list[str]:
    """The folder itself, or the patches' folders in it when it is none but has some."""

    def is_one(path: str) -> bool:
        return any(os.path.exists(os.path.join(path, name)) for name in MANIFEST_FILES)

    if is_one(folder) or not os.path.isdir(folder):
        return [folder]
    inner = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    return [path for path in inner if is_one(path)] or [folder]


def read_patches(
    action: t.Any, source: t.Any, select: dict[str, t.Any] | None = None
) -> list[BundleDirectory]:
    """Read and validate the folders, in the order in which they are applied. A folder that holds
    patches' folders stands for these; ``select`` is as in a rollout policy.

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
        for each in folders_of_patches(locate(action, folder)):
            patch, found = read_bundle_directory(each)
            violations.extend(found)
            if patch is not None:
                patches.append(patch)
    if select is not None and not violations:
        patches = select_patches(patches, select)
    order, found = apply_order(patches)
    violations.extend(found)
    if violations:
        raise PatchesInvalid(violations)
    return order


def unsigned_violations(folders: list[str]) -> list[Violation]:
    """What is wrong with patches that are to be signed: everything but a signature.

    Raises AnsibleError for an empty list.
    """
    if not folders:
        raise AnsibleError("no patch is named: an empty list is an error, never a success")
    violations: list[Violation] = []
    for folder in folders:
        _patch, found = read_bundle_directory(folder)
        signature = os.path.join(folder, SIGNATURE_FILE)
        violations.extend(violation for violation in found if violation.file != signature)
    return violations
