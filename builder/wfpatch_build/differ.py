# SPDX-License-Identifier: GPL-3.0-or-later
"""What a patch changes in one object file: functions and data, by normal form.

A function is its main body and its `.cold` part together. A caller whose source is untouched but
whose code differs (inlining, register use under -fipa-ra, a clone that came or went) is changed.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from wfpatch_build.compiled_object import (
    STB_LOCAL,
    STT_OBJECT,
    STT_TLS,
    CompiledObject,
    CompiledSymbol,
)
from wfpatch_build.normal_form import Canonical, NormalForms, Token, no_name, own_name
from wfpatch_build.pairing import Pairing, group_name, is_compiler_made, pair, source_name

COLD = ".cold"


def is_cold(name: str) -> bool:
    """Whether the symbol is the cold part of another one."""
    return group_name(name).endswith(COLD)


def cold_parent(name: str) -> str:
    """`f.cold` and `f.cold.3` belong to `f`."""
    return name[: name.rindex(COLD)]


@dataclass(frozen=True)
class DataChange:
    """A named datum whose declaration changed: ``what`` is size, kind, content or removed."""

    name: str
    what: str
    writable: bool
    relocated: bool
    is_local: bool
    detail: str


class CodeAndData:
    """The functions and named data of one compiled object."""

    def __init__(self, obj: CompiledObject) -> None:
        self.obj = obj
        self.forms = NormalForms(obj)
        self.functions = {n: s for n, s in obj.functions.items() if not is_cold(n)}
        self.colds: dict[str, list[CompiledSymbol]] = {}
        for name, symbol in obj.functions.items():
            if is_cold(name):
                self.colds.setdefault(cold_parent(name), []).append(symbol)
        self.data = {
            s.name: s
            for s in obj.symbols
            if s.type in (STT_OBJECT, STT_TLS)
            and 0 < s.section < len(obj.sections)
            and obj.sections[s.section].allocated
        }

    def form(self, name: str, canonical: Canonical) -> list[Token]:
        """The normal form of a function, its cold parts behind its main body."""
        tokens = self.forms.function(self.functions[name], canonical)
        for cold in self.colds.get(name, ()):
            tokens += [("cold",), *self.forms.function(cold, canonical)]
        return tokens

    def shape(self, name: str) -> list[Token]:
        return self.form(name, no_name)

    @functools.cached_property
    def users(self) -> dict[str, frozenset[str]]:
        """Name of a datum -> source names of the functions that refer to it."""
        found: dict[str, set[str]] = {}
        for name, symbol in self.obj.functions.items():
            section = self.obj.sections[symbol.section]
            for relocation in section.relocations:
                if symbol.value <= relocation.offset < symbol.value + symbol.size:
                    reference = self.forms.references.resolve(section, relocation)
                    if reference.kind == "data":
                        found.setdefault(reference.name, set()).add(source_name(name))
        return {name: frozenset(names) for name, names in found.items()}

    def data_shape(self, name: str) -> Sequence[Hashable]:
        return (self.forms.datum(self.data[name], no_name), self.users.get(name, frozenset()))


class ObjectDiff:
    """The differences between two compilations of one source file.

    ``changed``: (old name, new name) of functions whose code differs; ``added`` and ``removed``
    functions; ``data_changes`` of existing data; ``added_data``.
    """

    def __init__(self, old: CompiledObject, new: CompiledObject) -> None:
        self.old = CodeAndData(old)
        self.new = CodeAndData(new)
        self.functions = pair(
            self.old.functions, self.new.functions, self.old.shape, self.new.shape
        )
        self.data = pair(self.old.data, self.new.data, self.old.data_shape, self.new.data_shape)
        self._cold = Pairing(
            {
                symbol.name: f"{self.functions.old_of[name]}{COLD}"
                for name, symbols in self.new.colds.items()
                if name in self.functions.old_of
                for symbol in symbols
            },
            (),
            (),
        )

    def canonical(self, kind: str, name: str) -> str:
        """Names of the new object as the old one spells them."""
        if kind == "function":
            pairing = self._cold if is_cold(name) else self.functions
            return pairing.canonical(name)
        if kind == "data":
            if name in self.changed_content:
                return f"\0changed:{name}"
            return self.data.canonical(name)
        return name

    @staticmethod
    def old_canonical(kind: str, name: str) -> str:
        if kind == "function" and is_cold(name):
            return f"{cold_parent(name)}{COLD}"
        return own_name(kind, name)

    @functools.cached_property
    def changed_content(self) -> frozenset[str]:
        """New names of paired read-only data whose bytes differ: users must get the new ones.

        Found on the data's own bytes, references left out; those are compared in data_changes.
        """
        changed = set()
        for new_name, old_name in self.data.old_of.items():
            symbol = self.new.data[new_name]
            if self.new.obj.sections[symbol.section].writable:
                continue
            if self.new.forms.datum(symbol, no_name) != self.old.forms.datum(
                self.old.data[old_name], no_name
            ):
                changed.add(new_name)
        return frozenset(changed)

    @functools.cached_property
    def changed(self) -> tuple[tuple[str, str], ...]:
        """(old name, new name) of the paired functions whose normal forms differ."""
        return tuple(
            (old, new)
            for new, old in sorted(self.functions.old_of.items())
            if self.old.form(old, self.old_canonical) != self.new.form(new, self.canonical)
        )

    @property
    def added(self) -> tuple[str, ...]:
        return self.functions.added

    @property
    def removed(self) -> tuple[str, ...]:
        return self.functions.removed

    @property
    def added_data(self) -> tuple[str, ...]:
        return self.data.added

    @functools.cached_property
    def data_changes(self) -> tuple[DataChange, ...]:
        """What happened to data that the old code knows."""
        found = []
        for new_name, old_name in sorted(self.data.old_of.items()):
            new, old = self.new.data[new_name], self.old.data[old_name]
            after = self.new.forms.datum(new, self.canonical)
            before = self.old.forms.datum(old, self.old_canonical)
            if before == after:
                continue
            if before[:2] != after[:2]:
                what, detail = "kind", "moves between read-only, writable and thread-local data"
            elif old.size != new.size:
                what, detail = "size", f"{old.size} bytes become {new.size}"
            else:
                what, detail = "content", "the initial bytes differ"
            found.append(self._data_change(old_name, what, detail))
        for name in self.data.removed:
            found.append(self._data_change(name, "removed", "no longer defined"))
        return tuple(found)

    def _data_change(self, name: str, what: str, detail: str) -> DataChange:
        symbol = self.old.data[name]
        section = self.old.obj.sections[symbol.section]
        references = self.old.forms.references
        relocated = any(
            references.resolve(section, r).kind != "string"
            for r in section.relocations
            if symbol.value <= r.offset < symbol.value + symbol.size
        )
        return DataChange(
            name,
            what,
            section.writable,
            relocated,
            symbol.binding == STB_LOCAL or is_compiler_made(name),
            detail,
        )

    @property
    def is_empty(self) -> bool:
        return not (self.changed or self.added or self.removed or self.data_changes)
