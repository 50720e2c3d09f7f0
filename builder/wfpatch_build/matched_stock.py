# SPDX-License-Identifier: GPL-3.0-or-later
"""The stock object with the symbols that matching found, in place of an exact rebuild's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wfpatch_build.compiled_object import (
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_GNU_IFUNC,
    STT_TLS,
    CompiledObject,
)
from wfpatch_build.definitions import Definition
from wfpatch_build.errors import Refusal
from wfpatch_build.matching import Matching
from wfpatch_build.object_file import Symbol
from wfpatch_build.stock import Stock

_BINDINGS = {STB_LOCAL: "STB_LOCAL", STB_WEAK: "STB_WEAK"}
_TYPES = {STT_FUNC: "STT_FUNC", STT_GNU_IFUNC: "STT_GNU_IFUNC", STT_TLS: "STT_TLS"}


class MatchedStock(Stock):
    """Asked for something that the units define but matching left unresolved, it refuses: such a
    name must be taken neither for an import nor for something that the stock object lacks.

    ``ranks``: for each unit of the matching, how many linked units of the same file name are
    before it, those that could not be compiled among them.
    """

    def __init__(self, matching: Matching, ranks: Sequence[int]) -> None:
        super().__init__(matching.image, _symbols(matching))
        self._unresolved: dict[tuple[int | None, str], tuple[Definition, str]] = {}
        self._unit_numbers: dict[tuple[str | None, int], int] = {}
        for unit, rank in zip(matching.definitions.units, ranks, strict=True):
            self._unit_numbers[unit.obj.source_file, rank] = unit.number
        for definition, reason in matching.unresolved.items():
            for symbol in definition.symbols:
                owner = definition.unit if symbol.binding == STB_LOCAL else None
                self._unresolved[owner, symbol.name] = (definition, reason)

    def unit_of(self, obj: CompiledObject, rank: int = 0) -> int | None:
        return self._unit_numbers.get((obj.source_file, rank))

    def _find(self, name: str, unit: int | None, types: tuple[str, ...]) -> Symbol | None:
        found = super()._find(name, unit, types)
        if found is not None:
            return found
        for owner in (unit, None):
            unresolved = self._unresolved.get((owner, name))
            if unresolved is not None:
                raise Refusal(
                    "match_unresolved",
                    f"{name} was not located in {self.image.name}: {unresolved[1]}",
                    symbol=name,
                )
        return None


def _symbols(matching: Matching) -> Iterator[Symbol]:
    """What matching located, and what the object exports besides: a library's variables that a
    copy relocation moved into it."""
    own = {s.name for d in (*matching.functions, *matching.data) for s in d.symbols}
    own |= {s.name for d in matching.unresolved for s in d.symbols}
    for exported in matching.image.dynsym:
        if exported.section is not None and exported.name not in own:
            yield exported
    sizes = dict(matching.image.pieces)
    for definition, address in (*matching.functions.items(), *matching.data.items()):
        file = matching.definitions.units[definition.unit].obj.source_file
        for symbol in definition.symbols:
            local = symbol.binding == STB_LOCAL
            value, size = address, symbol.size
            if definition.is_thread_local:
                value = matching.image.thread_local_value(address)
            elif definition.is_function:
                size = sizes[address]
            yield Symbol(
                symbol.name,
                value,
                size,
                _TYPES.get(symbol.type, "STT_OBJECT"),
                _BINDINGS.get(symbol.binding, "STB_GLOBAL"),
                section=0,
                file=file if local else None,
                unit=definition.unit if local else -1,
            )
