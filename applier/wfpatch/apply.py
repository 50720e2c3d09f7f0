# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a patch into force in one process: plan, load, arm, open, observe, finish.

Each step leaves the process healthy and says in the region's header what is there, so a run that
ends anywhere (a kill included) is completed or reverted by another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .arm import arm
from .backend import Backend
from .bundle import Bundle
from .discovery import Target
from .errors import Refused
from .events import Tell, nobody, planned_facts, threads_facts
from .global_switch import switch_globally
from .live_process import LiveProcess, open_process
from .live_region import LiveRegion
from .load import load
from .observe import HeldRow, Observer, observer, pauses
from .outcome import Outcome
from .plan import ManifestOf, Plan, make_plan, unknown
from .report import ProcessReport, Stop, Timings
from .rows import ensure_free
from .thread_stack import Threads
from .transition import (
    complete,
    counters,
    current_note,
    finish_source_rows,
    note_transition,
    open_transition,
)
from .verify import inspect, planned_report


@dataclass
class Clock:
    """What the steps took, in microseconds."""

    load: int | None = None
    arm: int | None = None
    transition: int | None = None
    begun: float = field(default_factory=time.perf_counter)

    def lap(self) -> int:
        """Microseconds since the last lap."""
        now = time.perf_counter()
        elapsed, self.begun = int((now - self.begun) * 1e6), now
        return elapsed

    def timings(self) -> Timings:
        """For the report."""
        return Timings(self.load, self.arm, self.transition)


def _in_force(process: LiveProcess, bundle: Bundle) -> bool:
    live = process.region
    return live is not None and any(
        note.digest == bundle.digest for note in live.generation().patches
    )


def _reverted(process: LiveProcess, bundle: Bundle) -> bool:
    """Whether the patch was in force in this process, and was taken out of it on purpose."""
    live = process.region
    if live is None or process.in_transition is not None:
        return False
    mine = {
        code.slot
        for loaded in live.header.loaded
        if loaded.digest == bundle.digest
        for code in loaded.code
    }
    # Code that was loaded by a run that ended before it armed anything was never in force.
    return any(slot.index in mine and slot.armed for slot in live.header.slots)


def _require_no_transition(process: LiveProcess, bundle: Bundle) -> bool:
    """Whether an earlier run's transition to this very patch is to be resumed; raises
    transition_open for any other."""
    live = process.in_transition
    if live is None:
        return False
    note = current_note(live)
    target = live.generation(note.target_generation)
    newest = target.patches[-1].digest if target.patches else ""
    if live is process.region and note.kind == "apply" and newest == bundle.digest:
        return True
    raise Refused(
        "transition_open",
        f"process {process.target.pid}: an earlier transition ({note.kind}, generation "
        f"{note.target_generation}) is still open; complete it by the same command, or revert it",
        generation=note.target_generation,
    )


def stops_of(process: LiveProcess) -> list[Stop]:
    """The stops of this run, for the report."""
    return [Stop(s.tid, s.purpose, s.microseconds) for s in process.session.stops]


def plan_patch(
    backend: Backend,
    target: Target,
    bundle: Bundle,
    earlier: Sequence[Bundle],
    policy: str | None,
    include_init: bool,
    manifest_of: ManifestOf = unknown,
) -> tuple[ProcessReport, bool]:
    """What apply would do to the process, after ``earlier`` patches; nothing is written."""
    with open_process(backend, target) as process:
        process.session.check(allow_init=include_init)
        if _in_force(process, bundle) and process.in_transition is None:
            return inspect(process, (bundle,), backend.name), False
        if _require_no_transition(process, bundle):
            return inspect(process, (bundle,), backend.name), True
        plan = make_plan(
            process, bundle, policy, [item.manifest.id for item in earlier], manifest_of
        )
        return planned_report(process, plan, backend.name), True


def apply_patch(
    backend: Backend,
    target: Target,
    bundle: Bundle,
    policy: str | None = None,
    timeout: int | None = None,
    until: str = "finish",
    include_init: bool = False,
    manifest_of: ManifestOf = unknown,
    patience: int | None = None,
    anew: bool = True,
    tell: Tell = nobody,
) -> tuple[ProcessReport, bool]:
    """Apply one patch to one process; returns the report and whether anything was changed.

    ``patience``: seconds that this run may wait for threads; the transition then stays open for
    ``timeout`` all the same, and another run goes on. Without ``anew``, a process in which the
    patch was reverted is left so. Raises Refused before, Failed after the first change; applied
    already is success without one.
    """
    with open_process(backend, target) as process:
        process.tell = tell
        process.session.check(allow_init=include_init)
        seconds = timeout if timeout is not None else bundle.manifest.transition_timeout
        clock = Clock()
        live = process.region
        if _require_no_transition(process, bundle) and live is not None:
            note = current_note(live)
            slots = {code.slot for code in live.generation(note.target_generation).code}
        elif _in_force(process, bundle) or (not anew and _reverted(process, bundle)):
            return inspect(process, (bundle,), backend.name), False
        else:
            plan = make_plan(process, bundle, policy, manifest_of=manifest_of)
            if tell is not nobody:
                tell("plan", **planned_facts(planned_report(process, plan, backend.name)))
            ensure_free(process)
            live = load(process, plan)
            _begin(process, live, plan, seconds)
            slots = set(plan.numbers.values())
        clock.load = clock.lap()
        tell("load", microseconds=clock.load)
        if until != "load":
            arm(process, live, slots, bundle.patch)
            clock.arm = clock.lap()
            tell("arm", microseconds=clock.arm)
        outcome = None
        if until == "finish":
            outcome = carry_on(process, live, min(seconds, patience or seconds))
            clock.transition = clock.lap()
            if not outcome.complete and patience is not None:
                outcome = None  # whether it is late tells the time in the region's header
        return _report(process, bundle, backend, clock, outcome), True


def _begin(process: LiveProcess, live: LiveRegion, plan: Plan, timeout: int) -> None:
    in_force = live.generation().patches
    note_transition(process, live, "apply", (*in_force, plan.note), plan.policy, timeout)


def _report(
    process: LiveProcess,
    bundle: Bundle,
    backend: Backend,
    clock: Clock,
    outcome: Outcome | None,
) -> ProcessReport:
    return inspect(
        process,
        (bundle,),
        backend.name,
        timings=clock.timings(),
        outcome=outcome,
    ).with_stops(stops_of(process))


def carry_on(process: LiveProcess, live: LiveRegion, timeout: int) -> Outcome:
    """From wherever the noted transition is to its end, or until ``timeout`` seconds are over."""
    note = current_note(live)
    deadline = time.monotonic() + timeout
    if note.policy == "global":
        return switch_globally(process, live, deadline)
    threads = Threads(process)
    trusted = note.phase == "arm"
    if note.phase in ("arm", "start"):
        open_transition(process, live, threads.stacks())
    watch = observer(process, live, threads)
    if current_note(live).phase == "open" and not _observed(watch, deadline):
        return Outcome(False, watch.stragglers(), *_counts(process, live, watch))
    if current_note(live).phase in ("open", "finish_rows"):
        finish_source_rows(process, live)
    held = HeldRow(process, live, watch)
    if not _emptied(held, deadline, trusted):
        return Outcome(False, held.stragglers(), *_counts(process, live, watch))
    counts = _counts(process, live, watch)
    complete(process, live)
    return Outcome(True, (), *counts)


def _observed(watch: Observer, deadline: float) -> bool:
    return any(_swept(watch) for _ in pauses(deadline))


def _swept(watch: Observer) -> bool:
    """One look at all; who looks on is told how many have left old code."""
    complete = watch.sweep()
    if watch.process.tell is not nobody:
        done = sum(sight.done for sight in watch.sights.values())
        waiting = watch.stragglers()
        watch.process.tell("threads", **threads_facts(done, len(watch.sights), waiting))
    return complete


def _emptied(held: HeldRow, deadline: float, trusted: bool) -> bool:
    """Whether the held rows are empty.

    The stub's counter is the fast path: nobody ever entered. It counts from the opening on, so it
    says nothing when the opening was done twice.
    """
    for _ in pauses(deadline):
        exact = not trusted or not held.never_entered()
        if held.sweep(exact) and (exact or held.never_entered()):
            return True
    return False


def _counts(process: LiveProcess, live: LiveRegion, watch: Observer) -> tuple[int, int]:
    counted = counters(live)
    total = len(watch.sights)
    migrated = min(total, counted.migrated + counted.held_out)
    return migrated, sum(sight.done for sight in watch.sights.values())
