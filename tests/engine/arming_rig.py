# SPDX-License-Identifier: GPL-3.0-or-later
"""A running program whose entries are armed by carrying out an ArmingPlan.

The program maps and moves pages on request, so that only what the plan says is under test, not how
system calls get into a process.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace

from programs_fixture import RunningProgram
from wfpatch.arming import (
    BYTES_NEEDED,
    ArmingPlan,
    DisarmingPlan,
    EntrySite,
    Occupied,
    patched_copy,
    plan_arming,
    scratch_span,
    successor,
)
from wfpatch.errors import Refused
from wfpatch.generation_table import initialise, open_slot
from wfpatch.machine_code import continuation
from wfpatch.maps import MemoryMap
from wfpatch.region import Region, RegionLayout, choose_base

BUILD_ID = "aa" * 20


@dataclass(frozen=True)
class Fixup:
    offset: int
    addend: int
    target: int


@dataclass(frozen=True)
class Template:
    length: int
    code: bytes
    fixups: tuple[Fixup, ...] = ()
    falls_through: bool = True
    boundaries: tuple[tuple[int, int], ...] = ((0, 0),)


class ArmingRig:
    """The process, its region, and one slot for each kind of entry."""

    def __init__(self, started: RunningProgram) -> None:
        self.running = started
        self.entries = [int(word, 16) for word in started.ready_line.split()[1:]]
        self.memory = os.open(f"/proc/{started.pid}/mem", os.O_RDWR)
        text = self.maps().containing(self.entries[0])
        self.span = (min(self.entries) // 4096 * 4096 - 0x10000, max(self.entries) + 0x10000)
        assert text is not None
        layout = RegionLayout()
        base = choose_base(*self.span, BUILD_ID, layout, self.maps())
        self.region = Region(base, layout)
        self.ask(f"data {base:x} {layout.data_size:x}")
        self.ask(f"map {base + layout.data_size:x} {layout.text_size:x}")
        self.write(self.region.text, self.region.fixed_text())
        self.carry_out(initialise(self.region))
        self.shipped = [self.read(entry, 32) for entry in self.entries]
        self.cursor = self.region.code
        self.landing_pages: tuple[tuple[int, int], ...] = ()
        self.wipe = self.write_text(bytes.fromhex("48c7c02a000000c3"))  # mov $42,%rax; ret

    def close(self) -> None:
        os.close(self.memory)

    def maps(self) -> MemoryMap:
        return MemoryMap.read(self.running.pid)

    def ask(self, text: str) -> str:
        answer = self.running.ask(text)
        assert answer not in ("", "failed"), f"{text!r} got {answer!r}"
        return answer

    def call(self, kind: int, value: int) -> int:
        return int(self.ask(f"call {kind} {value}"))

    def count(self) -> tuple[int, int]:
        """(calls, wrong results) of the busy threads."""
        calls, wrong = self.ask("count").split()
        return int(calls), int(wrong)

    def read(self, address: int, size: int) -> bytes:
        data = os.pread(self.memory, size, address)
        assert len(data) == size
        return data

    def write(self, address: int, data: bytes) -> None:
        assert os.pwrite(self.memory, data, address) == len(data)

    def carry_out(self, steps) -> None:
        for step in steps:
            self.write(step.address, struct.pack("<Q", step.value))

    def write_text(self, code: bytes) -> int:
        at = self.cursor
        self.write(at, code)
        self.cursor += (len(code) + 15) // 16 * 16
        return at

    def template(self, kind: int) -> Template:
        """The displaced first instruction of each kind in entry_kinds.c."""
        entry, code = self.entries[kind], self.shipped[kind]

        def target(at: int, size: int) -> int:
            return entry + size + struct.unpack_from("<i", code, at)[0]

        length = {0: 1, 1: 4, 2: 5, 3: 7, 4: 2, 5: 5, 6: 5, 7: 2, 8: 3, 9: 1, 10: 7, 11: 3, 12: 1}
        plain = Template(length[kind], code[: length[kind]])
        if kind == 3:
            return replace(plain, code=code[:3] + bytes(4), fixups=(Fixup(3, -4, target(3, 7)),))
        if kind == 4:
            # jrcxz has no long form: over a short jump to a long one.
            far = bytes.fromhex("e302eb05e900000000")
            return replace(plain, code=far, fixups=(Fixup(5, -4, entry + 2 + code[1]),))
        if kind in (5, 6):
            fixups = (Fixup(1, -4, target(1, 5)),)
            return replace(plain, code=code[:1] + bytes(4), fixups=fixups, falls_through=kind == 5)
        return plain

    def hold_template(self, kind: int) -> Template | None:
        """Whole instructions of five bytes or more, where they move without a fixup."""
        code = self.shipped[kind]
        boundaries = {
            0: (0, 1, 4, 8),
            1: (0, 4, 11),
            7: (0, 2, 8),
            9: (0, 1, 8),
            11: (0, 3, 9),
            12: (0, 1, 3, 5),
        }.get(kind)
        if boundaries is None:
            return None
        return Template(
            boundaries[-1],
            code[: boundaries[-1]],
            boundaries=tuple((at, at) for at in boundaries[:-1]),
        )

    def site(self, kind: int, **changes) -> EntrySite:
        entry = self.entries[kind]
        hold = self.hold_template(kind)
        plain = EntrySite(
            slot=kind,
            name=f"kind_{kind}",
            address=entry,
            entry=self.read(entry, 16),
            first_length=self.template(kind).length,
            stub=self.region.stub(kind),
            hold_length=hold.length if hold else None,
            successor=successor(hold, lambda address: address) if hold else None,
            cell=self.region.dispatch_cell(0, kind),
        )
        assert len(plain.entry) >= BYTES_NEEDED
        return replace(plain, **changes)

    def plan(self, sites, **occupied) -> ArmingPlan:
        maps = self.maps()
        scratch = scratch_span(maps, self.region.end + 4096, 64 * 4096, ())
        known = Occupied(landing_pages=self.landing_pages, **occupied)
        while True:
            try:
                return plan_arming(sites, maps, scratch, known)
            except Refused as error:
                impossible = set(error.result["functions"])
                sites = [site for site in sites if site.name not in impossible]

    def open_slots(self, plan: ArmingPlan, shortest: bool = False) -> None:
        """Each slot leads to the continuation that its way of arming asks for; ``shortest`` is one
        that stands for the first instruction only, which must work as well."""
        for entry in plan.entries:
            kind = entry.slot
            template = self.template(kind)
            if entry.displaced != template.length and not (shortest and entry.way != "hold"):
                template = self.hold_template(kind)
            assert template.length == entry.displaced or shortest
            size = len(template.code) + 5
            code = continuation(template, self.cursor, entry.address, lambda address: address)
            assert len(code) <= size
            at = self.write_text(code)
            self.write(self.region.stub(kind), self.region.slot_text(kind))
            self.carry_out(open_slot(self.region, kind, entry.address, at))

    def arm(self, plan: ArmingPlan, hold=lambda write: None) -> None:
        """Carry the plan out in the order that ArmingPlan names."""
        for start, size in (*plan.landing_maps, *plan.scratch_maps):
            self.ask(f"map {start:x} {size:x}")
        self.landing_pages = plan.landing_pages
        for write in plan.landing_writes:
            self.write(write.address, write.after)
        self._swap(plan.swaps)
        for write in plan.stores:
            self.write(write.address, write.after)
        for write in plan.holds:
            hold(write)

    def disarm(self, plan: DisarmingPlan) -> None:
        for start, size in plan.scratch_maps:
            self.ask(f"map {start:x} {size:x}")
        self._swap(plan.swaps)
        for write in plan.stores:
            self.write(write.address, write.after)

    def _swap(self, swaps) -> None:
        for swap in swaps:
            self.write(swap.scratch, patched_copy(swap, self.read(swap.start, swap.size)))
            self.ask(f"move {swap.scratch:x} {swap.size:x} {swap.start:x}")
