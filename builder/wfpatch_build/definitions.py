# SPDX-License-Identifier: GPL-3.0-or-later
"""What a set of compiled objects defines, and which definition each reference means.

A name alone says little: two files may both have a static `init`, and one place may have several
names. A definition is a place in an object; symbols are its names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wfpatch_build.compiled_object import (
    SHN_ABS,
    SHN_COMMON,
    SHN_UNDEF,
    STB_LOCAL,
    STB_WEAK,
    STT_COMMON,
    STT_FUNC,
    STT_GNU_IFUNC,
    STT_OBJECT,
    STT_TLS,
    CompiledObject,
    CompiledSection,
    CompiledSymbol,
)
from wfpatch_build.differ import is_cold
from wfpatch_build.normal_form import NormalForms
from wfpatch_build.references import Reference

_FUNCTIONS = (STT_FUNC, STT_GNU_IFUNC)


@dataclass(frozen=True, eq=False)
class Definition:
    """One place of one object (``unit`` counts them); ``symbols`` are its names, the first of them
    the one that the compiler refers to. Variables that the linker allocates (-fcommon) have no
    section. ``order`` counts the unit's functions as the compiler wrote them, by kind of section
    (``group``): the linker keeps that order, and a unit's functions of a group together."""

    unit: int
    symbols: tuple[CompiledSymbol, ...]
    section: CompiledSection | None
    group: str = ""
    order: int = -1

    @property
    def symbol(self) -> CompiledSymbol:
        return self.symbols[0]

    @property
    def name(self) -> str:
        return self.symbol.name

    @property
    def size(self) -> int:
        return max(s.size for s in self.symbols)

    @property
    def is_function(self) -> bool:
        return self.symbol.type in _FUNCTIONS

    @property
    def is_cold(self) -> bool:
        return self.is_function and is_cold(self.name)

    @property
    def is_thread_local(self) -> bool:
        return self.symbol.type == STT_TLS

    @property
    def exported_as(self) -> tuple[str, ...]:
        """Its global names."""
        return tuple(s.name for s in self.symbols if s.binding != STB_LOCAL)


@dataclass
class Unit:
    """One compiled object and its definitions by (section, value)."""

    number: int
    forms: NormalForms
    functions: list[Definition] = field(default_factory=list)
    data: list[Definition] = field(default_factory=list)
    by_place: dict[tuple[int, int], Definition] = field(default_factory=dict)

    @property
    def obj(self) -> CompiledObject:
        return self.forms.obj


# What GCC puts in front of a function's name by how it is expected to run; ld gathers each kind.
_GROUPS = (".text.unlikely", ".text.exit", ".text.startup", ".text.hot", ".text")


def code_group(section: str) -> str:
    """The part of .text in which the linker gathers a compiled section."""
    for group in _GROUPS:
        if section == group or section.startswith(group + "."):
            return group
    return section


class Definitions:
    """All definitions of the objects that one binary is linked from, in link order."""

    def __init__(self, objects: Sequence[CompiledObject]) -> None:
        self.units = [_unit(number, obj) for number, obj in enumerate(objects)]
        self._globals: dict[str, Definition] = {}
        self._weak: set[str] = set()
        self._commons: dict[str, Definition] = {}
        for unit in self.units:
            for definition in (*unit.functions, *unit.data):
                self._add_globals(definition)
        for unit in self.units:
            for symbol in unit.obj.symbols:
                if symbol.section == SHN_COMMON and symbol.name not in self._globals:
                    known = self._commons.get(symbol.name)
                    if known is None or known.size < symbol.size:
                        self._commons[symbol.name] = Definition(unit.number, (symbol,), None)

    def _add_globals(self, definition: Definition) -> None:
        """The linker takes the first strong definition of a name, or else the first weak one."""
        for symbol in definition.symbols:
            if symbol.binding == STB_LOCAL:
                continue
            weak = symbol.binding == STB_WEAK
            if symbol.name not in self._globals or (symbol.name in self._weak and not weak):
                self._globals[symbol.name] = definition
                (self._weak.add if weak else self._weak.discard)(symbol.name)

    @property
    def functions(self) -> Iterable[Definition]:
        return (f for unit in self.units for f in unit.functions if self._linked(f))

    @property
    def data(self) -> Iterable[Definition]:
        yield from (d for unit in self.units for d in unit.data if self._linked(d))
        yield from self._commons.values()

    def _linked(self, definition: Definition) -> bool:
        """Whether the linker takes it: not when another unit's definition has all its names."""
        names = definition.exported_as
        return len(names) < len(definition.symbols) or any(
            self._globals[name] is definition for name in names
        )

    def named(self, name: str) -> Definition | None:
        """What the global ``name`` is; None when no unit defines it."""
        return self._globals.get(name) or self._commons.get(name)

    def meant(self, unit: Unit, reference: Reference) -> Definition | None:
        """The definition of what a ``reference`` of ``unit`` names; None when no unit has it."""
        symbol = reference.symbol
        if reference.kind in ("function", "data") and symbol is not None:
            found = unit.by_place.get((symbol.section, symbol.value))
            if found is not None and not self._linked(found):
                return self.named(found.exported_as[0])
            return found
        if reference.kind == "undefined":
            return self.named(reference.name)
        return None


def _unit(number: int, obj: CompiledObject) -> Unit:
    unit = Unit(number, NormalForms(obj))
    places: dict[tuple[int, int], list[CompiledSymbol]] = {}
    for symbol in obj.symbols:
        if symbol.section in (SHN_UNDEF, SHN_ABS, SHN_COMMON) or not symbol.name:
            continue
        section = obj.sections[symbol.section]
        kinds = _FUNCTIONS if section.executable else (STT_OBJECT, STT_TLS, STT_COMMON)
        if section.allocated and symbol.type in kinds:
            places.setdefault((symbol.section, symbol.value), []).append(symbol)
    orders: dict[str, int] = {}
    for place, symbols in sorted(places.items()):
        section = obj.sections[place[0]]
        if section.executable:
            group = code_group(section.name)
            orders[group] = orders.get(group, -1) + 1
            definition = Definition(number, tuple(symbols), section, group, orders[group])
            unit.functions.append(definition)
        else:
            definition = Definition(number, tuple(symbols), section)
            unit.data.append(definition)
        unit.by_place[place] = definition
    return unit
