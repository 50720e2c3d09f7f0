# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking a patch out of force: a new generation whose target is the code before it."""

from __future__ import annotations

from .apply import Clock, carry_on, stops_of
from .backend import Backend
from .bundle import Bundle
from .discovery import Target
from .errors import Refused
from .events import Tell, nobody
from .live_process import LiveProcess, open_process
from .live_region import LiveRegion
from .outcome import Outcome
from .plan import ManifestOf, unknown
from .report import ProcessReport
from .rows import ensure_free
from .transition import abandon, current_note, moving_patches, note_transition
from .verify import inspect


def _require_not_needed(process: LiveProcess, live: LiveRegion, bundle: Bundle) -> None:
    """Refuse to take away what a later patch of the same function stands on: still_required."""
    patches = live.generation().patches
    position = [note.digest for note in patches].index(bundle.digest)
    mine = {
        code.slot
        for loaded in live.header.loaded
        if loaded.digest == bundle.digest
        for code in loaded.code
    }
    for later in patches[position + 1 :]:
        slots = {
            code.slot
            for loaded in live.header.loaded
            if loaded.digest == later.digest
            for code in loaded.code
        }
        if slots & mine:
            raise Refused(
                "still_required",
                f"{later.id} replaces functions that {bundle.manifest.id} replaced before it in "
                f"process {process.target.pid}; revert {later.id} first",
                required_by=later.id,
            )


def _require_not_required(process: LiveProcess, bundle: Bundle, manifest_of: ManifestOf) -> None:
    """Refuse still_required for what a patch in force says it requires, in any object."""
    needing = []
    for note in process.patches():
        manifest = manifest_of(note.id)
        if manifest is not None and bundle.manifest.id in manifest.requires:
            needing.append(note.id)
    if needing:
        raise Refused(
            "still_required",
            f"{', '.join(needing)} in process {process.target.pid} requires "
            f"{bundle.manifest.id}; revert {needing[-1]} first, or name both",
            required_by=needing[-1],
        )


def revert_patch(
    backend: Backend,
    target: Target,
    bundle: Bundle,
    timeout: int | None = None,
    manifest_of: ManifestOf = unknown,
    tell: Tell = nobody,
) -> tuple[ProcessReport, bool]:
    """Revert one patch in one process; not in force is success without a change.

    ``manifest_of`` tells what the patches in force require, where the store has them.
    """
    with open_process(backend, target) as process:
        process.tell = tell
        process.session.check(allow_init=True)
        seconds = timeout if timeout is not None else bundle.manifest.transition_timeout
        clock = Clock()
        live = process.region
        outcome: Outcome | None = None
        changed = False
        if live is not None:
            changed, outcome = _revert(process, live, bundle, seconds, manifest_of)
        if changed:
            clock.transition = clock.lap()
        report = inspect(process, (bundle,), backend.name, timings=clock.timings(), outcome=outcome)
        return report.with_stops(stops_of(process)), changed


def _revert(
    process: LiveProcess,
    live: LiveRegion,
    bundle: Bundle,
    timeout: int,
    manifest_of: ManifestOf,
) -> tuple[bool, Outcome | None]:
    opened = process.in_transition
    if opened is not None and opened is not live:
        raise Refused(
            "transition_open",
            f"process {process.target.pid}: a transition of {opened.header.object_name} is open; "
            "complete or revert it first",
        )
    if opened is not None:
        note = current_note(live)
        source = live.generation(live.header.generation)
        if bundle.digest not in moving_patches(live):
            raise Refused(
                "transition_open",
                f"process {process.target.pid}: a transition of another patch is open; complete "
                "or revert that first",
            )
        if note.kind == "revert":
            return True, carry_on(process, live, timeout)
        if note.phase == "arm":
            # Armed perhaps, but every entry still leads to the old continuation.
            abandon(live)
            return True, None
        note_transition(process, live, "revert", source.patches, note.policy, timeout)
        return True, carry_on(process, live, timeout)
    patches = live.generation().patches
    if bundle.digest not in [note.digest for note in patches]:
        return False, None
    _require_not_needed(process, live, bundle)
    _require_not_required(process, bundle, manifest_of)
    ensure_free(process)
    remaining = tuple(note for note in patches if note.digest != bundle.digest)
    policy = bundle.manifest.policy if bundle.manifest.policy != "points" else "auto"
    note_transition(process, live, "revert", remaining, policy, timeout)
    return True, carry_on(process, live, timeout)
