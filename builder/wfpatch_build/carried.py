# SPDX-License-Identifier: GPL-3.0-or-later
"""Collects what a patch ELF carries: new code, and the strings, tables and data it needs.

Starting from the changed functions, every relocation is followed. It ends at something that the
stock object has (an undefined symbol, to be linked to the running process) or at something that the
patch must bring along. A replaced function is never named directly but by its stock entry, so that
calls of it from new code go through the generation table like all others.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from wfpatch_build.compiled_object import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_NOBITS,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    CompiledRelocation,
    CompiledSection,
    CompiledSymbol,
)
from wfpatch_build.differ import CodeAndData, cold_parent, is_cold
from wfpatch_build.elf_writer import OutRelocation, OutSection, OutSymbol
from wfpatch_build.errors import Refusal
from wfpatch_build.object_change import ObjectChange
from wfpatch_build.pairing import is_compiler_made
from wfpatch_build.references import (
    R_64,
    R_GOTPCREL,
    R_GOTPCRELX,
    R_GOTTPOFF,
    R_PC32,
    R_PC64,
    R_PLT32,
    R_REX_GOTPCRELX,
    R_TPOFF32,
    THREAD_LOCAL,
    Reference,
)
from wfpatch_build.stock import Stock
from wfpatch_build.symbols import SymbolOwners, object_owner

CARRIED_RELOCATIONS = frozenset(
    (R_64, R_PC32, R_PLT32, R_GOTPCREL, R_GOTPCRELX, R_REX_GOTPCRELX, R_TPOFF32, R_GOTTPOFF, R_PC64)
)


class Carried:
    """The growing content of one patch ELF."""

    def __init__(
        self,
        stock: Stock,
        changes: Sequence[ObjectChange],
        importable: Callable[[str], bool] | None = None,
    ) -> None:
        self.stock = stock
        self.sections: list[OutSection] = []
        self.symbols: dict[str, OutSymbol] = {}
        self.owners: dict[str, dict[str, Any]] = {}  # undefined symbol's name -> its owner
        self._names: set[str] = set()
        self._parts = [_Part(self, change, importable) for change in changes]

    def add_replaced(self, change: ObjectChange, new_name: str) -> str:
        """Carry a replaced function; returns the name of its entry in the symbol table."""
        part = self._part_of(change)
        return self.symbols[part.function(new_name)].name

    def finish(self) -> None:
        """Follow the relocations of all code that was added, then carry its unwind tables."""
        # Following one part's references may place code of another.
        while sum(part.relocate_pending() for part in self._parts):
            pass
        unwind = OutSection(".eh_frame", SHF_ALLOC, 8)
        for part in self._parts:
            part.unwind(unwind)
        if unwind.data:
            self.sections.append(unwind)

    def _part_of(self, change: ObjectChange) -> _Part:
        return next(p for p in self._parts if p.change is change)

    def defined_elsewhere(self, name: str) -> str | None:
        """Carry a global function or datum that another object of the patch adds; its key."""
        for part in self._parts:
            key = part.added_global(name)
            if key is not None:
                return key
        return None

    def section(self, name: str, flags: int, alignment: int) -> OutSection:
        section = OutSection(name, flags, alignment)
        self.sections.append(section)
        return section

    def pool(self, name: str, content: bytes, alignment: int) -> tuple[OutSection, int]:
        """Place read-only bytes in a pool section, once for equal bytes; (section, offset)."""
        section = next((s for s in self.sections if s.name == name), None)
        if section is None:
            section = self.section(name, SHF_ALLOC, alignment)
        section.alignment = max(section.alignment, alignment)
        at = section.data.find(content)
        while at >= 0 and at % alignment:
            at = section.data.find(content, at + 1)
        if at < 0:
            section.data += bytes(-len(section.data) % alignment)
            at = len(section.data)
            section.data += content
        return section, at

    def define(
        self, key: str, name: str, type: int, section: OutSection, value: int, size: int
    ) -> str:
        self.symbols[key] = OutSymbol(key, self._unique(name), type, section, value, size)
        return key

    def undefined(self, owner: dict[str, Any]) -> str:
        """The key of an undefined symbol with this owner; one symbol per distinct owner."""
        for name, known in self.owners.items():
            if known == owner:
                return f"undefined:{name}"
        name = self._unique(str(owner["name"]))
        self.owners[name] = owner
        key = f"undefined:{name}"
        self.symbols[key] = OutSymbol(key, name, STT_NOTYPE)
        return key

    def _unique(self, name: str) -> str:
        """``name``, with a number behind it if it is taken: two files may have one static name."""
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}~{number}"
        self._names.add(candidate)
        return candidate


class _Part:
    """What is carried of one object file."""

    def __init__(
        self, carried: Carried, change: ObjectChange, importable: Callable[[str], bool] | None
    ) -> None:
        self.carried = carried
        self.change = change
        self.new: CodeAndData = change.diff.new
        self.obj = change.post
        self.unit = change.stock_unit(carried.stock)
        self.owners = SymbolOwners(carried.stock, self.unit, importable)
        self._changed = {new for _, new in change.diff.changed}
        self._functions: dict[str, str] = {}  # name of carried code -> key
        self._pending: list[tuple[CompiledSymbol, OutSection]] = []
        self._data: dict[tuple[int, int], str] = {}  # (section, start) of carried data -> key
        self._label = change.unit.call.object_of(change.unit.source)

    def _key(self, name: str) -> str:
        return f"{self._label}:{name}"

    # -- code -----------------------------------------------------------------------------------

    def function(self, name: str) -> str:
        """Carry a function with its cold parts; the key of its entry's symbol.

        Its relocations wait until all replaced functions have their places (and their names).
        """
        if name not in self._functions:
            for piece in (self.new.functions[name], *self.new.colds.get(name, ())):
                self._pending.append((piece, self._place(piece)))
        return self._functions[name]

    def relocate_pending(self) -> int:
        """Follow the relocations of code placed since the last call; returns how many pieces."""
        pending, self._pending = self._pending, []
        for piece, section in pending:
            self._relocate_code(piece, section)
        return len(pending)

    def _place(self, symbol: CompiledSymbol) -> OutSection:
        original = self.obj.sections[symbol.section]
        section = self.carried.section(
            original.name, SHF_ALLOC | SHF_EXECINSTR, max(original.alignment, 1)
        )
        section.data = original.data[symbol.value : symbol.value + symbol.size]
        self._functions[symbol.name] = self.carried.define(
            self._key(symbol.name), symbol.name, STT_FUNC, section, 0, symbol.size
        )
        return section

    def _relocate_code(self, symbol: CompiledSymbol, section: OutSection) -> None:
        original = self.obj.sections[symbol.section]
        for relocation in original.relocations:
            if symbol.value <= relocation.offset < symbol.value + symbol.size:
                self._relocate(original, relocation, section, symbol.value)

    def _relocate(
        self,
        original: CompiledSection,
        relocation: CompiledRelocation,
        section: OutSection,
        start: int,
    ) -> None:
        """Translate one relocation of ``original`` into ``section``, which begins at ``start``."""
        if relocation.type not in CARRIED_RELOCATIONS:
            raise Refusal(
                "unsupported_relocation",
                f"{self.obj.name}, section {original.name}: relocation type {relocation.type} at "
                f"{relocation.offset:#x} is not carried by patch ELFs",
                type=relocation.type,
            )
        references = self.new.forms.references
        reference = references.resolve(original, relocation)
        if self._jumps_within(original, relocation, reference):
            key, offset = self._functions[reference.name], reference.offset
        else:
            key, offset = self._target(reference, relocation)
        section.relocations.append(
            OutRelocation(
                relocation.offset - start,
                relocation.type,
                key,
                offset - references.distance(original, relocation),
            )
        )

    def _jumps_within(
        self, original: CompiledSection, relocation: CompiledRelocation, reference: Reference
    ) -> bool:
        """A jump between main body and cold part, even to the very first instruction, stays within
        the new code: at such a place the registers do not hold what a caller of the entry passes.
        """
        if not original.executable or reference.name not in self._functions:
            return False
        source = self.new.forms.references.at(original.index, relocation.offset)
        parents = {cold_parent(n) if is_cold(n) else n for n in (source.name, reference.name)}
        before = original.data[max(0, relocation.offset - 2) : relocation.offset]
        jumps = before[-1:] == b"\xe9" or (before[:1] == b"\x0f" and 0x80 <= before[1] <= 0x8F)
        return len(parents) == 1 and jumps

    # -- targets --------------------------------------------------------------------------------

    def _target(self, reference: Reference, relocation: CompiledRelocation) -> tuple[str, int]:
        """(symbol key, offset from that symbol) of a Reference."""
        kind = reference.kind
        if kind == "function":
            return self._function_target(reference)
        if kind == "undefined":
            return self._undefined_target(reference, relocation)
        if kind == "data":
            return self._data_target(reference, relocation)
        if kind == "string":
            section, at = self.carried.pool(".rodata.str", reference.content, 1)
            return self._pooled(section, at), reference.offset
        if kind == "constant":
            section, at = self.carried.pool(
                ".rodata.cst", reference.content, max(1, len(reference.content))
            )
            return self._pooled(section, at), reference.offset
        if kind == "anonymous" and self.obj.sections[reference.section].executable:
            raise Refusal(
                "inline_assembly",
                f"{self.obj.name}: new code refers to code outside of functions in "
                f"{reference.name}",
            )
        if kind == "anonymous":
            return self._anonymous(reference.section, reference.place), 0
        raise Refusal(
            "unsupported_relocation",
            f"{self.obj.name}: a reference to the absolute symbol {reference.name}",
        )

    def _pooled(self, section: OutSection, at: int) -> str:
        key = f"{section.name}+{at}"
        if key not in self.carried.symbols:
            self.carried.define(key, f".L{section.name[8:]}{at}", STT_NOTYPE, section, at, 0)
        return key

    def _function_target(self, reference: Reference) -> tuple[str, int]:
        name = reference.name
        if is_cold(name):
            return self._local_cold(name), reference.offset
        if reference.offset and name in self._functions:
            return self._functions[name], reference.offset  # back from the cold part
        stock_name = self.change.stock_function(name)
        symbol = None if stock_name is None else self.carried.stock.function(stock_name, self.unit)
        if symbol is not None and not reference.offset:
            if self.new.functions[name].binding and self.carried.stock.image.got_slots.get(name):
                return self.carried.undefined(self.owners.of_global(name, called=True)), 0
            return self.carried.undefined(object_owner(symbol)), 0
        # New, or brought by a patch before this one: the stock object has no such code.
        return self.function(name), reference.offset

    def _local_cold(self, name: str) -> str:
        if name not in self._functions:
            self.function(cold_parent(name))
        return self._functions[name]

    def _undefined_target(
        self, reference: Reference, relocation: CompiledRelocation
    ) -> tuple[str, int]:
        name = reference.name
        if name == "_GLOBAL_OFFSET_TABLE_":
            raise Refusal(
                "unsupported_relocation",
                f"{self.obj.name} computes the address of the global offset table",
            )
        key = self.carried.defined_elsewhere(name)
        if key is None:
            key = self.carried.undefined(
                self.owners.of_global(name, called=relocation.type == R_PLT32)
            )
        return key, reference.offset

    def added_global(self, name: str) -> str | None:
        """Carry ``name`` if this object defines it globally and the stock object does not."""
        symbol = self.new.functions.get(name)
        if symbol is not None and symbol.binding:
            stock_name = self.change.stock_function(name)
            if stock_name is None or self.carried.stock.function(stock_name, self.unit) is None:
                return self.function(name)
        symbol = self.new.data.get(name)
        if symbol is not None and symbol.binding:
            stock_name = self.change.stock_datum(name)
            if stock_name is None or self.carried.stock.any(stock_name, self.unit) is None:
                return self._carry_datum(symbol)
        return None

    def _data_target(self, reference: Reference, relocation: CompiledRelocation) -> tuple[str, int]:
        name = reference.name
        symbol = reference.symbol
        assert symbol is not None
        stock_name = self.change.stock_datum(name)
        thread_local = relocation.type in THREAD_LOCAL
        found = None
        if stock_name is not None and name not in self.change.diff.changed_content:
            find = self.carried.stock.thread_local if thread_local else self.carried.stock.datum
            found = find(stock_name, self.unit)
            if found is not None and not is_compiler_made(name):
                if symbol.binding and self.carried.stock.image.got_slots.get(name):
                    return self.carried.undefined(self.owners.of_global(name, False)), (
                        reference.offset
                    )
                return self.carried.undefined(object_owner(found)), reference.offset
        known_before = name in self.change.diff.data.old_of
        if known_before and found is None and self.obj.sections[symbol.section].writable:
            raise Refusal(
                "symbol_not_found",
                f"{name} of {self.obj.name} is not in {self.carried.stock.image.name}; if a "
                "patch before this one brought it, the new code cannot share it",
                symbol=name,
            )
        if thread_local:
            raise Refusal(
                "data_layout_changed",
                f"{name} of {self.obj.name} is a new thread-local variable: running threads have "
                "no room for it",
                symbol=name,
            )
        return self._carry_datum(symbol), reference.offset

    # -- data -----------------------------------------------------------------------------------

    def _carry_datum(self, symbol: CompiledSymbol) -> str:
        end = symbol.value + symbol.size
        return self._carry_bytes(symbol.section, symbol.value, end, symbol.name, STT_OBJECT)

    def _anonymous(self, number: int, place: int) -> str:
        end = self.new.forms.extent(number, place)
        name = f"{self.obj.sections[number].name}+{place:#x}"
        return self._carry_bytes(number, place, end, name, STT_NOTYPE)

    def _carry_bytes(self, number: int, start: int, end: int, name: str, type: int) -> str:
        key = self._data.get((number, start))
        if key is not None:
            return key
        original = self.obj.sections[number]
        # The start keeps the alignment it had in the original section.
        alignment = min(original.alignment, start & -start) if start else original.alignment
        section = self.carried.section(
            original.name, SHF_ALLOC | (original.flags & SHF_WRITE), alignment
        )
        key = self.carried.define(self._key(f"{name}@{start}"), name, type, section, 0, end - start)
        self._data[number, start] = key
        if original.type == SHT_NOBITS:
            section.zero_filled = max(1, end - start)
            return key
        section.data = original.data[start:end] or b"\0"
        for relocation in original.relocations:
            if start <= relocation.offset < end:
                if relocation.type == R_PC32 and self._leads_to_code(relocation):
                    self._table_entry(relocation, section, start)
                else:
                    self._relocate(original, relocation, section, start)
        return key

    def _leads_to_code(self, relocation: CompiledRelocation) -> bool:
        symbol = self.obj.symbols[relocation.symbol]
        return bool(symbol.section) and self.obj.sections[symbol.section].executable

    def _table_entry(self, relocation: CompiledRelocation, section: OutSection, start: int) -> None:
        """An entry of a switch table: target - table, both known only after loading."""
        symbol = self.obj.symbols[relocation.symbol]
        at = relocation.offset - start
        place = symbol.value + relocation.addend - at
        target = self.new.forms.references.at(symbol.section, place)
        if target.kind != "function" or target.name not in self._functions:
            raise Refusal(
                "unsupported_relocation",
                f"{self.obj.name}: a switch table leads into {target.name}, which is not carried",
            )
        section.relocations.append(
            OutRelocation(at, R_PC32, self._functions[target.name], target.offset + at)
        )

    # -- unwind tables ----------------------------------------------------------------------------

    def unwind(self, out: OutSection) -> None:
        """Append the FDEs of this part's carried code, each CIE once."""
        original = next((s for s in self.obj.sections if s.name == ".eh_frame"), None)
        if original is None:
            return
        cies: dict[int, int] = {}
        data = original.data
        at = 0
        while at + 4 <= len(data):
            length = struct.unpack_from("<I", data, at)[0]
            if length in (0, 0xFFFFFFFF):
                break
            end = at + 4 + length
            delta = struct.unpack_from("<I", data, at + 4)[0]
            if delta and self._describes_carried(original, at):
                cie = at + 4 - delta
                if cie not in cies:
                    cie_end = cie + 4 + struct.unpack_from("<I", data, cie)[0]
                    cies[cie] = self._copy_unwind(original, out, cie, cie_end)
                place = self._copy_unwind(original, out, at, end)
                pointer = struct.pack("<I", place + 4 - cies[cie])
                out.data = out.data[: place + 4] + pointer + out.data[place + 8 :]
            at = end

    def _describes_carried(self, original: CompiledSection, at: int) -> bool:
        relocation = original.relocation_at.get(at + 8)
        if relocation is None:
            return False
        reference = self.new.forms.references.resolve(original, relocation)
        return reference.kind == "function" and reference.name in self._functions

    def _copy_unwind(self, original: CompiledSection, out: OutSection, start: int, end: int) -> int:
        place = len(out.data)
        out.data += original.data[start:end]
        for relocation in original.relocations:
            if start <= relocation.offset < end:
                reference = self.new.forms.references.resolve(original, relocation)
                if reference.kind != "function" or reference.name not in self._functions:
                    # A personality routine (CIE) or a table of landing pads (FDE).
                    raise Refusal(
                        "exceptions_unsupported",
                        f"{self.obj.name}: new code catches exceptions or cleans up after them; "
                        "the process's unwinder does not know new code",
                    )
                at = relocation.offset - start + place
                key = self._functions[reference.name]
                out.relocations.append(OutRelocation(at, relocation.type, key, reference.offset))
        return place
