# SPDX-License-Identifier: GPL-3.0-or-later
"""Arming, carried out: entries become jumps to their stubs, by what the header notes.

Everything here can be done again: what is mapped is not mapped again, what is written is not
written again, so a run that was killed is completed by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from .arming import ArmedEntry, PageSwap, armed_entry, page_swaps, patched_copy
from .backend import Poke, Runner, Session, Visit
from .errors import Failed, Refused
from .live_process import LiveProcess
from .live_region import LiveRegion
from .machine_code import CALL_RECORD_SIZE
from .observe import pauses
from .patch_elf import PatchElf
from .quiescence import words_inside
from .region import RUNNER_OFFSET, SLOT_TEXT_OFFSET
from .region_header import Slot, Write
from .syscalls import PROT_EXEC, PROT_READ, error_of, mmap_anonymous, mremap_over

HOLD_TIMEOUT = 2.0
HOLD_ATTEMPTS = 20
#: How long a thread may stay inside the bytes of an entry, in seconds, if the kernel pokes.
POKE_TIMEOUT = 5.0


def runner_of(live: LiveRegion) -> Runner:
    """The region's syscall runner, as the backend wants it."""
    region = live.region
    return Runner(
        address=region.runner,
        size=SLOT_TEXT_OFFSET - RUNNER_OFFSET,
        records=region.calls,
        capacity=region.layout.calls_size // CALL_RECORD_SIZE,
    )


def _is_written(process: LiveProcess, write: Write) -> bool:
    """Whether the bytes are there; raises when they are neither as before nor as after."""
    found = process.session.memory.read(write.address, len(write.after))
    if found == write.after:
        return True
    if found != write.before:
        raise Refused(
            "old_code_mismatch",
            f"the bytes at {write.address:#x} are {found.hex()}, expected {write.before.hex()}; "
            "another tool may have changed them",
            address=write.address,
        )
    return False


def _are_written(process: LiveProcess, slot: Slot) -> bool:
    # Every write is looked at: a foreign change must not hide behind one that is still to do.
    written = [_is_written(process, write) for write in slot.writes]
    return all(written)


def _map(process: LiveProcess, live: LiveRegion, spans: Sequence[tuple[int, int]]) -> None:
    memory_map = process.session.memory_map()
    missing = []
    for start, size in spans:
        if memory_map.free(start, start + size):
            missing.append((start, size))
            continue
        for page in range(start, start + size, 4096):
            mapping = memory_map.containing(page)
            if mapping is None:
                missing.append((page, 4096))
            elif not mapping.anonymous or mapping.path or not mapping.executable:
                raise Failed(
                    "no_free_address",
                    f"{page:#x} was taken by another mapping since the plan; try again",
                    address=page,
                )
    calls = [mmap_anonymous(start, size, PROT_READ | PROT_EXEC) for start, size in missing]
    for call, result in zip(calls, process.session.call(calls, runner_of(live))):
        if result != call.arguments[0]:
            raise Failed("injection_failed", f"{call} gave {error_of(result) or hex(result)}")


def _swap(process: LiveProcess, live: LiveRegion, swaps: Sequence[PageSwap]) -> None:
    memory = process.session.memory
    _map(process, live, [(swap.scratch, swap.size) for swap in swaps])
    for swap in swaps:
        memory.write(swap.scratch, patched_copy(swap, memory.read(swap.start, swap.size)))
    calls = [mremap_over(swap.scratch, swap.start, swap.size) for swap in swaps]
    for call, swap, result in zip(calls, swaps, process.session.call(calls, runner_of(live))):
        if result != swap.start:
            raise Failed("injection_failed", f"{call} gave {error_of(result) or hex(result)}")


def _hold(
    process: LiveProcess, live: LiveRegion, entries: Sequence[ArmedEntry], patch: PatchElf
) -> None:
    """Stop all threads at once, move those inside the bytes to the continuation, write."""
    boundaries: dict[int, int] = {}
    spans: list[tuple[int, int]] = []
    for entry in entries:
        slot = next(slot for slot in live.header.slots if slot.index == entry.slot)
        boundaries.update(_inner_boundaries(slot, entry, patch))
        spans.append((slot.address + 1, slot.address + entry.displaced - 1))
    memory = process.session.memory
    failure = ""
    for _ in range(HOLD_ATTEMPTS):
        # Read before the hold: a thread whose stack is newer than that is an obstacle once.
        process.memory_map = process.session.memory_map()
        with process.session.hold_all("hold", HOLD_TIMEOUT) as stopped:
            failure = _obstacle(process, stopped, boundaries, spans)
            if not failure:
                for thread in stopped:
                    if thread.registers.rip in boundaries:
                        thread.registers.rip = boundaries[thread.registers.rip]
                        thread.set_registers()
                for entry in entries:
                    for write in entry.writes:
                        memory.write(write.address, write.after)
                return
    raise Failed(
        "hold_timeout", f"no moment was found to write the entries: {failure}; try again later"
    )


def _obstacle(
    process: LiveProcess,
    stopped: Sequence[Visit],
    boundaries: dict[int, int],
    spans: Sequence[tuple[int, int]],
) -> str:
    for thread in stopped:
        registers = thread.registers
        rip = registers.rip
        if any(low <= rip <= high for low, high in spans) and rip not in boundaries:
            return f"thread {thread.tid} is within an instruction to be replaced"
        mapping = process.memory_map.containing(registers.rsp)
        if mapping is None:
            return f"thread {thread.tid} has no stack that could be read"
        base = registers.rsp & -8
        stack = process.session.memory.read(base, mapping.end - base)
        if words_inside(stack, base, spans):
            return f"thread {thread.tid} will return into the bytes to be replaced"
    return ""


def arm(process: LiveProcess, live: LiveRegion, slots: Collection[int], patch: PatchElf) -> bool:
    """Arm the entries of ``slots`` that are not armed yet; returns whether any was not."""
    wanted = [slot for slot in live.header.slots if slot.index in slots and not slot.armed]
    if not wanted:
        return False
    memory = process.session.memory
    region = live.region
    entries = {
        slot.index: armed_entry(slot, region.stub(slot.index), region.dispatch_cell(0, slot.index))
        for slot in wanted
    }
    todo = [entries[slot.index] for slot in wanted if not _are_written(process, slot)]
    outside = [piece for entry in entries.values() for piece in entry.outside]
    if outside:
        needed = {
            page for at, code in outside for page in (at & -4096, (at + len(code) - 1) & -4096)
        }
        _map(process, live, [(page, 4096) for page in sorted(needed)])
        for at, code in outside:
            memory.write(at, code)
    if process.session.pokes:
        _poke(process, live, todo, patch)
    else:
        _store(process, live, todo, patch)
    done = {slot.index for slot in wanted}
    live.note(slots=tuple(_armed(slot, done) for slot in live.header.slots), scratch_pages=())
    return True


def _store(
    process: LiveProcess, live: LiveRegion, todo: Sequence[ArmedEntry], patch: PatchElf
) -> None:
    """Entries written by page swaps, single bytes, and a hold for the rest."""
    memory = process.session.memory
    swaps = page_swaps(todo, live.header.scratch_pages[0][0] if live.header.scratch_pages else 0)
    if swaps:
        _swap(process, live, swaps)
    for entry in todo:
        if entry.way == "byte":
            memory.write(entry.writes[0].address, entry.writes[0].after)
    held = [entry for entry in todo if entry.way == "hold"]
    if held:
        _hold(process, live, held, patch)


def _poke(
    process: LiveProcess, live: LiveRegion, todo: Sequence[ArmedEntry], patch: PatchElf
) -> None:
    """Entries written by the kernel service: what is behind an entry first, since its jump may
    contain or lead to it; then the entries themselves."""
    slots = {slot.index: slot for slot in live.header.slots}
    behind: list[Poke] = []
    heads: list[Poke] = []
    moves: dict[int, int] = {}
    for entry in todo:
        slot = slots[entry.slot]
        for write in entry.writes:
            head = write.address == entry.address
            # An evicted instruction has its copy; nothing else behind an entry is ever run.
            redirect = slot.continuation.low if head else entry.evicted[0] or slot.continuation.low
            (heads if head else behind).append(
                Poke(write.address, write.before, write.after, redirect)
            )
        if entry.way == "hold":
            moves.update(_inner_boundaries(slot, entry, patch))
    poke_until_done(process.session, behind, {})
    poke_until_done(process.session, heads, moves)


def poke_until_done(session: Session, pokes: Sequence[Poke], moves: Mapping[int, int]) -> None:
    """Poke again while a thread stays inside the bytes. Raises code_busy after POKE_TIMEOUT."""
    if not pokes:
        return
    for _ in pauses(time.monotonic() + POKE_TIMEOUT):
        straggler = session.poke(pokes, sorted(moves.items()))
        if not straggler:
            return
    raise Failed(
        "code_busy",
        f"{straggler} of process {session.pid} stayed inside the bytes of an entry for "
        f"{POKE_TIMEOUT:g} s; try again later",
    )


def _inner_boundaries(slot: Slot, entry: ArmedEntry, patch: PatchElf) -> dict[int, int]:
    """Instruction boundaries inside the displaced bytes -> the same place in the continuation."""
    hold = next(item for item in patch.functions if item.name == slot.name).hold
    if hold is None:
        raise Failed("arming_impossible", f"{slot.name} has no instructions to hold for")
    return {
        slot.address + old: slot.continuation.low + new
        for old, new in hold.boundaries
        if 0 < old < entry.displaced
    }


def _armed(slot: Slot, done: Collection[int]) -> Slot:
    return replace(slot, armed=True) if slot.index in done else slot
