# SPDX-License-Identifier: GPL-3.0-or-later
"""For each compiled function the pieces of stock code that could be it, each with what it implies.

Everything here holds whatever is known of other symbols: instructions, strings, constants, imports,
and what the function says of itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wfpatch_build.code_comparison import Claim, CodeComparison, CodeDiffers
from wfpatch_build.code_shape import ShapeIndex, compiled_shape
from wfpatch_build.data_placement import data_claims
from wfpatch_build.definitions import Definition, Definitions
from wfpatch_build.object_file import ObjectFile, Symbol
from wfpatch_build.stock_code import StockCode

# A definition, or the name of a symbol that no unit defines: a library's, or the linker's own.
Node = Definition | str


@dataclass(frozen=True)
class Implied:
    """That ``node`` lies at ``address``."""

    node: Node
    address: int


@dataclass(frozen=True)
class Candidate:
    """A stock address at which a definition may lie, and what follows if it does."""

    address: int
    implied: tuple[Implied, ...]


def _address(image: ObjectFile, symbol: Symbol) -> int:
    """Of thread-local data: the offset from the thread pointer."""
    if symbol.type == "STT_TLS":
        return image.thread_pointer_offset(symbol.address)
    return symbol.address


class Candidates:
    """Candidates of all definitions in one stock image."""

    def __init__(
        self, image: ObjectFile, definitions: Definitions, use_exports: bool = True
    ) -> None:
        self.image = image
        self.definitions = definitions
        self.code = StockCode(image)
        self._comparisons = [CodeComparison(self.code, unit.forms) for unit in definitions.units]
        self._imports = {s.name for s in image.dynsym if s.section is None}
        self._exported = {
            s.name: _address(image, s)
            for s in image.dynsym
            if s.section is not None and use_exports
        }
        shapes = ShapeIndex(self.code, image.pieces)
        self.of_function: dict[Definition, dict[int, Candidate]] = {}
        for function in definitions.functions:
            self.of_function[function] = self._candidates(function, shapes)
        self._data: dict[tuple[Definition, int], Candidate | None] = {}

    def exported(self, definition: Definition) -> int | None:
        """The address that the stock object itself exports it under."""
        found = {self._exported[n] for n in definition.exported_as if n in self._exported}
        return found.pop() if len(found) == 1 else None

    def weight(self, function: Definition) -> int:
        """How much there is in a function by which to tell it from others, in instructions; what a
        relocation names counts as three more."""
        unit = self.definitions.units[function.unit]
        section = function.section
        assert section is not None
        start, end = function.symbol.value, function.symbol.value + function.size
        relocations = sum(start <= r.offset < end for r in section.relocations)
        return len(unit.forms.body(function.symbol)) + 3 * relocations

    def _candidates(self, function: Definition, shapes: ShapeIndex) -> dict[int, Candidate]:
        if not function.size:
            return {}
        unit = self.definitions.units[function.unit]
        comparison = self._comparisons[function.unit]
        found = {}
        for piece in shapes.alike(compiled_shape(unit.forms, function.symbol)):
            try:
                claims = comparison.claims(function.symbol, piece)
            except CodeDiffers:
                continue
            implied = self._implied(function, claims)
            if implied is not None and all(
                i.address == piece.address for i in implied if i.node is function
            ):
                found[piece.address] = Candidate(piece.address, implied)
        return found

    def datum_at(self, datum: Definition, address: int) -> Candidate | None:
        """The candidate of a datum at ``address``; None when it cannot lie there."""
        key = (datum, address)
        if key not in self._data:
            try:
                claims = data_claims(self._comparisons[datum.unit], datum, address)
            except CodeDiffers:
                self._data[key] = None
            else:
                implied = self._implied(datum, claims)
                self._data[key] = None if implied is None else Candidate(address, implied)
        return self._data[key]

    def _implied(
        self, definition: Definition, claims: Iterable[Claim]
    ) -> tuple[Implied, ...] | None:
        """Claims in terms of definitions; None when one of them contradicts the stock object, or
        when two contradict each other."""
        unit = self.definitions.units[definition.unit]
        found: dict[Node, int] = {}
        for claim in claims:
            node: Node = self.definitions.meant(unit, claim.reference) or claim.reference.name
            if isinstance(node, str) and self._refuted(node, claim.address):
                return None
            if found.setdefault(node, claim.address) != claim.address:
                return None
        return tuple(Implied(node, address) for node, address in found.items())

    def _refuted(self, name: str, address: int) -> bool:
        """Whether the dynamic symbol table says that ``name`` is elsewhere."""
        if name in self._exported:
            return self._exported[name] != address
        return name in self._imports
