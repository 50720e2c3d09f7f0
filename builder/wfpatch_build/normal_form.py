# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions and data of a compiled object in a form that can be compared across compilations.

An instruction without relocation or branch is its own bytes. A branch within the function is its
mnemonic and the number of the instruction it leads to, so jump widths and offsets make no
difference; fill between instructions is left out. A relocated field is replaced by what it refers
to: strings and constants by content, switch tables by the instructions they lead to, everything
else by name. Names are canonical: see ``pairing``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

from iced_x86 import Instruction

from wfpatch_build.compiled_object import CompiledObject, CompiledSection, CompiledSymbol
from wfpatch_build.instructions import is_padding, near_target
from wfpatch_build.pairing import is_compiler_made
from wfpatch_build.references import R_PC32, R_PLT32, Reference, References

Canonical = Callable[[str, str], str]  # (kind, name in this object) -> canonical name
Token = tuple[Hashable, ...]


def own_name(kind: str, name: str) -> str:
    """The canonical name that leaves names as they are."""
    return name


def no_name(kind: str, name: str) -> str:
    """The canonical name that hides names: what remains is a function's shape."""
    return ""


class NormalForms:
    """Normal forms of everything in one compiled object."""

    def __init__(self, obj: CompiledObject) -> None:
        self.obj = obj
        self.references = References(obj)

    # -- code ---------------------------------------------------------------------------------

    @functools.cache  # noqa: B019 - lives as long as its object
    def numbering(self, section: int) -> dict[int, int]:
        """Offset of each instruction -> its number in the section, fill not counted."""
        numbers: dict[int, int] = {}
        count = 0
        for instruction in self.references.instructions(section):
            numbers[instruction.ip] = count
            count += not is_padding(instruction)
        return numbers

    def body(self, symbol: CompiledSymbol) -> list[Instruction]:
        """The instructions of a function symbol, fill left out."""
        end = symbol.value + symbol.size
        return [
            i
            for i in self.references.instructions(symbol.section)
            if symbol.value <= i.ip < end and not is_padding(i)
        ]

    def function(self, symbol: CompiledSymbol, canonical: Canonical = own_name) -> list[Token]:
        """The normal form of a function symbol: one token per instruction."""
        section = self.obj.sections[symbol.section]
        relocated = sorted(section.relocations, key=lambda r: r.offset)
        position = 0
        tokens: list[Token] = []
        for instruction in self.body(symbol):
            start, end = instruction.ip, instruction.ip + instruction.len
            while position < len(relocated) and relocated[position].offset < start:
                position += 1
            raw = bytearray(section.data[start:end])
            names: list[Token] = []
            while position < len(relocated) and relocated[position].offset < end:
                relocation = relocated[position]
                at = relocation.offset - start
                raw[at : at + 4] = bytes(min(4, len(raw) - at))
                # A direct call may be marked PC32 or PLT32 for the same target.
                way = R_PC32 if relocation.type == R_PLT32 else relocation.type
                reference = self.references.resolve(section, relocation)
                names.append((way, *self.token(reference, canonical)))
                position += 1
            target = near_target(instruction)
            if names:
                tokens.append((bytes(raw), *names))
            elif target is not None:
                tokens.append((instruction.mnemonic, self._place(symbol, target, canonical)))
            else:
                tokens.append((bytes(raw),))
        return tokens

    def _place(self, symbol: CompiledSymbol, target: int, canonical: Canonical) -> Hashable:
        """A branch target within the symbol's section."""
        numbers = self.numbering(symbol.section)
        if symbol.value <= target < symbol.value + symbol.size:
            return numbers.get(target, -1) - numbers.get(symbol.value, 0)
        return self.token(self.references.at(symbol.section, target), canonical)

    # -- references -----------------------------------------------------------------------------

    def token(self, reference: Reference, canonical: Canonical) -> Token:
        """A Reference as something comparable."""
        kind = reference.kind
        if kind == "function":
            numbers = self.numbering(reference.section)
            number = 0
            if reference.offset:
                start = numbers.get(reference.place, 0)
                number = numbers.get(reference.place + reference.offset, -1) - start
            return ("function", canonical("function", reference.name), number)
        if kind == "undefined":
            return ("global", canonical("undefined", reference.name), reference.offset)
        if kind in ("string", "constant"):
            return ("content", reference.content, reference.offset)
        if kind == "anonymous":
            return self._anonymous(reference, canonical)
        if kind == "data" and is_compiler_made(reference.name) and reference.symbol is not None:
            symbol = reference.symbol
            section = self.obj.sections[symbol.section]
            end = symbol.value + symbol.size
            content = self.content(section, symbol.value, end, canonical)
            return ("content", *content, reference.offset)
        return (kind, canonical(kind, reference.name), reference.offset)

    def _anonymous(self, reference: Reference, canonical: Canonical) -> Token:
        section = self.obj.sections[reference.section]
        if section.executable:
            return ("code", section.name, reference.place)
        end = self.extent(reference.section, reference.place)
        return ("content", *self.content(section, reference.place, end, canonical))

    @functools.cached_property
    def _referred(self) -> dict[int, list[int]]:
        """Section number -> sorted places in it that some relocation or symbol names."""
        places: dict[int, set[int]] = {}
        for section in self.obj.sections:
            if not section.allocated or section.name == ".eh_frame":
                continue
            for relocation in section.relocations:
                reference = self.references.resolve(section, relocation)
                if reference.kind == "anonymous":
                    places.setdefault(reference.section, set()).add(reference.place)
        for number, symbols in self.obj.by_section.items():
            places.setdefault(number, set()).update(s.value for s in symbols)
        return {number: sorted(found) for number, found in places.items()}

    def extent(self, section: int, place: int) -> int:
        """Where the unnamed datum at ``place`` ends: at the next place that is named."""
        later = [p for p in self._referred.get(section, ()) if p > place]
        return min(later, default=self.obj.sections[section].size)

    def content(
        self, section: CompiledSection, start: int, end: int, canonical: Canonical
    ) -> tuple[Any, ...]:
        """Bytes [start, end) of a data section, relocated words replaced by what they name.

        32-bit PC-relative entries are read as a switch table that begins at ``start``.
        """
        raw = bytearray(section.data[start:end].ljust(end - start, b"\0"))
        names: list[Token] = []
        for relocation in section.relocations:
            if not start <= relocation.offset < end:
                continue
            at = relocation.offset - start
            width = 4 if relocation.type in (R_PC32, R_PLT32) else 8
            raw[at : at + width] = bytes(width)
            if relocation.type == R_PC32:
                symbol = self.obj.symbols[relocation.symbol]
                if symbol.section:
                    # .long .L5-.L4: the entry's own distance from the table is in the addend.
                    place = symbol.value + relocation.addend - at
                    reference = self.references.at(symbol.section, place)
                else:
                    reference = self.references.resolve(section, relocation)
            else:
                reference = self.references.resolve(section, relocation)
            names.append((at, relocation.type, *self.token(reference, canonical)))
        return (bytes(raw), tuple(names))

    # -- data -----------------------------------------------------------------------------------

    def datum(self, symbol: CompiledSymbol, canonical: Canonical = own_name) -> Token:
        """A named datum: kind of section, size, initial bytes and what its words refer to."""
        section = self.obj.sections[symbol.section]
        end = symbol.value + symbol.size
        return (
            section.writable,
            section.is_tls,
            symbol.size,
            *self.content(section, symbol.value, end, canonical),
        )
