# SPDX-License-Identifier: GPL-3.0-or-later
"""Who owns each symbol that new code uses but the patch does not bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wfpatch_build.errors import Refusal
from wfpatch_build.object_file import ObjectFile, Symbol
from wfpatch_build.stock import Stock

_KINDS = {
    "STT_FUNC": "function",
    "STT_GNU_IFUNC": "function",
    "STT_OBJECT": "data",
    "STT_COMMON": "data",
    "STT_TLS": "tls",
}


def object_owner(symbol: Symbol) -> dict[str, Any]:
    """The metadata of a symbol that the stock object itself has."""
    return {
        "owner": "object",
        "name": symbol.name.partition("@")[0],
        "file": symbol.file,
        "kind": _KINDS.get(symbol.type, "data"),
        "address": symbol.address,
        "size": symbol.size,
    }


def import_owner(image: ObjectFile, name: str, called: bool) -> dict[str, Any]:
    """The metadata of a symbol of another object; ``called``: new code calls it directly."""
    known = next((s for s in image.dynsym if s.name == name), None)
    kind = _KINDS.get(known.type, "") if known is not None else ""
    return {
        "owner": "import",
        "name": name,
        "version": None if known is None else known.version,
        "kind": kind or ("function" if called else "data"),
        "got": sorted(image.got_slots.get(name, ())),
    }


class SymbolOwners:
    """Resolves names as the code of one object file sees them."""

    def __init__(
        self, stock: Stock, unit: int | None, importable: Callable[[str], bool] | None = None
    ) -> None:
        self.stock = stock
        self.unit = unit
        self._importable = importable
        self._exported = {s.name: s for s in stock.image.dynsym if s.section is not None}

    def of_global(self, name: str, called: bool) -> dict[str, Any]:
        """Owner of a symbol that the object file leaves undefined or that may be interposed.

        Raises Refusal("symbol_not_found") when neither the object nor any of the libraries it
        needs is known to define it.
        """
        image = self.stock.image
        if image.kind == "shared_library" and image.got_slots.get(name):
            # The library goes through this slot itself, so that others can interpose the name.
            return import_owner(image, name, called)
        symbol = self.stock.any(name, self.unit) or self._exported.get(name)
        if symbol is not None:
            return object_owner(symbol)
        if name in image.got_slots or self._importable is None or self._importable(name):
            return import_owner(image, name, called)
        raise Refusal(
            "symbol_not_found",
            f"the new code uses {name}, which {image.name} does not have and no library that it "
            "needs exports",
            symbol=name,
        )
