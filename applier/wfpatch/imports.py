# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a running process has the functions and variables that new code imports.

The address is what the process itself uses: the word in a slot of the patched object that the
dynamic linker filled in. Where there is none, the objects are searched as the dynamic linker would.
"""

from __future__ import annotations

from collections.abc import Sequence

from .dynamic_symbols import STT_GNU_IFUNC, STT_TLS, DynamicSymbol
from .elf_object import ObjectImage, link_order
from .errors import Refused
from .patch_elf import ImportedSymbol

VDSO = "[vdso]"


class Imports:
    """Resolves the imports of one object's new code; raises Refused ``symbol_not_found``."""

    def __init__(self, image: ObjectImage, images: Sequence[ObjectImage]) -> None:
        self._image = image
        self._images = images
        self._order: tuple[ObjectImage, ...] | None = None

    def address(self, symbol: ImportedSymbol, called: bool) -> int:
        """The run-time address of an import; ``called`` tells that a stub jumps to it."""
        known = self._image.slots_of(symbol.name, symbol.version)
        strange = {self._image.address(slot) for slot in symbol.got} - set(known)
        if strange:
            raise self._not_found(
                symbol,
                f"the patch says that {self._image.path} has its address at "
                f"{min(strange):#x}, its relocations there say otherwise",
            )
        own = self._image.resolved(symbol.name, symbol.version)
        address = self._search(symbol) if own is None else own
        # a slot's value is the process's word: only what lies inside of an object is believed
        if not any(i.in_text(address) if called else address in i for i in self._images):
            raise self._not_found(
                symbol, f"its address {address:#x} lies in no object's code or data"
            )
        return address

    def _search(self, symbol: ImportedSymbol) -> int:
        if self._order is None:
            # the vdso is in the dynamic linker's list, but nothing is ever bound to it by name
            self._order = tuple(i for i in link_order(self._images) if i.path != VDSO)
        for image in self._order:
            found = image.definition(symbol.name, symbol.version)
            if found is None:
                continue
            if found.type == STT_TLS:
                raise self._not_found(symbol, f"it is thread-local in {image.path}")
            if found.type == STT_GNU_IFUNC:
                return self._indirect(symbol, image, found)
            return image.address(found.value)
        version = f" version {symbol.version}" if symbol.version else ""
        raise self._not_found(
            symbol, f"none of its {len(self._images)} objects defines it{version}"
        )

    def _indirect(self, symbol: ImportedSymbol, owner: ObjectImage, found: DynamicSymbol) -> int:
        """An IFUNC's choice was made when some object was loaded: take it from there.

        Its resolver is code of the process, which nobody but the process may run.
        """
        for image in self._images:
            value = image.resolved(symbol.name, found.version)
            if value is not None and value in owner:
                return value
        chosen = owner.resolved_ifunc(found.value)
        if chosen is None:
            raise self._not_found(
                symbol, f"it is an indirect function of {owner.path} that no object has used yet"
            )
        return chosen

    def _not_found(self, symbol: ImportedSymbol, why: str) -> Refused:
        return Refused(
            "symbol_not_found",
            f"{symbol.name!r}, which the patch for {self._image.path} imports, was not found: "
            f"{why}; rebuild the patch for the build that runs here",
            symbol=symbol.name,
            version=symbol.version,
            object=self._image.path,
        )
