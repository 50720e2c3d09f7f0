# SPDX-License-Identifier: GPL-3.0-or-later
"""The stock binary together with the symbols that were found for it.

The symbols come from the unstripped binary of an exact rebuild, or from matching; either way they
are link-time addresses of the stock object. A name alone does not name a local: two files may both
have a static function `init`, so locals are looked up within the unit (the object file) they are
from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from wfpatch_build.compiled_object import STB_LOCAL, STT_FUNC, STT_OBJECT, STT_TLS, CompiledObject
from wfpatch_build.object_file import ObjectFile, Symbol

_CODE = ("STT_FUNC", "STT_GNU_IFUNC")
_DATA = ("STT_OBJECT", "STT_NOTYPE", "STT_COMMON")
_TLS = ("STT_TLS",)


class Stock:
    """The stock object and its symbols."""

    def __init__(self, image: ObjectFile, symbols: Iterable[Symbol]) -> None:
        self.image = image
        self.symbols = tuple(s for s in symbols if s.section is not None and s.name)
        self._local: dict[tuple[int, str], list[Symbol]] = {}
        self._global: dict[str, list[Symbol]] = {}
        # Symbols of hidden visibility or kept back by a version script: ld lists them as locals
        # behind a nameless STT_FILE.
        self._forced: dict[str, list[Symbol]] = {}
        for symbol in self.symbols:
            if symbol.binding != "STB_LOCAL":
                # A library's variable that a copy relocation moved here is spelt with its version.
                # Of several versions the default one (@@) comes first.
                plain, at, _ = symbol.name.partition("@")
                known = self._global.setdefault(plain, [])
                known.insert(0 if not at or "@@" in symbol.name else len(known), symbol)
            elif symbol.file is None:
                self._forced.setdefault(symbol.name, []).append(symbol)
            else:
                self._local.setdefault((symbol.unit, symbol.name), []).append(symbol)

    @functools.cached_property
    def _units(self) -> dict[str, dict[int, set[str]]]:
        """File name -> unit -> names of its local functions and data."""
        found: dict[str, dict[int, set[str]]] = {}
        for symbol in self.symbols:
            if symbol.binding == "STB_LOCAL" and symbol.file and symbol.type != "STT_SECTION":
                found.setdefault(symbol.file, {}).setdefault(symbol.unit, set()).add(symbol.name)
        return found

    def unit_of(self, obj: CompiledObject, rank: int = 0) -> int | None:
        """The unit that ``obj`` became in the link: the same file name, most locals in common.

        ``rank``: the how-manieth of the linked objects with that file name it is; decides between
        units that are alike.
        """
        candidates = self._units.get(obj.source_file or "", {})
        own = {
            s.name
            for s in obj.symbols
            if s.binding == STB_LOCAL and s.type in (STT_FUNC, STT_OBJECT, STT_TLS) and s.section
        }
        if not candidates:
            return None
        ordered = sorted(candidates)
        return max(
            ordered,
            key=lambda unit: (
                len(own & candidates[unit]) - len(own ^ candidates[unit]),
                ordered.index(unit) == rank,
                -unit,
            ),
        )

    def _find(self, name: str, unit: int | None, types: tuple[str, ...]) -> Symbol | None:
        for table in (
            self._local.get((unit, name), ()) if unit is not None else (),
            self._global.get(name, ()),
            self._forced.get(name, ()),
        ):
            for symbol in table:
                if symbol.type in types:
                    return symbol
        return None

    def function(self, name: str, unit: int | None) -> Symbol | None:
        """The function ``name``, as seen from the object file ``unit``."""
        return self._find(name, unit, _CODE)

    def datum(self, name: str, unit: int | None) -> Symbol | None:
        return self._find(name, unit, _DATA)

    def thread_local(self, name: str, unit: int | None) -> Symbol | None:
        return self._find(name, unit, _TLS)

    def any(self, name: str, unit: int | None) -> Symbol | None:
        """Whatever ``name`` is."""
        return self._find(name, unit, (*_CODE, *_DATA, *_TLS))

    @functools.cached_property
    def functions(self) -> tuple[Symbol, ...]:
        """All function symbols, clones and cold parts among them, one per address."""
        unique: dict[int, Symbol] = {}
        for symbol in self.symbols:
            if symbol.type in _CODE and symbol.size:
                unique.setdefault(symbol.address, symbol)
        return tuple(unique.values())
