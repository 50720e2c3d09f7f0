# SPDX-License-Identifier: GPL-3.0-or-later
"""Arming every function of a running object at once, each with its own old continuation.

The planner is the applier's, the facts about entries are the builder's; only that each entry leads
straight to its continuation, without a table, is this rig's. PlanAll does no more than plan, for
any object of a process, and nobody is stopped for it.
"""

from __future__ import annotations

import bisect
import dataclasses
import pathlib

from wfpatch.arming import (
    ArmedEntry,
    EntrySite,
    Occupied,
    PageSwap,
    patched_copy,
    plan_arming,
    plan_disarming,
    scratch_span,
    successor,
)
from wfpatch.backend import Runner
from wfpatch.backend.ptrace import PtraceBackend, PtraceSession
from wfpatch.errors import Refused
from wfpatch.machine_code import CALL_RECORD_SIZE, continuation, syscall_runner
from wfpatch.region import PAGE, candidates, kept_clear, placeable, within_reach
from wfpatch.syscalls import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SystemCall,
    mmap_anonymous,
    mremap_over,
)
from wfpatch_build.displacement import (
    NotRelocatable,
    Template,
    first_instruction,
    hold_template,
)
from wfpatch_build.entry_analysis import EntryAnalysis, OldFunction
from wfpatch_build.object_file import ObjectFile

#: Each call of a batch is short, but its thread does nothing else meanwhile.
BATCH = 64
ROOM = 256  # bytes for a continuation
NEAR = 300  # padding further away than this cannot be in use by a short jump of ours


@dataclasses.dataclass(frozen=True)
class Entry:
    """A function that can be armed, and the copies of its first instructions."""

    site: EntrySite
    first: Template
    hold: Template | None


@dataclasses.dataclass(frozen=True)
class Ways:
    """How the functions of an object can be armed; ``evicted`` are among those by swap."""

    name: str
    functions: int
    byte: int
    swap: int
    evicted: int

    @property
    def without(self) -> int:
        """Those that only a hold could arm, or nothing."""
        return self.functions - self.byte - self.swap

    def share(self, number: int) -> str:
        return f"{100 * number / self.functions:.1f} %"

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.functions} functions, byte {self.share(self.byte)}, swap "
            f"{self.share(self.swap)} ({self.evicted} by eviction), none without a hold "
            f"{self.share(self.without)}"
        )


class PlanAll:
    """How each function of an object of a process would go: its executable, or a library by the
    beginning of its file name."""

    def __init__(self, pid: int, library: str = "") -> None:
        self.session: PtraceSession = PtraceBackend().open(pid)
        self.session.check()
        maps = self.session.memory_map()
        # The file as the process sees it, in a root of its own.
        path = (
            next(m.path for m in maps if pathlib.Path(m.path).name.startswith(library))
            if library
            else str(pathlib.Path(f"/proc/{pid}/exe").readlink())
        )
        own = [m for m in maps if m.path == path]
        file = pathlib.Path(f"/proc/{pid}/map_files/{own[0].start:x}-{own[0].end:x}")
        self.image = ObjectFile(file.read_bytes(), pathlib.Path(path).name)
        self.bias = min(m.start for m in own)
        self.analysis = EntryAnalysis(self.image)
        functions = self._functions()
        self.functions = len(functions)
        self.data = PAGE * (1 + BATCH * CALL_RECORD_SIZE // PAGE)
        self.size = self.data + PAGE * (2 + self.functions * ROOM // PAGE)
        self.span = self._free_span(max(m.end for m in own), self.size)
        self.text = self.span[0] + self.data
        self._prepare()
        self.entries = self._entries(functions)
        self.plan = self._plan()

    def _prepare(self) -> None:
        """What is to be done before the entries are read."""

    def ways(self) -> Ways:
        """How many functions go which way."""
        chosen = [entry.way for entry in self.plan.entries]
        return Ways(
            self.image.name,
            self.functions,
            chosen.count("byte"),
            chosen.count("swap"),
            sum(bool(entry.evicted[0]) for entry in self.plan.entries),
        )

    def _address(self, value: int) -> int:
        return value + self.bias

    def _functions(self) -> list[OldFunction]:
        text = [
            s
            for s in self.image.sections
            if s.executable and s.name not in (".init", ".fini") and not s.name.startswith(".plt")
        ]
        return [
            OldFunction(f"f_{start:x}", start, size)
            for start, size in self.image.pieces
            if size and any(s.contains(start) for s in text)
        ]

    def _free_span(self, end: int, size: int) -> tuple[int, int]:
        """Where a region of that size would lie."""
        maps = self.session.memory_map()
        for base in candidates(self.bias, end, self.image.build_id):
            if within_reach(self.bias, end, base, size) and placeable(
                maps, base - PAGE, base + size + PAGE, kept_clear(maps)
            ):
                return base, base + size
        raise AssertionError("no room near the object")

    def _entries(self, functions: list[OldFunction]) -> dict[int, Entry]:
        found: dict[int, Entry] = {}
        taken: list[int] = []
        for slot, function in enumerate(functions):
            code = self.image.read(function.address, function.size)
            try:
                first = first_instruction(code, function.address)
            except NotRelocatable:
                continue
            hold = hold_template(code, function.address, self.analysis.branch_targets)
            low = bisect.bisect_left(taken, function.address - NEAR)
            high = bisect.bisect_right(taken, function.address + NEAR)
            padding = self.analysis.padding(function, taken[low:high])
            if padding is not None:
                bisect.insort(taken, padding[0])
            address = self._address(function.address)
            found[slot] = Entry(
                EntrySite(
                    slot=slot,
                    name=function.name,
                    address=address,
                    entry=self.session.memory.read(address, 16),
                    first_length=first.length,
                    stub=self._place(slot),
                    inner_entries=tuple(self.analysis.inner_entries(function)),
                    padding=padding and (self._address(padding[0]), padding[1]),
                    hold_length=None if hold is None else hold.length,
                    successor=None if hold is None else successor(hold, self._address),
                ),
                first,
                hold,
            )
        return found

    def _place(self, slot: int) -> int:
        return self.text + PAGE + slot * ROOM

    def _plan(self):
        """Without those that no way but a hold fits: the planner names them."""
        sites = {entry.site.name: entry.site for entry in self.entries.values()}
        memory = self.session.memory
        maps = self.session.memory_map()
        own = (self.span[0] - PAGE, self.span[1] + PAGE)
        room = 2 * PAGE * len(sites)
        scratch = scratch_span(maps, own[1], room, (own,))
        occupied = Occupied(
            taken=(own, (scratch - PAGE, scratch + room + PAGE)),
            padding={s.slot: memory.read(*s.padding) for s in sites.values() if s.padding},
            ways=frozenset({"byte", "swap"}),
        )
        while True:
            try:
                plan = plan_arming(list(sites.values()), maps, scratch, occupied)
            except Refused as error:
                assert error.reason == "arming_impossible"
                for name in error.result["functions"]:
                    del sites[name]
                continue
            self.scratch = scratch
            return plan


class ArmAll(PlanAll):
    """All functions of the executable of a process that go without a hold."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self._continuations()

    def _prepare(self) -> None:
        calls = [
            mmap_anonymous(self.span[0], self.data, PROT_READ | PROT_WRITE),
            mmap_anonymous(self.text, self.size - self.data, PROT_READ | PROT_EXEC),
        ]
        assert self.session.call(calls) == [self.span[0], self.text]
        code = syscall_runner()
        self.session.memory.write(self.text, code)
        self.runner = Runner(self.text, len(code), self.span[0], BATCH)

    def _continuations(self) -> None:
        for armed in self.plan.entries:
            entry = self.entries[armed.slot]
            several = entry.hold is not None and armed.displaced == entry.hold.length
            template = entry.hold if several else entry.first
            at = self._place(armed.slot)
            code = continuation(template, at, armed.address, self._address)
            assert len(code) <= ROOM
            self.session.memory.write(at, code)
        self._call([mmap_anonymous(a, n, PROT_READ | PROT_EXEC) for a, n in self.plan.landing_maps])
        for write in self.plan.landing_writes:
            self.session.memory.write(write.address, write.after)

    def _call(self, calls: list[SystemCall]) -> None:
        for start in range(0, len(calls), BATCH):
            batch = calls[start : start + BATCH]
            results = self.session.call(batch, self.runner)
            wanted = [call.arguments[4 if call.name == "mremap" else 0] for call in batch]
            assert results == wanted, list(zip(batch, results, strict=True))[:3]

    def _carry_out(self, scratch_maps, swaps: tuple[PageSwap, ...], stores) -> None:
        memory = self.session.memory
        self._call([mmap_anonymous(a, n, PROT_READ | PROT_EXEC) for a, n in scratch_maps])
        for swap in swaps:
            content = patched_copy(swap, memory.read(swap.start, swap.size))
            memory.write(swap.scratch, content)
        self._call([mremap_over(swap.scratch, swap.start, swap.size) for swap in swaps])
        for store in stores:
            memory.write(store.address, store.after)

    @property
    def armed(self) -> tuple[ArmedEntry, ...]:
        """Those that are armed and disarmed."""
        return self.plan.entries

    def text_now(self) -> bytes:
        """The object's code as it is in memory."""
        return b"".join(
            self.session.memory.read(self._address(s.address), s.memory_size)
            for s in self.image.text_segments
        )

    def arm(self) -> None:
        """Every entry comes to lead to its continuation."""
        self._carry_out(self.plan.scratch_maps, self.plan.swaps, self.plan.stores)

    def disarm(self) -> None:
        """The code as shipped again."""
        plan = plan_disarming(self.plan.entries, self.scratch)
        self._carry_out(plan.scratch_maps, plan.swaps, plan.stores)
