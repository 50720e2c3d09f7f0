# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares compiled old code with the stock binary, instruction by instruction.

This is run-pre matching with known addresses: it shows that a single object compiled by the
builder is what Debian's build linked, and that every symbol the code uses lies where the symbol
table says. Tolerated is what assembler and linker decide: jump widths, fill, merged strings, and
the relaxation of GOT loads and calls (x86-64 psABI, B.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iced_x86 import Instruction, Mnemonic

from wfpatch_build.compiled_object import CompiledRelocation, CompiledSection, CompiledSymbol
from wfpatch_build.instructions import decode, is_padding, near_target, rip_target
from wfpatch_build.normal_form import NormalForms
from wfpatch_build.references import PC_RELATIVE, R_PC32, THREAD_LOCAL, THROUGH_GOT, Reference
from wfpatch_build.stock import Stock


@dataclass(frozen=True)
class Difference:
    """The first place where stock and compiled code part; offsets in the function."""

    function: str
    offset: int
    text: str

    def __str__(self) -> str:
        return f"{self.function}+{self.offset:#x}: {self.text}"


class StockCheck:
    """Checks functions of one compiled object against the stock object's ``unit``."""

    def __init__(self, stock: Stock, forms: NormalForms, unit: int | None) -> None:
        self.stock = stock
        self.forms = forms
        self.unit = unit

    def function(self, symbol: CompiledSymbol) -> Difference | None:
        """The first difference of one function or cold part; None when there is none."""
        stock = self.stock.function(symbol.name, self.unit)
        if stock is None:
            return Difference(symbol.name, 0, "the stock binary has no such function")
        code = self.stock.image.read(stock.address, stock.size)
        theirs = [i for i in decode(code, stock.address) if not is_padding(i)]
        ours = self.forms.body(symbol)
        numbers = {instruction.ip: number for number, instruction in enumerate(theirs)}
        first = self.forms.numbering(symbol.section).get(symbol.value, 0)

        def place(target: int) -> int:
            return self.forms.numbering(symbol.section).get(target, -1) - first

        section = self.forms.obj.sections[symbol.section]
        for mine, other in zip(ours, theirs, strict=False):
            text = self._instruction(
                section, symbol, mine, other, numbers, place, code, stock.address
            )
            if text is not None:
                return Difference(symbol.name, mine.ip - symbol.value, text)
        if len(ours) != len(theirs):
            return Difference(
                symbol.name,
                symbol.size,
                f"{len(ours)} instructions compiled, {len(theirs)} in the stock binary",
            )
        return None

    def _instruction(
        self,
        section: CompiledSection,
        symbol: CompiledSymbol,
        mine: Instruction,
        other: Instruction,
        numbers: dict[int, int],
        place: Callable[[int], int],
        code: bytes,
        address: int,
    ) -> str | None:
        relocations = [
            section.relocation_at[o]
            for o in range(mine.ip, mine.ip + mine.len)
            if o in section.relocation_at
        ]
        raw = section.data[mine.ip : mine.ip + mine.len]
        other_raw = code[other.ip - address : other.ip - address + other.len]
        if not relocations:
            target = near_target(mine)
            if target is None:
                return None if raw == other_raw else f"{mine} became {other}"
            if mine.mnemonic != other.mnemonic:
                return f"{mine} became {other}"
            if symbol.value <= target < symbol.value + symbol.size:
                there = near_target(other)
                same = there is not None and numbers.get(there, -2) == place(target)
                return None if same else f"{mine} jumps elsewhere: {other}"
            return self._reaches(
                self.forms.references.at(section.index, target), near_target(other)
            )
        for relocation in relocations:
            text = self._relocated(section, relocation, mine, other, raw, other_raw)
            if text is not None:
                return text
        return None

    def _relocated(
        self,
        section: CompiledSection,
        relocation: CompiledRelocation,
        mine: Instruction,
        other: Instruction,
        raw: bytes,
        other_raw: bytes,
    ) -> str | None:
        if relocation.type in THREAD_LOCAL:
            return None  # the linker may rewrite the whole access
        reference = self.forms.references.resolve(section, relocation)
        if relocation.type not in PC_RELATIVE:
            return None if mine.mnemonic == other.mnemonic else f"{mine} became {other}"
        through_got = relocation.type in THROUGH_GOT
        target = near_target(other) if rip_target(other) is None else rip_target(other)
        relaxed = through_got and (near_target(other) is not None or other.mnemonic == Mnemonic.LEA)
        at = relocation.offset - mine.ip
        if not relaxed and near_target(mine) is None:
            blank, other_blank = bytearray(raw), bytearray(other_raw)
            blank[at : at + 4] = other_blank[at : at + 4] = bytes(4)
            if blank != other_blank:
                return f"{mine} became {other}"
        elif not relaxed and mine.mnemonic != other.mnemonic:
            return f"{mine} became {other}"
        if through_got and not relaxed:
            slots = self.stock.image.got_slots.get(reference.name, ())
            if target in slots:
                return None
            # A slot for a symbol that the object defines itself and does not export.
            held = None if target is None else self.stock.image.relative.get(target)
            return self._reaches(reference, held)
        return self._reaches(reference, target)

    def _reaches(self, reference: Reference, target: int | None) -> str | None:
        """None when ``target`` is the stock place of ``reference``, else what is wrong."""
        if target is None:
            return f"no target where {reference.kind} {reference.name} was expected"
        image = self.stock.image
        if reference.kind in ("string", "constant"):
            found = image.read(target - reference.offset, len(reference.content))
            same = found == reference.content
            return None if same else f"other content at {target:#x}: {found[:40]!r}"
        if reference.kind == "anonymous":
            return self._anonymous(reference, target)
        if image.plt.get(target) == reference.name:
            return None
        symbol = self.stock.any(reference.name, self.unit)
        if symbol is None:
            return f"{reference.name} is not in the stock binary"
        if reference.kind == "function" and reference.offset:
            return None if target != symbol.address else f"{reference.name}: offset lost"
        if target != symbol.address + reference.offset:
            return (
                f"{reference.name}+{reference.offset:#x} at {target:#x}, "
                f"the symbol table says {symbol.address + reference.offset:#x}"
            )
        return None

    def _anonymous(self, reference: Reference, target: int) -> str | None:
        section = self.forms.obj.sections[reference.section]
        end = self.forms.extent(reference.section, reference.place)
        size = end - reference.place
        found = self.stock.image.read(target, size)
        entries = [r for r in section.relocations if reference.place <= r.offset < end]
        if not entries:
            same = found.rstrip(b"\0") == section.data[reference.place : end].rstrip(b"\0")
            return None if same else f"other content at {target:#x}"
        if any(r.type != R_PC32 for r in entries):
            return None
        # A switch table. The stock numbering of instructions is known only for the piece under
        # comparison, so entries are compared by order among those that lead to the same section.
        groups: dict[int, tuple[list[int], list[int]]] = {}
        for r in entries:
            at = r.offset - reference.place
            target_symbol = self.forms.obj.symbols[r.symbol]
            mine, other = groups.setdefault(target_symbol.section, ([], []))
            mine.append(target_symbol.value + r.addend - at)
            other.append(int.from_bytes(found[at : at + 4], "little", signed=True))
        for mine, other in groups.values():
            ranks = {value: rank for rank, value in enumerate(sorted(set(mine)))}
            other_ranks = {value: rank for rank, value in enumerate(sorted(set(other)))}
            if [ranks[v] for v in mine] != [other_ranks[v] for v in other]:
                return f"another switch table at {target:#x}"
        return None
