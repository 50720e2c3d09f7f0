# SPDX-License-Identifier: GPL-3.0-or-later
"""An object's dynamic symbols, their versions, and the slots that hold its imports' addresses.

All is read from the process's memory. Sources: System V ABI chapter 5, its AMD64 supplement, the
LSB's symbol versioning, and binutils' description of DT_GNU_HASH.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .object_memory import ObjectMemory

DT_NULL, DT_NEEDED, DT_PLTRELSZ, DT_HASH, DT_STRTAB, DT_SYMTAB = 0, 1, 2, 4, 5, 6
DT_RELA, DT_RELASZ, DT_RELAENT, DT_STRSZ, DT_SYMENT, DT_SONAME = 7, 8, 9, 10, 11, 14
DT_DEBUG, DT_JMPREL, DT_BIND_NOW, DT_FLAGS = 21, 23, 24, 30
DT_GNU_HASH, DT_VERSYM, DT_RELACOUNT = 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFF9
DT_FLAGS_1, DT_VERDEF, DT_VERDEFNUM = 0x6FFFFFFB, 0x6FFFFFFC, 0x6FFFFFFD
DT_VERNEED, DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
DF_BIND_NOW, DF_1_NOW = 8, 1

R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT = 1, 6, 7
R_X86_64_RELATIVE, R_X86_64_TPOFF64, R_X86_64_IRELATIVE = 8, 18, 37
SHN_UNDEF = 0
STT_OBJECT, STT_FUNC, STT_TLS, STT_GNU_IFUNC = 1, 2, 6, 10
STB_LOCAL = 0

_MAX_DYNAMIC = 4096  # entries
_MAX_RELOCATIONS = 1 << 22
_MAX_VERSIONS = 1 << 16
_MAX_CHAIN = 1 << 16
_VERSION_HIDDEN = 0x8000


@dataclass(frozen=True)
class DynamicSymbol:
    """A row of .dynsym; ``value`` as linked (or the offset in the TLS block)."""

    name: str
    type: int
    defined: bool
    value: int
    size: int
    version: str | None
    hidden: bool


@dataclass(frozen=True)
class Slot:
    """An 8-byte word that the dynamic linker fills in. ``address`` and ``addend`` as linked.

    ``symbol`` is an index into .dynsym (0: none); ``place`` is the relocation's number in its
    table, which a lazy PLT entry pushes.
    """

    address: int
    type: int
    symbol: int
    addend: int
    place: int


def gnu_hash(name: bytes) -> int:
    """The hash of DT_GNU_HASH."""
    value = 5381
    for byte in name:
        value = value * 33 + byte & 0xFFFFFFFF
    return value


def sysv_hash(name: bytes) -> int:
    """The hash of DT_HASH (gABI, figure 5-13)."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value


class DynamicSymbols:
    """The dynamic section of one object. Raises Failed ``object_malformed``."""

    def __init__(self, memory: ObjectMemory, bias: int, address: int, size: int) -> None:
        """``address`` is the run-time address of the dynamic section, ``size`` its bytes."""
        self._memory = memory
        self._bias = bias
        self.tags: dict[int, int] = {}
        self._needed: list[int] = []
        count = min(size // 16, _MAX_DYNAMIC)
        for tag, value in struct.iter_unpack("<qQ", memory.read(address, 16 * count)):
            if tag == DT_NULL:
                break
            if tag == DT_NEEDED:
                self._needed.append(value)
            else:
                self.tags.setdefault(tag, value)

    def _pointer(self, tag: int) -> int:
        """The run-time address in a tag, 0 without the tag.

        glibc replaces most of these by run-time addresses while it loads the object, but not all
        (DT_VERNEED, DT_VERDEF), other loaders and the kernel (vdso) none; so look where it leads.
        """
        value = self.tags.get(tag, 0)
        if not value or self._memory.start <= value < self._memory.end:
            return value
        return value + self._bias

    @property
    def bind_now(self) -> bool:
        """Whether all imports are resolved before the object runs."""
        return bool(
            DT_BIND_NOW in self.tags
            or self.tags.get(DT_FLAGS, 0) & DF_BIND_NOW
            or self.tags.get(DT_FLAGS_1, 0) & DF_1_NOW
        )

    @cached_property
    def soname(self) -> str | None:
        """DT_SONAME."""
        return self._string(self.tags[DT_SONAME]) if DT_SONAME in self.tags else None

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """DT_NEEDED, in order."""
        return tuple(self._string(offset) for offset in self._needed)

    def _string(self, offset: int) -> str:
        table = self._pointer(DT_STRTAB)
        if not table or offset >= self.tags.get(DT_STRSZ, 0):
            self._memory.fail(f"a dynamic string lies at {offset:#x}, beyond the string table")
        return self._memory.string(table + offset)

    def symbol(self, index: int) -> DynamicSymbol:
        """Row ``index`` of .dynsym."""
        table = self._pointer(DT_SYMTAB)
        if not table or self.tags.get(DT_SYMENT, 24) != 24:
            self._memory.fail("it has no dynamic symbol table")
        name, info, _, section, value, size = self._memory.unpack("IBBHQQ", table + 24 * index)
        version, hidden = self._version(index)
        return DynamicSymbol(
            self._string(name), info & 0xF, section != SHN_UNDEF, value, size, version, hidden
        )

    def _version(self, index: int) -> tuple[str | None, bool]:
        table = self._pointer(DT_VERSYM)
        if not table:
            return None, False
        (number,) = self._memory.unpack("H", table + 2 * index)
        return self._versions.get(number & ~_VERSION_HIDDEN), bool(number & _VERSION_HIDDEN)

    @cached_property
    def _versions(self) -> dict[int, str]:
        """Version index -> name, of both the needed and the defined ones."""
        versions: dict[int, str] = {}
        for number, name in self._version_needs():
            versions[number] = name
        for number, name in self._version_definitions():
            versions[number] = name
        return versions

    def _version_needs(self) -> Iterator[tuple[int, str]]:
        place = self._pointer(DT_VERNEED)
        left = min(self.tags.get(DT_VERNEEDNUM, 0), _MAX_VERSIONS) if place else 0
        budget = _MAX_VERSIONS
        while left:
            _, count, _, first, following = self._memory.unpack("HHIII", place)
            auxiliary = place + first
            for _ in range(count):
                budget -= 1
                if budget < 0:
                    self._memory.fail("its version table does not end")
                _, _, number, name, step = self._memory.unpack("IHHII", auxiliary)
                yield number & ~_VERSION_HIDDEN, self._string(name)
                if not step:
                    break
                auxiliary += step
            if not following:
                break
            place += following
            left -= 1

    def _version_definitions(self) -> Iterator[tuple[int, str]]:
        place = self._pointer(DT_VERDEF)
        left = min(self.tags.get(DT_VERDEFNUM, 0), _MAX_VERSIONS) if place else 0
        while left:
            _, _, number, count, _, first, following = self._memory.unpack("HHHHIII", place)
            if count:
                name, _ = self._memory.unpack("II", place + first)
                yield number & ~_VERSION_HIDDEN, self._string(name)
            if not following:
                break
            place += following
            left -= 1

    # -- definitions ------------------------------------------------------------------------------

    def definitions(self, name: str) -> Iterator[DynamicSymbol]:
        """The symbols of that name that the object defines, one for each version."""
        encoded = name.encode("utf-8", "surrogateescape")
        indices = (
            self._gnu_chain(encoded) if DT_GNU_HASH in self.tags else self._sysv_chain(encoded)
        )
        for index in indices:
            symbol = self.symbol(index)
            if symbol.name == name and symbol.defined:
                yield symbol

    def definition(self, name: str, version: str | None) -> DynamicSymbol | None:
        """The definition that a reference binds to; without a version, the default one."""
        for symbol in self.definitions(name):
            if version is None:
                if not symbol.hidden:
                    return symbol
            elif symbol.version == version or symbol.version is None:
                # an object without versions satisfies any (ld.so(8))
                return symbol
        return None

    def _gnu_chain(self, name: bytes) -> Iterator[int]:
        """Indices of symbols with the name's hash; the chain word lacks the hash's last bit."""
        table = self._pointer(DT_GNU_HASH)
        buckets, offset, bloom, _ = self._memory.unpack("IIII", table)
        if not buckets:
            return
        value = gnu_hash(name)
        bucket_table = table + 16 + 8 * bloom
        (index,) = self._memory.unpack("I", bucket_table + 4 * (value % buckets))
        if index < offset:
            return
        chain = bucket_table + 4 * buckets
        for _ in range(_MAX_CHAIN):
            (word,) = self._memory.unpack("I", chain + 4 * (index - offset))
            if word | 1 == value | 1:
                yield index
            if word & 1:
                return
            index += 1
        self._memory.fail("a hash chain does not end")

    def _sysv_chain(self, name: bytes) -> Iterator[int]:
        table = self._pointer(DT_HASH)
        if not table:
            return
        buckets, chains = self._memory.unpack("II", table)
        if not buckets:
            return
        bucket = table + 8 + 4 * (sysv_hash(name) % buckets)
        (index,) = self._memory.unpack("I", bucket)
        for _ in range(min(chains, _MAX_CHAIN)):
            if not index:
                return
            yield index
            (index,) = self._memory.unpack("I", table + 8 + 4 * buckets + 4 * index)

    # -- imports ----------------------------------------------------------------------------------

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Words filled in by symbol: GOT and PLT slots, pointers in data, TLS offsets, IFUNCs.

        Relative relocations, of which there may be a million, are left out.
        """
        found: list[Slot] = []
        skip = self.tags.get(DT_RELACOUNT, 0)
        for tag, size_tag, leading in ((DT_RELA, DT_RELASZ, skip), (DT_JMPREL, DT_PLTRELSZ, 0)):
            table, size = self._pointer(tag), self.tags.get(size_tag, 0)
            if not table or not size:
                continue
            if size > 24 * _MAX_RELOCATIONS or size % 24:
                self._memory.fail(f"its relocation table has {size} bytes")
            leading = min(leading, size // 24)
            data = self._memory.read(table + 24 * leading, size - 24 * leading)
            for place, (address, info, addend) in enumerate(
                struct.iter_unpack("<QQq", data), leading
            ):
                kind = info & 0xFFFFFFFF
                if kind != R_X86_64_RELATIVE:
                    found.append(Slot(address, kind, info >> 32, addend, place))
        return tuple(found)

    @cached_property
    def imports(self) -> dict[str, tuple[tuple[DynamicSymbol, Slot], ...]]:
        """Name -> the slots that hold the symbol's very address, whoever defines it."""
        found: dict[str, list[tuple[DynamicSymbol, Slot]]] = {}
        symbols: dict[int, DynamicSymbol] = {}
        kinds = (R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT)
        for slot in self.slots:
            if slot.type in kinds and slot.symbol and (slot.type != R_X86_64_64 or not slot.addend):
                symbol = symbols.get(slot.symbol)
                if symbol is None:
                    symbol = symbols[slot.symbol] = self.symbol(slot.symbol)
                found.setdefault(symbol.name, []).append((symbol, slot))
        return {name: tuple(pairs) for name, pairs in found.items()}
