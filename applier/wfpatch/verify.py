# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in force in a process, read from its live memory and nothing else.

Every link of the chain is followed: the entry's bytes, the landing code, the stub, each row of the
table that a thread can be in, the code that it leads to; where the bundle is at hand, that code is
linked anew and compared byte by byte. What a header says is believed only where memory agrees.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .arming import armed_entry
from .backend import Backend
from .bundle import Bundle
from .discovery import Target
from .errors import Crashed, Refused, WfpatchError
from .generation_table import Code
from .link import link
from .live_process import LiveProcess, open_process
from .live_region import LiveRegion
from .machine_code import continuation
from .observe import observer
from .outcome import Outcome
from .plan import Plan, displaced_template
from .region import PAGE
from .region_header import LoadedPatch, Slot, TransitionNote
from .report import (
    FunctionReport,
    ObjectReport,
    PatchState,
    ProcessReport,
    Straggler,
    Threads,
    Timings,
    printable,
    worst,
)
from .thread_stack import Threads as ThreadStacks
from .transition import moving_patches


@dataclass
class Findings:
    """What the reading of one region brought; ``damage`` names what is not as it must be."""

    functions: list[FunctionReport] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def _entry_leads_to_stub(live: LiveRegion, slot: Slot, findings: Findings) -> bool:
    memory, region = live.memory, live.region
    sound = True
    for write in slot.writes:
        found = memory.read(write.address, len(write.after))
        if found != write.after:
            sound = False
            if slot.armed or found != write.before:
                findings.damage.append(
                    f"entry of {slot.name} at {write.address:#x}: {found.hex()} instead of "
                    f"{write.after.hex()}"
                )
    if slot.landing[0]:
        entry = armed_entry(slot, region.stub(slot.index), region.dispatch_cell(0, slot.index))
        relied = memory.read(slot.address, 16)[: max(0, slot.relied[1] - slot.address)]
        before = slot.entry[: len(relied)]
        start = slot.relied[0] - slot.address
        if sound and relied[start:] != before[start:]:
            sound = False
            findings.damage.append(f"entry of {slot.name}: the bytes its jump rests on changed")
        for at, code in entry.outside:
            if sound and memory.read(at, len(code)) != code:
                sound = False
                findings.damage.append(f"landing code of {slot.name} at {at:#x} changed")
    text = region.slot_text(slot.index)
    if memory.read(region.stub(slot.index), len(text)) != text:
        sound = False
        findings.damage.append(f"stub of {slot.name} changed")
    return sound


def _rows(live: LiveRegion) -> dict[int, tuple[bytes, bytes]]:
    """The pages of both tables for each row that a thread can be in, or may come to be in."""
    region = live.region
    pages = {}
    rows = {use.row for use in live.header.rows} | {0}
    for row in rows:
        dispatch = b"".join(
            live.memory.read(region.dispatch_cell(row, page * 504), PAGE)
            for page in range(region.layout.table_pages)
        )
        plain = b"".join(
            live.memory.read(region.plain_cell(row, page * 504), PAGE)
            for page in range(region.layout.table_pages)
        )
        pages[row] = (dispatch, plain)
    return pages


def _word(page: bytes, cell: int) -> int:
    return int.from_bytes(page[8 * cell : 8 * cell + 8], "little")


def _rows_not_filled(note: TransitionNote | None) -> set[int]:
    """Rows that nobody can be in before they are filled; they hold what an earlier use left."""
    # With the policy "global" all rows change at one moment, these too.
    if note is None or (note.policy != "global" and note.phase != "start"):
        return set()
    held = {source.held_row for source in note.sources if source.held_row is not None}
    return {note.target_row, *held}


def _code_by_row(live: LiveRegion, note: TransitionNote | None) -> dict[int, list[Code]]:
    """What the rows of an open transition may lead to: a source's code until it is finished, then
    the target's. All other rows have the current generation's."""
    if note is None:
        return {}
    target = live.code(live.generation(note.target_generation))
    by_row: dict[int, list[Code]] = {note.target_row: [target]}
    for source in note.sources:
        codes: list[Code] = [live.code(live.generation(source.generation)), target]
        for row in source.rows:
            by_row[row] = codes
        if source.held_row is not None:
            by_row[source.held_row] = codes
    return by_row


def _read_region(live: LiveRegion) -> Findings:
    findings = Findings()
    header, region = live.header, live.region
    fixed = region.fixed_text()
    if live.memory.read(region.text, len(fixed)) != fixed:
        findings.damage.append("the region's check routine changed")
    rows = _rows(live)
    note = header.transition
    if note is not None and note.kind == "apply" and note.phase == "arm":
        note = None  # nothing leads to the new code yet
    for row in _rows_not_filled(note):
        rows.pop(row, None)
    current = live.code(live.generation())
    by_row = _code_by_row(live, note)
    owner = {code.address: loaded.id for loaded in header.loaded for code in loaded.code}
    for slot in header.slots:
        sound = _entry_leads_to_stub(live, slot, findings)
        cell = region.cell_index(slot.index)
        possible = {code[slot.index] for codes in by_row.values() for code in codes}
        for row, (dispatch, plain) in sorted(rows.items()):
            allowed = {code[slot.index] for code in by_row.get(row, [current])}
            code, behind = _word(dispatch, cell), _word(plain, cell)
            expected = allowed | ({region.thunk(slot.index)} if note else set())
            for value, good in ((code, expected), (behind, allowed)):
                if value not in good:
                    findings.damage.append(
                        f"table of {slot.name}, row {row}: {value:#x} instead of "
                        + " or ".join(f"{address:#x}" for address in sorted(good))
                    )
                    sound = False
        address: int | None = current[slot.index]
        if not sound and slot.armed:
            leads_to, address = "unknown", None
        elif note is not None and len(possible) > 1:
            leads_to = "mixed"
        elif slot.armed and current[slot.index] != slot.continuation.low:
            leads_to = "new"
        else:
            leads_to = "old"  # by the old continuation, where the entry is armed
            if not slot.armed:
                address = slot.address
        findings.functions.append(
            FunctionReport(
                printable(slot.name),
                printable(owner.get(current[slot.index], "")) or None
                if leads_to == "new"
                else None,
                slot.address,
                slot.way if slot.armed else None,
                leads_to,
                address,
            )
        )
    for loaded in header.loaded:
        _check_text(live, loaded, findings)
    return findings


def _check_text(live: LiveRegion, loaded: LoadedPatch, findings: Findings) -> None:
    low, high = loaded.text
    region = live.region
    if not region.code <= low <= high <= region.end:
        findings.damage.append(f"code of {loaded.id} does not lie in the region")
        return
    digest = hashlib.sha256(live.memory.read(low, high - low)).hexdigest()
    if digest != loaded.text_digest:
        findings.damage.append(f"code of {loaded.id} changed in memory")


def _check_bundle(
    process: LiveProcess, live: LiveRegion, bundle: Bundle, findings: Findings
) -> None:
    """Compare what lies in the region with what the bundle brings; addresses are the header's."""
    try:
        _compare_with_bundle(process, live, bundle, findings)
    except Refused as error:
        # Nothing could have been linked for where the header says that it lies.
        findings.damage.append(f"{bundle.manifest.id} cannot lie where the header says: {error}")


def _compare_with_bundle(
    process: LiveProcess, live: LiveRegion, bundle: Bundle, findings: Findings
) -> None:
    """Link the bundle's patch anew for where it lies, and compare; also the old continuations."""
    loaded = next((item for item in live.header.loaded if item.digest == bundle.digest), None)
    if loaded is None:
        return
    linked = link(bundle.patch, process.image, process.images, loaded.text[0], loaded.data[0])
    if live.memory.read(loaded.text[0], len(linked.text)) != linked.text:
        findings.damage.append(f"code of {loaded.id} is not what its bundle brings")
    slots = {slot.address: slot for slot in live.header.slots}
    noted = {code.slot: code for code in loaded.code}
    for function in linked.functions:
        slot = slots.get(function.address)
        code = noted.get(slot.index) if slot else None
        if slot is None or code is None or code.address != function.entry:
            findings.damage.append(f"{function.name}: the header leads elsewhere than the bundle")
    for replaced in bundle.patch.functions:
        slot = slots.get(process.image.address(replaced.address))
        if slot is None:
            continue
        template = displaced_template(replaced, slot.displaced)
        at = slot.continuation.low
        code_bytes = continuation(template, at, slot.address, process.image.address)
        if live.memory.read(at, len(code_bytes)) != code_bytes:
            findings.damage.append(f"old continuation of {slot.name} changed")


def _patch_states(
    process: LiveProcess, bundles: Sequence[Bundle], damage: Sequence[str]
) -> tuple[PatchState, ...]:
    live = process.region
    states: dict[str, str] = {}
    in_force: set[str] = set()
    if live is not None:
        note = live.header.transition
        current = {item.digest: item.id for item in live.generation().patches}
        moving: dict[str, str] = {}
        if note is not None:
            moving = moving_patches(live)
            late = time.time() > note.started + note.timeout
            for digest, patch_id in moving.items():
                states[patch_id] = "partial" if late else "pending"
                in_force.add(digest)
        for digest, patch_id in current.items():
            if digest not in moving:
                states[patch_id] = "unknown" if damage else "patched"
                in_force.add(digest)
    for bundle in bundles:
        if bundle.digest not in in_force:
            # The same id with another digest in force is another patch: not this one.
            states[bundle.manifest.id] = "unknown" if damage else "vulnerable"
    return tuple(PatchState(printable(patch_id), state) for patch_id, state in states.items())


def _functions_as_shipped(process: LiveProcess, bundle: Bundle) -> list[FunctionReport]:
    result = []
    for function in bundle.patch.functions:
        address = process.image.address(function.address)
        size = min(16, function.main.size)
        intact = process.session.memory.read(address, size) == function.main.old[:size]
        result.append(
            FunctionReport(
                printable(function.name),
                None,
                address,
                None,
                "old" if intact else "unknown",
                address if intact else None,
            )
        )
    return result


def _object(target: Target) -> ObjectReport:
    return ObjectReport(target.name, target.build_id, printable(target.path), target.deleted)


def inspect(
    process: LiveProcess,
    bundles: Sequence[Bundle],
    backend: str,
    timings: Timings | None = None,
    outcome: Outcome | None = None,
) -> ProcessReport:
    """The report on a process, from its memory as it is now."""
    target = process.target
    live = process.region
    findings = Findings()
    policy = None
    if live is not None:
        findings = _read_region(live)
        for bundle in bundles:
            _check_bundle(process, live, bundle, findings)
        note = live.header.transition
        policy = note.policy if note else None
    known = {function.entry for function in findings.functions}
    for bundle in bundles:
        for function in _functions_as_shipped(process, bundle):
            if function.entry not in known:
                known.add(function.entry)
                findings.functions.append(function)
    patches = _patch_states(process, bundles, findings.damage)
    asked = {bundle.manifest.id for bundle in bundles}
    state = worst(
        (patch.state for patch in patches if patch.id in asked or not asked), "vulnerable"
    )
    reason, message = None, ""
    if findings.damage:
        reason = "tampered"
        message = (
            "live memory is not as recorded: "
            + "; ".join(findings.damage[:6])
            + (f"; and {len(findings.damage) - 6} more" if len(findings.damage) > 6 else "")
        )
    elif outcome is not None and not outcome.complete:
        reason = "global_quiescence_timeout" if policy == "global" else "stragglers"
        message = f"{len(outcome.stragglers)} thread(s) keep the transition open"
        patches = tuple(
            PatchState(patch.id, "partial" if patch.state == "pending" else patch.state)
            for patch in patches
        )
        state = worst(
            (patch.state for patch in patches if patch.id in asked or not asked), "vulnerable"
        )
    return ProcessReport(
        pid=target.pid,
        start_time=target.start_time,
        comm=printable(target.comm),
        exe=printable(target.exe),
        object=_object(target),
        state=state,
        generation=process.generation,
        reason=reason,
        message=message,
        backend=backend,
        policy=policy,
        patches=patches,
        functions=tuple(findings.functions),
        threads=_threads(process, live, outcome),
        timings_us=timings or Timings(),
    )


def _threads(process: LiveProcess, live: LiveRegion | None, outcome: Outcome | None) -> Threads:
    total = len(process.session.tasks())
    open_note = live.header.transition if live is not None else None
    if live is None:
        return Threads(total)
    if open_note is None:
        # Every row leads to the same code: whatever row a thread is in, it runs that.
        return Threads(total, total, total)
    if outcome is not None:
        return Threads(total, outcome.migrated, outcome.quiescent, _printable(outcome.stragglers))
    if open_note.phase == "arm" or open_note.policy == "global":
        return Threads(total)
    watch = observer(process, live, ThreadStacks(process))
    watch.glance()
    return Threads(
        total, 0, sum(sight.done for sight in watch.sights.values()), _printable(watch.stragglers())
    )


def _printable(stragglers: Sequence[Straggler]) -> tuple[Straggler, ...]:
    return tuple(
        Straggler(
            item.tid,
            printable(item.comm),
            printable(item.function) if item.function else None,
            printable(item.reason),
        )
        for item in stragglers
    )


def inspect_process(backend: Backend, target: Target, bundles: Sequence[Bundle]) -> ProcessReport:
    """Open and inspect; what stands in the way becomes the report's reason."""
    try:
        with open_process(backend, target) as process:
            return inspect(process, bundles, backend.name)
    except WfpatchError as error:
        return _without_evidence(backend, target, bundles, error, "unknown")
    except Exception as error:  # noqa: BLE001 - hostile memory hides no other process
        return _without_evidence(backend, target, bundles, Crashed(error), "unknown")


def _without_evidence(
    backend: Backend,
    target: Target,
    bundles: Sequence[Bundle],
    error: WfpatchError,
    state: str,
) -> ProcessReport:
    return ProcessReport(
        pid=target.pid,
        start_time=target.start_time,
        comm=printable(target.comm),
        exe=printable(target.exe),
        object=_object(target),
        state=state,
        reason=error.reason,
        message=printable(error.message),
        backend=backend.name,
        patches=tuple(PatchState(bundle.manifest.id, state) for bundle in bundles),
    )


def blocked_report(
    backend: Backend, target: Target, bundle: Bundle, error: WfpatchError
) -> ProcessReport:
    """The outcome of a refusal, or of a failure: then the state is what memory says.

    A refusal too comes with what memory says of generation, functions and the other patches.
    """
    report = inspect_process(backend, target, (bundle,))
    if isinstance(error, Refused):
        if report.reason is not None:
            return _without_evidence(backend, target, (bundle,), error, "blocked")
        patches = tuple(
            PatchState(patch.id, "blocked" if patch.id == bundle.manifest.id else patch.state)
            for patch in report.patches
        )
        report = replace(report, state="blocked", patches=patches)
    elif report.reason is not None:
        return report
    return replace(report, reason=error.reason, message=printable(error.message))


def planned_report(process: LiveProcess, plan: Plan, backend: str) -> ProcessReport:
    """What a plan would do: the functions with the way each would be armed."""
    report = inspect(process, (plan.bundle,), backend)
    ways = {planned.slot.address: planned.slot.way for planned in plan.slots}
    functions = tuple(
        FunctionReport(
            item.name,
            item.patch,
            item.entry,
            ways.get(item.entry, item.arming),
            item.leads_to,
            item.address,
        )
        for item in report.functions
    )
    return replace(report, functions=functions, policy=plan.policy)
