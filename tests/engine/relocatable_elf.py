# SPDX-License-Identifier: GPL-3.0-or-later
"""A minimal writer of ELF64 x86-64 relocatable files, for the tests' own patch ELFs.

It writes exactly what it is given and checks nothing, so that tests can write malformed files too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_STRTAB = 3
SHT_RELA = 4
SHT_NOBITS = 8
SHF_WRITE = 0x1
SHF_ALLOC = 0x2
SHF_EXECINSTR = 0x4
SHF_INFO_LINK = 0x40
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_TLS = 0, 1, 2, 3, 6


@dataclass
class Symbol:
    """A symbol to write; ``section`` is None for an undefined one."""

    name: str
    kind: int
    section: Section | None = None
    value: int = 0
    size: int = 0
    local: bool = False


@dataclass
class Relocation:
    offset: int
    symbol: Symbol
    type: int
    addend: int


@dataclass(eq=False)
class Section:
    name: str
    type: int
    flags: int
    data: bytes
    align: int = 1
    size: int | None = None  # of SHT_NOBITS
    relocations: list[Relocation] = field(default_factory=list)


class _Strings:
    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self._offsets:
            self._offsets[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self._offsets[text]


def write(sections: list[Section], symbols: list[Symbol], notes: dict[str, bytes]) -> bytes:
    """The file's bytes; ``notes`` are non-allocatable sections (the ``.wfpatch.*`` ones)."""
    ordered = [s for s in symbols if s.local] + [s for s in symbols if not s.local]
    first_global = 1 + sum(s.local for s in symbols)
    symbol_index = {id(s): i + 1 for i, s in enumerate(ordered)}
    section_index = {id(s): i + 1 for i, s in enumerate(sections)}
    strings, names = _Strings(), _Strings()

    symtab = bytearray(24)
    for symbol in ordered:
        home = 0 if symbol.section is None else section_index[id(symbol.section)]
        info = (0 if symbol.local else 1) << 4 | symbol.kind
        symtab += struct.pack(
            "<IBBHQQ", strings.add(symbol.name), info, 0, home, symbol.value, symbol.size
        )

    with_relocations = [s for s in sections if s.relocations]
    symtab_index = 1 + len(sections) + len(with_relocations) + len(notes)
    # (name, type, flags, data, size, link, info, align, entry size)
    rows: list[tuple[str, int, int, bytes, int, int, int, int, int]] = []
    for section in sections:
        size = len(section.data) if section.size is None else section.size
        rows.append(
            (section.name, section.type, section.flags, section.data, size, 0, 0, section.align, 0)
        )
    for section in with_relocations:
        data = b"".join(
            struct.pack("<QQq", r.offset, symbol_index[id(r.symbol)] << 32 | r.type, r.addend)
            for r in section.relocations
        )
        rows.append(
            (
                ".rela" + section.name,
                SHT_RELA,
                SHF_INFO_LINK,
                data,
                len(data),
                symtab_index,
                section_index[id(section)],
                8,
                24,
            )
        )
    for name, data in notes.items():
        rows.append((name, SHT_PROGBITS, 0, data, len(data), 0, 0, 1, 0))
    rows.append(
        (
            ".symtab",
            SHT_SYMTAB,
            0,
            bytes(symtab),
            len(symtab),
            symtab_index + 1,
            first_global,
            8,
            24,
        )
    )
    rows.append((".strtab", SHT_STRTAB, 0, bytes(strings.data), len(strings.data), 0, 0, 1, 0))
    for row in rows:
        names.add(row[0])
    names.add(".shstrtab")
    rows.append((".shstrtab", SHT_STRTAB, 0, bytes(names.data), len(names.data), 0, 0, 1, 0))

    body = bytearray(64)
    headers = bytearray(64)
    for name, kind, flags, data, size, link, info, align, entry_size in rows:
        body += bytes(-len(body) % max(align, 1))
        offset = len(body)
        if kind != SHT_NOBITS:
            body += data
        headers += struct.pack(
            "<IIQQQQIIQQ",
            names.add(name),
            kind,
            flags,
            0,
            offset,
            size,
            link,
            info,
            align,
            entry_size,
        )
    body += bytes(-len(body) % 8)
    table = len(body)
    body[:16] = b"\x7fELF\x02\x01\x01" + bytes(9)
    body[16:64] = struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, len(rows) + 1, len(rows)
    )
    return bytes(body + headers)
