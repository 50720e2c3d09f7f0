# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of each CVE in one running image: DESIGN's words, each with what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wfpatch.apply import plan_patch
from wfpatch.backend import Backend
from wfpatch.bundle import Bundle
from wfpatch.discovery import Target
from wfpatch.errors import Refused, WfpatchError
from wfpatch.manifest import Manifest
from wfpatch.report import ProcessReport, printable
from wfpatch.verify import inspect_process

from . import grounds
from .known import Known
from .packages import Package
from .running_images import RunningImage

#: Of several patches that close a CVE in one image, the one that got furthest counts.
_FURTHEST = ("patched", "pending", "partial", "unknown", "vulnerable", "blocked", "unpatchable")


@dataclass(frozen=True)
class CveState:
    """``patch`` is the patch that the state is of; ``reason`` a reason code; ``ground`` why an
    image counts as fixed: build_id, version or changelog."""

    id: str
    state: str
    patch: str | None = None
    reason: str | None = None
    message: str = ""
    ground: str | None = None


def _patch_states(
    backend: Backend, target: Target, bundles: Sequence[Bundle], reading: ProcessReport
) -> dict[str, tuple[str, str | None, str]]:
    """patch id -> state, reason, message: as memory says, and for what memory says is not applied
    whether it could be."""
    found = {patch.id: patch.state for patch in reading.patches}
    by_id = {bundle.manifest.id: bundle.manifest for bundle in bundles}

    def manifest_of(patch_id: str) -> Manifest | None:
        return by_id.get(patch_id)

    states: dict[str, tuple[str, str | None, str]] = {}
    for position, bundle in enumerate(bundles):
        patch_id = bundle.manifest.id
        state = found.get(patch_id, "unknown")
        reason, message = None, ""
        if bundle.distrust is not None:
            # Nobody who is believed says that this is a fix, whatever memory holds of it.
            state = "blocked" if state == "vulnerable" else "unknown"
            reason, message = bundle.distrust.reason, printable(bundle.distrust.message)
        elif state in ("pending", "partial", "unknown"):
            reason, message = reading.reason, reading.message
        elif state == "vulnerable":
            try:
                plan_patch(backend, target, bundle, bundles[:position], None, False, manifest_of)
            except Refused as error:
                state, reason, message = "blocked", error.reason, printable(error.message)
            except WfpatchError as error:
                reason, message = error.reason, printable(error.message)
            except Exception:  # noqa: BLE001 - memory was read; only the forecast is missing
                reason, message = "applier_failed", "whether it could be applied is not known"
        states[patch_id] = (state, reason, message)
    return states


def affected_states(
    backend: Backend, target: Target, known: Known, build_id: str
) -> tuple[ProcessReport | None, list[CveState]]:
    """What memory says of an image that patches or advisories name as affected."""
    bundles = known.bundles_for(build_id)
    reading = None
    found: dict[str, CveState] = {}
    if bundles:
        reading = inspect_process(backend, target, bundles)
        states = _patch_states(backend, target, bundles, reading)
        for bundle in bundles:
            state, reason, message = states[bundle.manifest.id]
            for cve in bundle.manifest.cves:
                offered = CveState(cve.id, state, bundle.manifest.id, reason, message)
                best = found.get(cve.id, offered)
                found[cve.id] = min(best, offered, key=lambda each: _FURTHEST.index(each.state))
    for advisory in known.affecting(build_id):
        if advisory.cve in found:
            continue
        if advisory.unpatchable:
            found[advisory.cve] = CveState(
                advisory.cve, "unpatchable", message=printable(advisory.unpatchable)
            )
        else:
            found[advisory.cve] = CveState(
                advisory.cve, "vulnerable", message="no patch for this build is known here"
            )
    return reading, list(found.values())


def namesake_states(
    known: Known, image: RunningImage, package: Package | None, debian: bool, but: set[str]
) -> list[CveState]:
    """CVEs of objects of that name in builds that no patch was made for: fixed, or unknown."""
    build_id = image.mapped.build_id
    owner = package if image.is_installed else None
    result = []
    for cve, affected in known.named(image.mapped.path, package).items():
        if cve in but:
            continue
        advisories = known.advisories_for(cve)
        ground = None
        if build_id and grounds.named_build(build_id, advisories):
            ground = grounds.BUILD_ID
        elif owner is not None and grounds.fixed_version(owner, advisories, debian):
            ground = grounds.VERSION
        elif owner is not None and debian and grounds.changelog_names(owner, cve, affected):
            ground = grounds.CHANGELOG
        if ground is not None:
            result.append(CveState(cve, "fixed", ground=ground))
        else:
            result.append(
                CveState(
                    cve,
                    "unknown",
                    reason="build_id_mismatch",
                    message=f"build {build_id or 'without build-id'} is neither one that a patch "
                    "was made for nor one that is known to be fixed",
                )
            )
    return result
