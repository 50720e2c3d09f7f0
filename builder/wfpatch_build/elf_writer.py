# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes relocatable ELF files (ET_REL, x86-64), byte for byte the same for the same input.

The layout is the plain one of the gABI: header, section contents, section headers. Objects that
objcopy or `ld -r` would make out of pieces of other objects keep section symbols and groups that a
patch ELF must not have, so it is written from scratch.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from wfpatch_build.compiled_object import (
    SHF_ALLOC,
    SHT_NOBITS,
    SHT_PROGBITS,
    SHT_RELA,
    SHT_SYMTAB,
    STB_GLOBAL,
    STB_LOCAL,
)

_SHT_STRTAB = 3
_SHF_INFO_LINK = 0x40
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")


@dataclass
class OutRelocation:
    """``symbol`` is the key of an OutSymbol."""

    offset: int
    type: int
    symbol: str
    addend: int


@dataclass
class OutSection:
    name: str
    flags: int
    alignment: int = 1
    data: bytes = b""
    zero_filled: int = 0  # size of an SHT_NOBITS section; ``data`` is then empty
    relocations: list[OutRelocation] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.zero_filled or len(self.data)


@dataclass(frozen=True)
class OutSymbol:
    """``section`` None: undefined. Defined symbols are local, undefined ones global."""

    key: str
    name: str
    type: int
    section: OutSection | None = field(default=None, compare=False)
    value: int = 0
    size: int = 0


class _Strings:
    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self._offsets = {"": 0}

    def add(self, text: str) -> int:
        if text not in self._offsets:
            self._offsets[text] = len(self.data)
            self.data += text.encode("utf-8", "surrogateescape") + b"\0"
        return self._offsets[text]


def write_relocatable(
    sections: list[OutSection], symbols: list[OutSymbol], notes: dict[str, bytes]
) -> bytes:
    """The file's bytes. ``notes`` are additional sections that are not loaded, by name."""
    numbers = {id(section): n for n, section in enumerate(sections, start=1)}
    ordered = sorted(symbols, key=lambda s: s.section is None)  # locals first (gABI: sh_info)
    index = {symbol.key: n for n, symbol in enumerate(ordered, start=1)}
    names, strings = _Strings(), _Strings()
    table = bytearray(_SYMBOL.size)
    for symbol in ordered:
        binding = STB_GLOBAL if symbol.section is None else STB_LOCAL
        table += _SYMBOL.pack(
            strings.add(symbol.name),
            binding << 4 | symbol.type,
            0,
            0 if symbol.section is None else numbers[id(symbol.section)],
            symbol.value,
            symbol.size,
        )
    locals_end = 1 + sum(s.section is not None for s in ordered)

    # (name, type, flags, content, size, link, info, alignment, entry size)
    rows: list[tuple[str, int, int, bytes, int, int, int, int, int]] = []
    for section in sections:
        kind = SHT_NOBITS if section.zero_filled else SHT_PROGBITS
        rows.append(
            (section.name, kind, section.flags, section.data, section.size, 0, 0)
            + (section.alignment, 0)
        )
    relocated = [s for s in sections if s.relocations]
    symtab_number = 1 + len(sections) + len(relocated) + len(notes)
    for section in relocated:
        content = b"".join(
            _RELA.pack(r.offset, index[r.symbol] << 32 | r.type, r.addend)
            for r in sorted(section.relocations, key=lambda r: r.offset)
        )
        rows.append(
            (f".rela{section.name}", SHT_RELA, _SHF_INFO_LINK, content, len(content))
            + (symtab_number, numbers[id(section)], 8, _RELA.size)
        )
    for name, content in notes.items():
        rows.append((name, SHT_PROGBITS, 0, content, len(content), 0, 0, 1, 0))
    rows.append(
        (".symtab", SHT_SYMTAB, 0, bytes(table), len(table), symtab_number + 1, locals_end)
        + (8, _SYMBOL.size)
    )
    rows.append((".strtab", _SHT_STRTAB, 0, bytes(strings.data), len(strings.data), 0, 0, 1, 0))
    for row in rows:
        names.add(row[0])
    names.add(".shstrtab")
    name_table = bytes(names.data)
    rows.append((".shstrtab", _SHT_STRTAB, 0, name_table, len(name_table), 0, 0, 1, 0))

    body = bytearray(bytes(_HEADER.size))
    headers = bytearray(_SECTION.size)
    for name, kind, flags, content, size, link, info, alignment, entry in rows:
        body += bytes(-len(body) % max(alignment, 1))
        headers += _SECTION.pack(
            names.add(name), kind, flags, 0, len(body), size, link, info, alignment, entry
        )
        body += content
    body += bytes(-len(body) % 8)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    body[: _HEADER.size] = _HEADER.pack(
        ident, 1, 62, 1, 0, 0, len(body), 0, 64, 0, 0, 64, len(rows) + 1, len(rows)
    )
    return bytes(body + headers)


def is_loaded(section: OutSection) -> bool:
    return bool(section.flags & SHF_ALLOC)
