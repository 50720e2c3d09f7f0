# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares a compiled function with a piece of stock code, instruction by instruction.

Tolerated is what assembler and linker decide: jump widths, fill, merged strings, and the relaxation
of GOT loads and calls (x86-64 psABI, B.2). What a relocation names by content (strings, constants,
switch tables) is compared here. What it names by symbol comes out as a claim: the stock code, if it
is this function, says that the symbol lies there. Whoever compares judges the claims, against a
symbol table (stock_check) or against each other (matching).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iced_x86 import Instruction, Mnemonic

from wfpatch_build.compiled_object import CompiledRelocation, CompiledSection, CompiledSymbol
from wfpatch_build.instructions import near_target, rip_target
from wfpatch_build.normal_form import NormalForms
from wfpatch_build.references import (
    PC_RELATIVE,
    R_64,
    R_PC32,
    R_TPOFF32,
    THREAD_LOCAL,
    THROUGH_GOT,
    Reference,
)
from wfpatch_build.stock_code import StockCode, StockPiece


@dataclass(frozen=True)
class Claim:
    """``reference``'s symbol (its ``symbol``, or the global ``name``) lies at ``address``, offsets
    taken off; for thread-local data ``address`` counts from the thread pointer. ``at`` is the
    place in the function from which that follows."""

    reference: Reference
    address: int
    at: int


class CodeDiffers(Exception):
    """The stock code is not the compiled function; ``offset`` in the function, ``text`` why."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(text)
        self.offset = offset
        self.text = text


class CodeComparison:
    """Compares functions of one compiled object with pieces of one stock image."""

    def __init__(self, code: StockCode, forms: NormalForms) -> None:
        self.code = code
        self.image = code.image
        self.forms = forms

    def claims(self, symbol: CompiledSymbol, piece: StockPiece) -> list[Claim]:
        """What ``piece`` says of the symbols that ``symbol``'s code uses. Raises CodeDiffers."""
        ours = self.forms.body(symbol)
        section = self.forms.obj.sections[symbol.section]
        found: list[Claim] = []
        for mine, other in zip(ours, piece.instructions, strict=False):
            try:
                found += self._instruction(section, symbol, mine, other, piece)
            except _Mismatch as mismatch:
                raise CodeDiffers(mine.ip - symbol.value, str(mismatch)) from None
        if len(ours) != len(piece.instructions):
            raise CodeDiffers(
                symbol.size,
                f"{len(ours)} instructions compiled, {len(piece.instructions)} in the stock binary",
            )
        return found

    def _instruction(
        self,
        section: CompiledSection,
        symbol: CompiledSymbol,
        mine: Instruction,
        other: Instruction,
        piece: StockPiece,
    ) -> Iterator[Claim]:
        relocations = [
            section.relocation_at[o]
            for o in range(mine.ip, mine.ip + mine.len)
            if o in section.relocation_at
        ]
        raw = section.data[mine.ip : mine.ip + mine.len]
        at = mine.ip - symbol.value
        if not relocations:
            target = near_target(mine)
            if target is None:
                if raw != piece.bytes_of(other):
                    raise _Mismatch(f"{mine} became {other}")
                return
            if mine.mnemonic != other.mnemonic:
                raise _Mismatch(f"{mine} became {other}")
            if symbol.value <= target < symbol.value + symbol.size:
                numbers = self.forms.numbering(symbol.section)
                place = numbers.get(target, -1) - numbers.get(symbol.value, 0)
                there = near_target(other)
                if there is None or piece.numbers.get(there, -2) != place:
                    raise _Mismatch(f"{mine} jumps elsewhere: {other}")
                return
            reference = self.forms.references.at(section.index, target)
            yield from self._reaches(reference, near_target(other), at, symbol, piece)
            return
        for relocation in relocations:
            yield from self._relocated(section, relocation, mine, other, symbol, piece)

    def _relocated(
        self,
        section: CompiledSection,
        relocation: CompiledRelocation,
        mine: Instruction,
        other: Instruction,
        symbol: CompiledSymbol,
        piece: StockPiece,
    ) -> Iterator[Claim]:
        raw = section.data[mine.ip : mine.ip + mine.len]
        other_raw = piece.bytes_of(other)
        at = relocation.offset - mine.ip
        where = mine.ip - symbol.value
        if relocation.type in THREAD_LOCAL:
            # The linker may rewrite the whole access, but for the offset from the thread pointer.
            if relocation.type == R_TPOFF32 and _blanked(raw, at) == _blanked(other_raw, at):
                reference = self.forms.references.resolve(section, relocation)
                held = int.from_bytes(other_raw[at : at + 4], "little", signed=True)
                yield Claim(reference, held - reference.offset, where)
            return
        reference = self.forms.references.resolve(section, relocation)
        if relocation.type not in PC_RELATIVE:
            if mine.mnemonic != other.mnemonic:
                raise _Mismatch(f"{mine} became {other}")
            return
        through_got = relocation.type in THROUGH_GOT
        target = near_target(other) if rip_target(other) is None else rip_target(other)
        relaxed = through_got and (near_target(other) is not None or other.mnemonic == Mnemonic.LEA)
        if not relaxed and near_target(mine) is None:
            if _blanked(raw, at) != _blanked(other_raw, at):
                raise _Mismatch(f"{mine} became {other}")
        elif not relaxed and mine.mnemonic != other.mnemonic:
            raise _Mismatch(f"{mine} became {other}")
        if through_got and not relaxed:
            slots = self.image.got_slots
            if any(target in slots.get(name, ()) for name in self._names(reference)):
                return
            # A slot for a symbol that the object defines itself and does not export.
            target = None if target is None else self.image.relative.get(target)
        yield from self._reaches(reference, target, where, symbol, piece)

    def _reaches(
        self,
        reference: Reference,
        target: int | None,
        at: int,
        symbol: CompiledSymbol,
        piece: StockPiece,
    ) -> Iterator[Claim]:
        """The claim that ``target`` is the place of ``reference``. Raises _Mismatch."""
        if target is None:
            raise _Mismatch(f"no target where {reference.kind} {reference.name} was expected")
        if reference.kind in ("string", "constant"):
            self._content(reference, target)
        elif reference.kind == "anonymous":
            yield from self._anonymous(reference, target, at, symbol, piece)
        elif target in self.image.plt:
            if self.image.plt[target] not in self._names(reference):
                raise _Mismatch(f"{reference.name} became the import {self.image.plt[target]}")
        elif reference.kind == "function" and reference.offset:
            yield Claim(reference, self._start(reference, target), at)
        else:
            yield Claim(reference, target - reference.offset, at)

    def _names(self, reference: Reference) -> set[str]:
        """The name of what is referred to and its aliases (GCC's f.localalias, for one)."""
        symbol = reference.symbol
        if symbol is None or reference.kind not in ("function", "data"):
            return {reference.name}
        aliases = self.forms.obj.by_section.get(symbol.section, ())
        return {a.name for a in aliases if a.value == symbol.value}

    def _start(self, reference: Reference, target: int) -> int:
        """The entry of the function whose inside ``target`` is, as ``reference`` names it."""
        numbers = self.forms.numbering(reference.section)
        number = numbers.get(reference.place + reference.offset, -1) - numbers.get(
            reference.place, 0
        )
        there = self.code.piece_at(target)
        if there is None or there.numbers.get(target, -2) != number:
            raise _Mismatch(f"{reference.name}: another instruction of it at {target:#x}")
        return there.address

    def _content(self, reference: Reference, target: int) -> None:
        found = self.image.read(target - reference.offset, len(reference.content))
        if found != reference.content:
            raise _Mismatch(f"other content at {target:#x}: {found[:40]!r}")

    # -- unnamed data -----------------------------------------------------------------------------

    def _anonymous(
        self, reference: Reference, target: int, at: int, symbol: CompiledSymbol, piece: StockPiece
    ) -> Iterator[Claim]:
        section = self.forms.obj.sections[reference.section]
        start, end = reference.place, self.forms.extent(reference.section, reference.place)
        if section.executable:
            return  # code outside of functions has no bounds
        entries = [r for r in section.relocations if start <= r.offset < end]
        if any(r.type == R_PC32 for r in entries):
            self._switch(section, reference, target, symbol, piece)
            return
        yield from self._words(section, start, end, target, at, trailing_fill=not entries)

    def data(self, section: CompiledSection, start: int, end: int, target: int) -> list[Claim]:
        """What the words at ``target`` say if they are bytes [start, end) of a data section.

        Raises CodeDiffers.
        """
        try:
            return list(self._words(section, start, end, target, 0))
        except _Mismatch as mismatch:
            raise CodeDiffers(0, str(mismatch)) from None

    def _words(
        self,
        section: CompiledSection,
        start: int,
        end: int,
        target: int,
        at: int,
        trailing_fill: bool = False,
    ) -> Iterator[Claim]:
        mine = bytearray(section.data[start:end].ljust(end - start, b"\0"))
        found = bytearray(self.image.read(target, end - start))
        claims: list[Claim] = []
        for relocation in section.relocations:
            if not start <= relocation.offset < end:
                continue
            place = relocation.offset - start
            reference = self.forms.references.resolve(section, relocation)
            mine[place : place + 8] = found[place : place + 8] = bytes(8)
            if relocation.type != R_64:
                raise _Mismatch(f"relocation type {relocation.type} in data")
            held = self._address_in(target + place)
            if held is None:
                if self.image.symbolic.get(target + place) != reference.name:
                    raise _Mismatch(f"no address of {reference.name} at {target + place:#x}")
                continue
            if reference.kind in ("string", "constant"):
                self._content(reference, held)
            elif reference.kind == "function" and reference.offset:
                claims.append(Claim(reference, self._start(reference, held), at))
            elif reference.kind != "anonymous" and held not in self.image.plt:
                claims.append(Claim(reference, held - reference.offset, at))
        if trailing_fill:
            mine, found = mine.rstrip(b"\0"), found.rstrip(b"\0")
        if mine != found:
            raise _Mismatch(f"other content at {target:#x}")
        yield from claims

    def _address_in(self, word: int) -> int | None:
        """The address that the data word at ``word`` will hold, if it lies in this object."""
        if self.image.type == "ET_EXEC":
            return int.from_bytes(self.image.read(word, 8), "little")
        return self.image.relative.get(word)

    def _switch(
        self,
        section: CompiledSection,
        reference: Reference,
        target: int,
        symbol: CompiledSymbol,
        piece: StockPiece,
    ) -> None:
        """A switch table: entries into this piece by instruction, those into other sections (a
        cold part, whose stock place is not known here) by their order."""
        start = reference.place
        end = self.forms.extent(reference.section, start)
        found = self.image.read(target, end - start)
        numbers = self.forms.numbering(symbol.section)
        first = numbers.get(symbol.value, 0)
        groups: dict[int, tuple[list[int], list[int]]] = {}
        for relocation in section.relocations:
            if not start <= relocation.offset < end:
                continue
            at = relocation.offset - start
            named = self.forms.obj.symbols[relocation.symbol]
            place = named.value + relocation.addend - at
            there = int.from_bytes(found[at : at + 4], "little", signed=True)
            if named.section == symbol.section:
                if piece.numbers.get(target + there, -2) != numbers.get(place, -1) - first:
                    raise _Mismatch(f"another switch table at {target:#x}")
                continue
            mine, other = groups.setdefault(named.section, ([], []))
            mine.append(place)
            other.append(there)
        for mine, other in groups.values():
            ranks = {value: rank for rank, value in enumerate(sorted(set(mine)))}
            other_ranks = {value: rank for rank, value in enumerate(sorted(set(other)))}
            if [ranks[v] for v in mine] != [other_ranks[v] for v in other]:
                raise _Mismatch(f"another switch table at {target:#x}")


class _Mismatch(Exception):
    """Stock and compiled code part at the instruction under comparison."""


def _blanked(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes(4) + raw[at + 4 :]
