# SPDX-License-Identifier: GPL-3.0-or-later
"""A process with a region in an open transition, for the tests of the self-check stub.

The region, tables and descriptors are made by the product's own code; only the replaced functions
are stand-ins: entries that jump through a pointer, and bodies that note that they ran.
"""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass, replace

from programs_fixture import RunningProgram
from wfpatch.generation_table import (
    Block,
    RegionMove,
    Source,
    Transition,
    initialise,
    open_slot,
    start,
)
from wfpatch.region import Region, RegionLayout
from wfpatch.self_check_stub import MODES, Counters, Descriptor

#: Within reach of a program at 0x400000, and beyond the 1 GiB in which its heap may begin.
BASE = 0x6000_0000
FLAGS = ("-no-pie", "-mxsave", "-mfsgsbase")
SLOTS = (0, 1, 2, 505)  # entry number -> slot; the last is in the second table page
MODE_OF_ENTRY = ("always", "after_direct_call", "never", "always")
TARGET_ROW, HELD_ROW = 1, 2
NO_SUCH_WORD = 0x7FFF_FFFF_FFF0
"""An address that no stack holds: an old range that must exist, and be missed."""


def symbols(path) -> dict[str, int]:
    """The addresses of a program's symbols."""
    output = subprocess.run(["nm", str(path)], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in output.splitlines()]
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3}


@dataclass(frozen=True)
class Outcome:
    """What a probe saw."""

    ran: str
    row: int
    registers: int
    flags: int
    vectors: int
    rsp: int
    residue: int
    nested_rip: int
    nested_before: int
    nested_after: int
    nested_ran: str


class Rig:
    """One running program with its region; memory is reached through /proc/PID/mem."""

    def __init__(self, path, started: RunningProgram) -> None:
        self.running = started
        self.symbols = symbols(path)
        _, tcb, stackblock, fsgsbase = started.ready_line.split()
        self.main_tcb, self.stackblock = int(tcb, 16), int(stackblock, 16)
        self.fsgsbase = fsgsbase == "1"
        self.region = Region(BASE, RegionLayout(table_pages=2))
        self.memory = os.open(f"/proc/{started.pid}/mem", os.O_RDWR)
        layout = self.region.layout
        self.ask(f"map {BASE:x} {layout.data_size:x} {layout.text_size:x}")
        self.write(self.region.text, self.region.fixed_text())
        self.code = dict.fromkeys(SLOTS, self.symbols["old_body"])
        for step in initialise(self.region):
            self.carry_out(step)
        for number, slot in enumerate(SLOTS):
            self.write(self.region.stub(slot), self.region.slot_text(slot))
            for step in open_slot(
                self.region, slot, self.symbols[f"entry_{number}"], self.symbols["old_body"]
            ):
                self.carry_out(step)
            self.ask(f"point {number} {self.region.stub(slot):x}")

    def close(self) -> None:
        os.close(self.memory)

    def ask(self, text: str) -> str:
        answer = self.running.ask(text)
        assert answer not in ("", "what?"), f"{text!r} got {answer!r}"
        return answer

    def write(self, address: int, data: bytes) -> None:
        assert os.pwrite(self.memory, data, address) == len(data)

    def read(self, address: int, size: int) -> bytes:
        data = os.pread(self.memory, size, address)
        assert len(data) == size
        return data

    def carry_out(self, step) -> None:
        data = step.data if isinstance(step, Block) else struct.pack("<Q", step.value)
        self.write(step.address, data)

    def stack_mapping(self) -> tuple[int, int]:
        with open(f"/proc/{self.running.pid}/maps") as maps:
            for line in maps:
                if line.rstrip().endswith("[stack]"):
                    low, high = line.split()[0].split("-")
                    return int(high, 16) - (8 << 20), int(high, 16)
        raise AssertionError("no [stack]")

    def descriptor(self, **changes) -> Descriptor:
        """A descriptor under which every thread that proves its stack may migrate."""
        low, high = self.stack_mapping()
        text = (self.symbols["sites"], self.symbols["old_body"])
        plain = Descriptor(
            target_row=TARGET_ROW,
            held_row=HELD_ROW,
            fsgsbase=self.fsgsbase,
            scan_cap=1 << 20,
            ranges=((NO_SUCH_WORD, NO_SUCH_WORD), self.region.stub_text),
            modes={
                self.region.cell_index(slot): MODES[MODE_OF_ENTRY[number]]
                for number, slot in enumerate(SLOTS)
            },
            text=(text,),
            main_tcb=self.main_tcb,
            main_low=low,
            main_high=high,
            stackblock=self.stackblock,
        )
        return replace(plain, **changes)

    def open(self, descriptor: Descriptor) -> Transition:
        """Open a transition from row 0 to row 1 with this descriptor."""
        layout = self.region.layout
        encoded = descriptor.encode(
            self.region.descriptor(HELD_ROW), layout.cells, layout.descriptor_size
        )
        new = dict.fromkeys(SLOTS, self.symbols["new_body"])
        move = RegionMove(self.region, new, (self.code,), (encoded,))
        transition = Transition((Source((0,), HELD_ROW),), TARGET_ROW, (move,))
        for step in start(transition):
            self.carry_out(step)
        return transition

    def probe(
        self, where="main", how="direct", entry=0, row=0, flags=0, rsp: int | None = None
    ) -> Outcome:
        """Call an entry, from row ``row``, with the given user flags."""
        line = f"probe {where} {how} {entry} {row} {flags:x}"
        return self._outcome(line if rsp is None else f"{line} {rsp:x}")

    def nest(self, steps: int, rsp: int, how="direct", entry=0, row=0) -> Outcome:
        """The same, with a signal handler that calls the entry after ``steps`` instructions."""
        return self._outcome(f"nest {how} {entry} {row} {steps} {rsp:x}")

    def _outcome(self, line: str) -> Outcome:
        values = dict(field.split("=") for field in self.ask(line).split())
        return Outcome(
            ran=values["ran"],
            row=int(values["row"]),
            registers=int(values["registers"], 16),
            flags=int(values["flags"], 16),
            vectors=int(values["vectors"]),
            rsp=int(values["rsp"], 16),
            residue=int(values["residue"], 16),
            nested_rip=int(values["nested_rip"], 16),
            nested_before=int(values["nested_before"]),
            nested_after=int(values["nested_after"]),
            nested_ran=values["nested_ran"],
        )

    def counters(self) -> Counters:
        return Counters.decode(self.read(self.region.descriptor(HELD_ROW), 0x100))
