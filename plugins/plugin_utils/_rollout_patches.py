# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which patches a rollout policy selects."""

from __future__ import annotations

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._bundle_directory import BundleDirectory
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_policy import (
    PolicyInvalid,
    Values,
)

SEVERITIES = ("low", "medium", "high", "critical")


def _wanted(patch: BundleDirectory, wanted: Values) -> bool:
    least = wanted.get("severity")
    return (
        "all_applicable" in wanted
        or patch.id in wanted.get("ids", ())
        or any(cve in wanted.get("cves", ()) for cve in patch.cves)
        or (
            least is not None
            and any(
                SEVERITIES.index(cve["severity"]) >= SEVERITIES.index(least)
                for cve in patch.manifest["cves"]
            )
        )
    )


def _in_time(patch: BundleDirectory, wanted: Values) -> bool:
    # Both are written year-month-day, so that they compare as texts.
    before: str | None = wanted.get("released_before")
    return before is None or patch.manifest["released"] < before


def select_patches(patches: list[BundleDirectory], wanted: Values) -> list[BundleDirectory]:
    """Those of ``patches`` that the policy's section of this name selects, in the same order.

    What a selected patch requires comes with it; what a selected patch supersedes is left out.
    Raises PolicyInvalid when nothing is selected, when an id or a CVE that is named is not to be
    had, or when something that is required was released too late.
    """
    known = {patch.id: patch for patch in patches}
    cves = {cve for patch in patches for cve in patch.cves}
    wrong = [
        f"patches.ids: there is no patch {each}; there are: {', '.join(known) or 'none'}"
        for each in wanted.get("ids", ())
        if each not in known
    ]
    wrong += [
        f"patches.cves: no patch is for {each}"
        for each in wanted.get("cves", ())
        if each not in cves
    ]
    chosen = {
        patch.id: patch for patch in patches if _wanted(patch, wanted) and _in_time(patch, wanted)
    }
    waiting = list(chosen.values())
    while waiting:
        patch = waiting.pop()
        for each in patch.manifest["requires"]:
            required = known.get(each)
            if required is None or each in chosen:
                # One that is not here may be in force already: that is for the applier to say.
                continue
            if not _in_time(required, wanted):
                wrong.append(
                    f"patches.released_before: {patch.id} requires {each}, which was released on "
                    f"{required.manifest['released']}"
                )
                continue
            chosen[each] = required
            waiting.append(required)
    for patch in list(chosen.values()):
        for each in patch.manifest["supersedes"]:
            chosen.pop(each, None)
    if wrong:
        raise PolicyInvalid(wrong)
    if not chosen:
        raise PolicyInvalid(
            [
                f"patches: none of {len(patches)} patches is selected; an empty selection is an "
                "error, never a success"
            ]
        )
    return [patch for patch in patches if patch.id in chosen]
