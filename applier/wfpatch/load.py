# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading: the region is mapped, and everything a patch brings is written into it.

Nothing of it can be reached by the program yet. The header comes last and makes it count: whoever
is killed before leaves bytes beyond the cursors, which a later run writes again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace

from .backend import Survey, Surveyed
from .errors import Failed, Refused
from .generation_table import open_slot
from .live_process import LiveProcess
from .live_region import LiveRegion, create_region
from .plan import Plan, new_code
from .region import Region
from .region_header import LoadedPatch
from .syscalls import PROT_EXEC, PROT_READ, PROT_WRITE, error_of, mmap_anonymous

#: How long threads that do not stop are asked again, in seconds.
GS_CHECK_TIMEOUT = 5.0


def require_gs_unused(process: LiveProcess) -> None:
    """Refuse a program that uses the GS base itself; one short stop of each thread.

    Only for a process without a region: in others the rows are in the GS bases.
    """
    session = process.session
    surveyed = session.survey(
        Survey(left_rows=frozenset({0}), patient=False, seconds=GS_CHECK_TIMEOUT)
    )
    if surveyed is not None:
        _require_bases_unused(process, surveyed)
        return
    deadline = time.monotonic() + GS_CHECK_TIMEOUT
    waiting = list(session.tasks())
    while waiting:
        task = waiting.pop(0)
        try:
            with session.visit(task.tid, "gs_check") as stopped:
                base, selector = stopped.registers.gs_base, stopped.registers.gs
        except Failed as error:
            if error.reason == "thread_gone":
                continue
            if error.reason != "thread_unstoppable" or time.monotonic() >= deadline:
                raise
            # On a busy machine a thread may be kept from running for longer than a stop may take.
            waiting.append(task)
            continue
        if base or selector:
            raise _gs_in_use(process, task.tid, f"{base:#x}, selector {selector:#x}", base)


def _require_bases_unused(process: LiveProcess, surveyed: Sequence[Surveyed]) -> None:
    """The same of threads that were seen without a stop. One that was not seen yet has not run, and
    will be seen before any row depends on it."""
    for seen in surveyed:
        if seen.gs_base:
            raise _gs_in_use(process, seen.tid, f"{seen.gs_base:#x}", seen.gs_base)


def _gs_in_use(process: LiveProcess, tid: int, base: str, value: int) -> Refused:
    return Refused(
        "gs_in_use",
        f"thread {tid} of process {process.target.pid} uses its GS base ({base}), which wfpatch "
        "needs",
        tid=tid,
        gs_base=value,
    )


def map_region(process: LiveProcess, region: Region) -> None:
    """Map the two parts of a region, in one self-completing injection."""
    memory_map = process.session.memory_map()
    if not memory_map.free(region.base, region.end):
        # Blank, from an applier that was killed; the plan chose it for its exact size.
        return
    calls = (
        mmap_anonymous(region.base, region.layout.data_size, PROT_READ | PROT_WRITE),
        mmap_anonymous(region.text, region.layout.text_size, PROT_READ | PROT_EXEC),
    )
    results = process.session.call(calls)
    for call, result, wanted in zip(calls, results, (region.base, region.text)):
        if result != wanted:
            raise Failed(
                "injection_failed",
                f"{call} in process {process.target.pid} gave {error_of(result) or hex(result)}",
                call=str(call),
            )


def load(process: LiveProcess, plan: Plan) -> LiveRegion:
    """Carry out the loading part of a plan; returns the object's region."""
    live = plan.live
    if live is None:
        if not process.regions:
            require_gs_unused(process)
        map_region(process, plan.region)
        live = create_region(
            process.session.memory, process.image, plan.region, plan.bundle.patch.object.name
        )
        process.regions.append(live)
    memory = process.session.memory
    region = live.region
    for planned in plan.slots:
        slot = planned.slot
        memory.write(slot.continuation.low, planned.continuation)
        memory.write(region.stub(slot.index), region.slot_text(slot.index))
        live.carry_out(open_slot(region, slot.index, slot.address, slot.continuation.low))
    header = live.header
    loaded = header.loaded
    if plan.linked is not None:
        linked = plan.linked
        memory.write(plan.text_at, linked.text)
        memory.write(plan.data_at, linked.data)
        loaded += (
            LoadedPatch(
                id=plan.bundle.manifest.id,
                digest=plan.bundle.digest,
                code=new_code(plan, linked),
                text=(plan.text_at, plan.text_at + len(linked.text)),
                data=(plan.data_at, plan.data_at + len(linked.data)),
                text_digest=hashlib.sha256(linked.text).hexdigest(),
                frames=linked.eh_frame or (0, 0),
            ),
        )
    arming = plan.arming
    planned_anew = {planned.slot.index for planned in plan.slots}
    known = tuple(
        replace(slot, migrate=plan.modes.get(slot.index, slot.migrate))
        for slot in header.slots
        if slot.index not in planned_anew
    )
    if plan.slots or plan.linked is not None or known != header.slots:
        live.write_header(
            replace(
                header,
                slots=known + tuple(planned.slot for planned in plan.slots),
                loaded=loaded,
                text_cursor=plan.text_cursor,
                data_cursor=plan.data_cursor,
                landing_pages=arming.landing_pages if arming else header.landing_pages,
                scratch_pages=arming.scratch_maps if arming else header.scratch_pages,
            )
        )
    return live
