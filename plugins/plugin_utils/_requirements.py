# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The order in which patches that are asked for together are applied, and what forbids it."""

from __future__ import annotations

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._bundle_directory import BundleDirectory
from ansible_collections.wfpatch.fleet.plugins.plugin_utils.validation import Violation


def apply_order(patches: list[BundleDirectory]) -> tuple[list[BundleDirectory], list[Violation]]:
    """Each patch after those that it requires, else in the order given; revert goes backwards.

    A required patch that is not among them may be in force on the host already: that is for the
    applier to say.
    """
    violations: list[Violation] = []
    by_id: dict[str, BundleDirectory] = {}
    for patch in patches:
        other = by_id.setdefault(patch.id, patch)
        if other is not patch and other.digest != patch.digest:
            violations.append(
                Violation(
                    patch.path,
                    0,
                    "id",
                    f"{patch.id} is also what {other.path} holds, with other contents",
                )
            )
    for patch in by_id.values():
        violations.extend(
            Violation(
                patch.path,
                0,
                "conflicts",
                f"{patch.id} conflicts with {other}, which is asked for too",
            )
            for other in patch.manifest["conflicts"]
            if other in by_id
        )
    order: list[BundleDirectory] = []
    done: set[str] = set()
    waiting = list(by_id.values())
    while waiting:
        ready = next(
            (
                patch
                for patch in waiting
                if all(each in done or each not in by_id for each in patch.manifest["requires"])
            ),
            None,
        )
        if ready is None:
            names = ", ".join(sorted(patch.id for patch in waiting))
            violations.append(
                Violation(
                    waiting[0].path,
                    0,
                    "requires",
                    f"these patches require each other in a circle: {names}",
                )
            )
            break
        waiting.remove(ready)
        done.add(ready.id)
        order.append(ready)
    return order, violations
