# SPDX-License-Identifier: GPL-3.0-or-later
"""Planning: everything about a patch and a process that can be known before the first byte is
written. Check mode runs exactly this; nothing here writes or, but for reading a seccomp filter,
stops a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

from .arming import (
    ArmingPlan,
    EntrySite,
    Occupied,
    armed_entry,
    plan_arming,
    scratch_span,
    successor,
)
from .bundle import Bundle
from .elf_object import auxiliary_vector
from .errors import Failed, Refused
from .link import STUB_SIZE, LinkedPatch, link
from .live_process import LiveProcess
from .live_region import LiveRegion
from .machine_code import ContinuationTemplate, continuation
from .manifest import Manifest
from .patch_elf import PatchElf, ReplacedFunction
from .region import PAGE, Region, RegionLayout, choose_base
from .region_header import NewCode, PatchNote, Piece, Slot
from .run_pre import require_old_code
from .syscalls import NR_ARCH_PRCTL, NR_SIGALTSTACK, system_call
from .tail_calls import modes, strictest
from .tasks import status_fields

ManifestOf = Callable[[str], Optional[Manifest]]
"""id -> manifest of a patch, None when the store has no sound bundle of it."""

AT_HWCAP2 = 26
HWCAP2_FSGSBASE = 1 << 1
CONTINUATION_ALIGNMENT = 16
CODE_ALIGNMENT = 64


def unknown(_: str) -> Manifest | None:
    """No store at hand."""
    return None


@dataclass(frozen=True)
class PlannedSlot:
    """A slot to be given out and armed, with the bytes of its old continuation."""

    slot: Slot
    continuation: bytes


@dataclass(frozen=True)
class Plan:
    """What apply will do to one process.

    ``live`` is the object's region, None when it must be mapped at ``region``; ``linked`` is None
    when the patch's code lies in the region already; ``numbers`` maps run-time entry
    addresses to slots, ``modes`` slots that there are already to how they may migrate from now on.
    ``text_cursor`` and ``data_cursor`` are the region's after loading.
    """

    bundle: Bundle
    policy: str
    region: Region
    live: LiveRegion | None
    slots: tuple[PlannedSlot, ...]
    modes: dict[int, str]
    numbers: dict[int, int]
    arming: ArmingPlan | None
    linked: LinkedPatch | None
    text_at: int
    data_at: int
    text_cursor: int
    data_cursor: int
    fsgsbase: bool

    @property
    def note(self) -> PatchNote:
        return PatchNote(self.bundle.manifest.id, self.bundle.digest)


def _up(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment


def has_fsgsbase(pid: int) -> bool:
    """Whether user code may use wrgsbase: HWCAP2 bit 1 (Documentation/arch/x86/x86_64/fsgs.rst)."""
    return bool(auxiliary_vector(pid).get(AT_HWCAP2, 0) & HWCAP2_FSGSBASE)


def require_policy(process: LiveProcess, bundle: Bundle, policy: str) -> None:
    """Refuse a policy that cannot be sound here: policy_unsupported, stack_switching,
    auto_impossible, seccomp_forbids."""
    if policy == "points":
        raise Refused(
            "policy_unsupported",
            f"{bundle.manifest.id} asks for declared quiescence points, which this applier does "
            "not serve yet; use --policy auto or global",
        )
    if policy != "auto":
        return
    if bundle.manifest.stack_switching != "none":
        switching = sorted(
            {
                name
                for image in process.images
                if image is process.image or image.main
                for name in image.stack_switching_imports()
            }
        )
        if bundle.manifest.stack_switching == "present" or switching:
            raise Refused(
                "stack_switching",
                f"process {process.target.pid} switches stacks ({', '.join(switching) or 'by the '}"
                f"{'' if switching else 'manifest'}): frames may lie where no scan looks. State "
                "stack_switching: none in the manifest if no replaced function runs on such a "
                "stack, or use --policy global",
                imports=switching,
            )
    if not process.session.pokes and all(mode == "never" for mode in modes(bundle.patch).values()):
        raise Refused(
            "auto_impossible",
            f"every replaced function of {bundle.manifest.id} can be reached by a tail call from "
            "old code, so no thread could ever prove that it may migrate; use --policy global",
        )
    _require_stub_calls(process)


def stub_calls_known(process: LiveProcess) -> bool:
    """Whether each task's seccomp filter, if it has one, can be asked about the check routine's
    system calls."""
    session = process.session
    if session.reads_filters:
        return True
    for task in session.tasks():
        fields = status_fields(task.tgid, task.tid, "Seccomp")
        if fields is not None and fields[0] not in ("", "0"):
            return False
    return True


def _require_stub_calls(process: LiveProcess) -> None:
    """The check routine's own system calls must pass each thread's seccomp filter."""
    if not stub_calls_known(process):
        if has_fsgsbase(process.target.pid):
            return
        raise Refused(
            "seccomp_forbids",
            f"process {process.target.pid} has a seccomp filter, which this backend cannot read "
            "without a stop, and this machine has no FSGSBASE, so threads would need arch_prctl; "
            "use --backend ptrace",
        )
    calls = [system_call("sigaltstack", NR_SIGALTSTACK, 0, 1 << 20)]
    if not has_fsgsbase(process.target.pid):
        calls += [
            system_call("arch_prctl", NR_ARCH_PRCTL, 0x1001, 1 << 12),
            system_call("arch_prctl", NR_ARCH_PRCTL, 0x1003, 1 << 20),
        ]
    session = process.session
    for task in session.tasks():
        try:
            found = session.seccomp(task.tid).first_forbidden(calls)
        except Failed as error:
            if error.reason != "thread_gone":
                raise
            continue
        if found is not None:
            call, verdict = found
            raise Refused(
                "seccomp_forbids",
                f"the seccomp filter of thread {task.tid} ({task.comm}) answers {call.name} with "
                f"{verdict}; threads could not migrate by themselves. Allow it, or use "
                "--policy global",
                tid=task.tid,
                call=call.name,
            )


def require_relations(
    process: LiveProcess,
    bundle: Bundle,
    others: Sequence[str] = (),
    manifest_of: ManifestOf = unknown,
) -> None:
    """Refuse by what is in force (or, in a plan of several, will be): required_patch_missing,
    conflict, superseded. ``manifest_of`` gives the manifests of those, where it can."""
    manifest = bundle.manifest
    in_force = {note.id for note in process.patches()} | set(others)
    missing = [patch for patch in manifest.requires if patch not in in_force]
    if missing:
        raise Refused(
            "required_patch_missing",
            f"{manifest.id} requires {', '.join(missing)}, which is not in force in process "
            f"{process.target.pid}; apply it first, or name both",
            missing=missing,
        )
    theirs = [found for found in map(manifest_of, sorted(in_force)) if found is not None]
    superseding = [other.id for other in theirs if manifest.id in other.supersedes]
    if superseding:
        raise Refused(
            "superseded",
            f"{manifest.id} is needless in process {process.target.pid}: "
            f"{', '.join(superseding)}, which is in force, supersedes it",
            superseded_by=superseding,
        )
    against = {other.id for other in theirs if manifest.id in other.conflicts}
    conflicts = sorted(against | (in_force & set(manifest.conflicts)))
    if conflicts:
        raise Refused(
            "conflict",
            f"{manifest.id} conflicts with {', '.join(conflicts)}, which is in force in process "
            f"{process.target.pid}; revert it first",
            conflicts=conflicts,
        )


def _old_pieces(process: LiveProcess, function: ReplacedFunction) -> tuple[Piece, ...]:
    pieces = []
    for piece in function.all_pieces():
        low = process.image.address(piece.address)
        pieces.append(Piece(low, low + piece.size, piece.kind == "main", piece.ends_in_call))
    return tuple(pieces)


def _sizes(patch: PatchElf) -> tuple[int, int]:
    """Upper bounds of the bytes of text and data that the linked patch takes."""
    text = data = len(patch.symbols) * (STUB_SIZE + 16)
    for section in patch.sections.values():
        size = section.size + section.alignment
        if section.writable:
            data += size
        else:
            text += size
    return text, data


def _layout(bundle: Bundle) -> RegionLayout:
    text, data = _sizes(bundle.patch)
    count = len(bundle.patch.functions)
    ranges = sum(len(function.all_pieces()) + 2 for function in bundle.patch.functions)
    return RegionLayout.for_load(count, text + 64 * count, data, ranges)


def _choose_region(process: LiveProcess, bundle: Bundle) -> Region:
    layout = _layout(bundle)
    image = process.image
    for owner, blank in process.blank:
        # Mapped by an applier that was killed before it wrote the header.
        if (
            owner is image
            and blank.data_size == layout.data_size
            and blank.text_size == layout.text_size
        ):
            return Region(blank.base, layout)
    base = choose_base(image.start, image.end, image.build_id, layout, process.memory_map)
    return Region(base, layout)


def _site(process: LiveProcess, region: Region, slot: int, function: ReplacedFunction) -> EntrySite:
    address = process.image.address(function.address)
    padding = function.padding
    return EntrySite(
        slot=slot,
        name=function.name,
        address=address,
        entry=process.session.memory.read(address, 16),
        first_length=function.displaced.length,
        stub=region.stub(slot),
        inner_entries=function.inner_entries,
        padding=None if padding is None else (process.image.address(padding.address), padding.size),
        hold_length=None if function.hold is None else function.hold.length,
        successor=(
            None if function.hold is None else successor(function.hold, process.image.address)
        ),
        cell=region.dispatch_cell(0, slot),
    )


def _untouched(process: LiveProcess, slot: Slot) -> bool:
    """Whether nothing of the slot's arming is written, so that it may be armed another way."""
    memory = process.session.memory
    return all(
        memory.read(write.address, len(write.before)) == write.before for write in slot.writes
    )


def _plan_arming(
    process: LiveProcess,
    region: Region,
    live: LiveRegion | None,
    fresh: dict[int, ReplacedFunction],
) -> ArmingPlan:
    sites = [_site(process, region, slot, function) for slot, function in fresh.items()]
    memory = process.session.memory
    padding = {
        site.slot: memory.read(site.padding[0], site.padding[1])
        for site in sites
        if site.padding is not None
    }
    span = (region.base - PAGE, region.end + PAGE)
    size = 2 * PAGE * len(sites)
    scratch = scratch_span(process.memory_map, region.end + PAGE, size, (span,))
    others = tuple((other.region.base - PAGE, other.region.end + PAGE) for other in process.regions)
    armed = tuple(
        armed_entry(slot, other.region.stub(slot.index), other.region.dispatch_cell(0, slot.index))
        for other in process.regions
        for slot in other.header.slots
        if slot.index not in fresh or other is not live
    )
    pages = live.header.landing_pages if live else ()
    return plan_arming(
        sites,
        process.memory_map,
        scratch,
        Occupied(
            armed=armed,
            landing_pages=pages,
            taken=(span, (scratch - PAGE, scratch + size + PAGE), *others),
            padding=padding,
        ),
    )


def make_plan(
    process: LiveProcess,
    bundle: Bundle,
    policy: str | None = None,
    others: Sequence[str] = (),
    manifest_of: ManifestOf = unknown,
) -> Plan:
    """Plan ``bundle`` for a process without an open transition; raises Refused with the reason.

    ``others`` are patches that will be in force by then, ``manifest_of`` as for require_relations.
    """
    chosen = policy or bundle.manifest.policy
    patch = bundle.patch
    live = process.region
    slots = live.header.slots if live else ()
    require_relations(process, bundle, others, manifest_of)
    require_policy(process, bundle, chosen)
    require_old_code(
        process.session.memory,
        process.image,
        patch,
        [slot for region in process.regions for slot in region.header.slots],
    )
    region = live.region if live else _choose_region(process, bundle)
    wanted_modes = modes(patch)
    slot_modes: dict[int, str] = {}
    numbers: dict[int, int] = {}
    fresh: dict[int, ReplacedFunction] = {}
    next_slot = max((slot.index for slot in slots), default=-1) + 1
    for function in patch.functions:
        address = process.image.address(function.address)
        known = live.slot_of(address) if live else None
        if known is not None and not known.armed and _untouched(process, known):
            # Given out by a run that ended before arming: planned anew, as the map is now.
            numbers[address] = known.index
            fresh[known.index] = function
            continue
        if known is not None:
            numbers[address] = known.index
            slot_modes[known.index] = strictest(known.migrate, wanted_modes[function.address])
            continue
        numbers[address] = next_slot
        fresh[next_slot] = function
        next_slot += 1
    if next_slot > region.layout.slots:
        raise Refused(
            "region_too_small",
            f"the region has {region.layout.slots} slots, {next_slot} are needed",
        )
    arming = _plan_arming(process, region, live, fresh) if fresh else None
    text_at = region.base + (live.header.text_cursor if live else region.layout.code_offset)
    data_at = region.base + (live.header.data_cursor if live else region.layout.data_offset)
    planned = []
    if arming is not None:
        for entry in arming.entries:
            function = fresh[entry.slot]
            text_at = _up(text_at, CONTINUATION_ALIGNMENT)
            template = displaced_template(function, entry.displaced)
            code = continuation(template, text_at, entry.address, process.image.address)
            planned.append(
                PlannedSlot(
                    Slot(
                        index=entry.slot,
                        name=entry.name,
                        address=entry.address,
                        size=function.size,
                        pieces=_old_pieces(process, function),
                        entry=process.session.memory.read(entry.address, 16),
                        way=entry.way,
                        writes=entry.writes,
                        armed=False,
                        displaced=entry.displaced,
                        relied=entry.relied,
                        landing=(entry.landing, len(entry.landing_code)),
                        migrate=wanted_modes[function.address],
                        continuation=Piece(text_at, text_at + len(code), False, False),
                        evicted=entry.evicted,
                        boundaries=_boundaries(function, entry.displaced),
                    ),
                    code,
                )
            )
            text_at += len(code)
    text_at = _up(text_at, CODE_ALIGNMENT)
    data_at = _up(data_at, CODE_ALIGNMENT)
    loaded = live is not None and any(note.digest == bundle.digest for note in live.header.loaded)
    linked = None
    if not loaded:
        linked = link(patch, process.image, process.images, text_at, data_at)
        if text_at + len(linked.text) > region.base + region.layout.size:
            raise Refused(
                "region_too_small",
                f"the new code needs {len(linked.text)} bytes, the region has "
                f"{region.base + region.layout.size - text_at} left",
            )
        if data_at + len(linked.data) > region.base + region.layout.data_size:
            raise Refused(
                "region_too_small",
                f"the new data needs {len(linked.data)} bytes, the region has "
                f"{region.base + region.layout.data_size - data_at} left",
            )
    return Plan(
        bundle=bundle,
        policy=chosen,
        region=region,
        live=live,
        slots=tuple(planned),
        modes=slot_modes,
        numbers=numbers,
        arming=arming,
        linked=linked,
        text_at=text_at,
        data_at=data_at,
        text_cursor=text_at + (len(linked.text) if linked else 0) - region.base,
        data_cursor=data_at + (len(linked.data) if linked else 0) - region.base,
        fsgsbase=has_fsgsbase(process.target.pid),
    )


def displaced_template(function: ReplacedFunction, displaced: int) -> ContinuationTemplate:
    """What stands for the first ``displaced`` bytes: one instruction, or several."""
    hold = function.hold
    return hold if hold is not None and displaced == hold.length else function.displaced


def _boundaries(function: ReplacedFunction, displaced: int) -> tuple[tuple[int, int], ...]:
    """(offset in the function, offset in the continuation) of each displaced instruction."""
    hold = function.hold
    return hold.boundaries if hold is not None and displaced == hold.length else ((0, 0),)


def new_code(plan: Plan, linked: LinkedPatch) -> tuple[NewCode, ...]:
    """What the linked patch brings for each slot."""
    codes = [
        NewCode(plan.numbers[function.address], function.entry, function.pieces)
        for function in linked.functions
    ]
    return tuple(sorted(codes, key=lambda code: code.slot))
