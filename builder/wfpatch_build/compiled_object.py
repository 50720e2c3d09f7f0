# SPDX-License-Identifier: GPL-3.0-or-later
"""An object file as the compiler made it (ET_REL), with one section per function and datum.

Offsets are within a section. Format: ELF-64 and the x86-64 psABI, chapter 4.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field
from pathlib import Path

from wfpatch_build.errors import Refusal

SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_RELA = 4
SHT_NOBITS = 8
SHF_WRITE = 1
SHF_ALLOC = 2
SHF_EXECINSTR = 4
SHF_MERGE = 0x10
SHF_STRINGS = 0x20
SHF_TLS = 0x400
SHN_UNDEF = 0
SHN_ABS = 0xFFF1
SHN_COMMON = 0xFFF2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_COMMON, STT_TLS = range(7)
STT_GNU_IFUNC = 10
STB_LOCAL, STB_GLOBAL, STB_WEAK = range(3)

_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")


@dataclass(frozen=True)
class CompiledSymbol:
    index: int
    name: str
    type: int
    binding: int
    section: int  # SHN_UNDEF, SHN_ABS or a section number
    value: int
    size: int

    @property
    def is_local(self) -> bool:
        return self.binding == STB_LOCAL


@dataclass(frozen=True)
class CompiledRelocation:
    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class CompiledSection:
    index: int
    name: str
    type: int
    flags: int
    alignment: int
    entry_size: int
    size: int
    offset: int  # of the contents in the file
    data: bytes = field(repr=False)
    relocations: tuple[CompiledRelocation, ...] = field(repr=False, default=())

    @property
    def allocated(self) -> bool:
        return bool(self.flags & SHF_ALLOC)

    @property
    def executable(self) -> bool:
        return bool(self.flags & SHF_EXECINSTR)

    @property
    def writable(self) -> bool:
        return bool(self.flags & SHF_WRITE)

    @property
    def is_tls(self) -> bool:
        return bool(self.flags & SHF_TLS)

    @property
    def mergeable(self) -> bool:
        return bool(self.flags & SHF_MERGE)

    @property
    def is_strings(self) -> bool:
        """Merged string literals: NUL-terminated, addressed by content."""
        return bool(self.flags & SHF_MERGE and self.flags & SHF_STRINGS)

    @functools.cached_property
    def relocation_at(self) -> dict[int, CompiledRelocation]:
        return {relocation.offset: relocation for relocation in self.relocations}


class CompiledObject:
    """A parsed ET_REL file. Raises Refusal("not_an_object") when it is none."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.raw = data
        if data[:4] != b"\x7fELF" or data[4:6] != b"\x02\x01" or len(data) < 64:
            raise Refusal("not_an_object", f"{name}: not a 64-bit little-endian ELF file")
        kind, machine = struct.unpack_from("<HH", data, 16)
        if (kind, machine) != (1, 62):
            raise Refusal("not_an_object", f"{name}: not a relocatable x86-64 object")
        table = struct.unpack_from("<Q", data, 40)[0]
        count, names_index = struct.unpack_from("<HH", data, 60)
        if count == 0:  # more than 65279 sections: the number is in the first header
            count = _SECTION_HEADER.unpack_from(data, table)[5]
        if names_index == 0xFFFF:
            names_index = _SECTION_HEADER.unpack_from(data, table)[6]
        headers = [_SECTION_HEADER.unpack_from(data, table + 64 * i) for i in range(count)]

        def content(header: tuple[int, ...]) -> bytes:
            return b"" if header[1] == SHT_NOBITS else data[header[4] : header[4] + header[5]]

        names = content(headers[names_index])
        relocations: dict[int, tuple[CompiledRelocation, ...]] = {}
        self.symbols: tuple[CompiledSymbol, ...] = ()
        for number, header in enumerate(headers):
            if header[1] == SHT_RELA:
                relocations[header[7]] = tuple(
                    CompiledRelocation(offset, info & 0xFFFFFFFF, info >> 32, addend)
                    for offset, info, addend in _RELA.iter_unpack(content(header))
                )
            elif header[1] == SHT_SYMTAB:
                extended = next((content(h) for h in headers if h[1] == 18 and h[6] == number), b"")
                self.symbols = _symbols(content(header), content(headers[header[6]]), extended)
        self.sections = tuple(
            CompiledSection(
                number,
                _string(names, header[0]),
                header[1],
                header[2],
                max(1, header[8]),
                header[9],
                header[5],
                header[4],
                content(header),
                relocations.get(number, ()),
            )
            for number, header in enumerate(headers)
        )

    @classmethod
    def load(cls, path: Path) -> CompiledObject:
        return cls(path.read_bytes(), path.name)

    @functools.cached_property
    def functions(self) -> dict[str, CompiledSymbol]:
        """Name -> defined function symbol (the last one wins; C has no two of a name)."""
        return {
            s.name: s
            for s in self.symbols
            if s.type in (STT_FUNC, STT_GNU_IFUNC) and s.section not in (SHN_UNDEF, SHN_ABS)
        }

    @functools.cached_property
    def source_file(self) -> str | None:
        """The STT_FILE name: the last part of the source's path."""
        return next((s.name for s in self.symbols if s.type == STT_FILE and s.name), None)

    @functools.cached_property
    def by_section(self) -> dict[int, tuple[CompiledSymbol, ...]]:
        """Section number -> its named symbols, sorted by value, section symbols left out."""
        found: dict[int, list[CompiledSymbol]] = {}
        for symbol in self.symbols:
            if symbol.type not in (STT_SECTION, STT_FILE) and symbol.name:
                found.setdefault(symbol.section, []).append(symbol)
        return {n: tuple(sorted(s, key=lambda x: (x.value, x.index))) for n, s in found.items()}


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode("utf-8", "surrogateescape")


def _symbols(raw: bytes, names: bytes, extended: bytes) -> tuple[CompiledSymbol, ...]:
    found = []
    for number, row in enumerate(_SYMBOL.iter_unpack(raw)):
        name, info, _, section, value, size = row
        if section == 0xFFFF:
            section = struct.unpack_from("<I", extended, 4 * number)[0]
        found.append(
            CompiledSymbol(number, _string(names, name), info & 15, info >> 4, section, value, size)
        )
    return tuple(found)
