# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a patch ELF, format 1 (docs/patch-elf.md).

A patch ELF is an ET_REL file whose bytes may be hostile or damaged: every offset, size and index is
checked before it is used, all counts are capped, and whatever does not fit is refused with
``patch_elf_malformed`` (``patch_elf_unsupported`` for another format or machine,
``unsupported_relocation`` for a relocation type outside the format). What is returned is consistent
in itself; whether it fits the running process is checked by matching and linking.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .errors import Refused
from .patch import (
    MAX_FILE,
    MAX_NAME,
    MAX_SYMBOLS,
    Built,
    Displaced,
    Fixup,
    Hold,
    ImportedSymbol,
    NewEntry,
    ObjectSymbol,
    OldPiece,
    Padding,
    PatchedObject,
    PatchElf,
    PatchRelocation,
    PatchSection,
    PatchSymbol,
    ReplacedFunction,
    TextSegment,
    malformed,
)
from .patch_metadata import FORMAT, MAX_META, Metadata, check_functions
from .relocations import RELOCATIONS, relocation_name
from .strict_json import Invalid

MAX_SECTIONS = 8192
MAX_RELOCATIONS = 1 << 18
MAX_LOADED = 64 << 20  # sum of the allocatable sections' sizes, zero-filled ones included
MAX_ALIGNMENT = 4096

SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS = 0, 1, 2, 3, 4, 8
SHT_X86_64_UNWIND = 0x70000001
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK = 0x1, 0x2, 0x4, 0x40
STT_FUNC, STT_FILE, STT_MAX = 2, 4, 6
SHN_UNDEF, SHN_LORESERVE, SHN_ABS = 0, 0xFF00, 0xFFF1

EH_FRAME = ".eh_frame"


def read_patch(data: bytes) -> PatchElf:
    """Read and check a patch ELF. Raises Refused; never anything else, whatever the bytes are."""
    try:
        return _Reader(data).read()
    except Invalid as error:
        raise Refused(
            "patch_elf_malformed",
            f"the patch ELF's metadata do not fit format {FORMAT}: {error}; rebuild the patch",
            path=error.path,
        ) from None


@dataclass(frozen=True)
class _Header:
    """A section header."""

    index: int
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> PatchElf:
        self._headers = self._read_headers()
        symtab = self._only(SHT_SYMTAB)
        rows = self._read_symtab(symtab)
        meta = Metadata(
            self._note(".wfpatch.meta", MAX_META),
            self._note(".wfpatch.old", MAX_FILE),
            self._note(".wfpatch.mask", MAX_FILE),
        )
        symbols = self._own(rows, meta.symbols)
        sections = self._read_sections(symbols, symtab.index)
        eh_frames = [s.index for s in sections.values() if s.name == EH_FRAME]
        if len(eh_frames) > 1:
            malformed("it has more than one .eh_frame")
        if eh_frames and (sections[eh_frames[0]].writable or sections[eh_frames[0]].zero_filled):
            malformed(".eh_frame must be read-only data")
        functions = tuple(
            meta.function(fields, self._new_entries(symbols, sections))
            for fields in meta.function_fields
        )
        check_functions(functions, meta.object)
        return PatchElf(
            meta.object,
            functions,
            sections,
            symbols,
            eh_frames[0] if eh_frames else None,
            meta.built,
        )

    def _read_headers(self) -> list[_Header]:
        data = self._data
        if len(data) > MAX_FILE:
            malformed(f"{len(data)} bytes exceed the limit of {MAX_FILE}")
        if len(data) < 64 or data[:4] != b"\x7fELF":
            malformed("it is not an ELF file")
        if data[4:7] != b"\x02\x01\x01":
            malformed("it is not a 64-bit little-endian ELF file of version 1")
        kind, machine, version = struct.unpack_from("<HHI", data, 16)
        if kind != 1 or version != 1:
            malformed(f"it is of ELF type {kind}, a relocatable file (1) is expected")
        if machine != 62:
            raise Refused(
                "patch_elf_unsupported",
                f"the patch ELF is for ELF machine {machine}; this applier serves x86-64 (62)",
                machine=machine,
            )
        (table,) = struct.unpack_from("<Q", data, 40)
        header_size, _, segments, entry, count, names = struct.unpack_from("<HHHHHH", data, 52)
        if header_size != 64 or segments != 0 or entry != 64:
            malformed("header sizes are not those of an ELF64 relocatable file")
        if not 1 <= count <= MAX_SECTIONS or not 0 < names < count:
            malformed(f"{count} sections, names in section {names}")
        if table > len(data) or count * 64 > len(data) - table:
            malformed("the section headers reach beyond the file")
        rows = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
        for index, row in enumerate(rows):
            if row[1] not in (SHT_NULL, SHT_NOBITS) and (
                row[4] > len(data) or row[5] > len(data) - row[4]
            ):
                malformed(f"section {index} reaches beyond the file")
        if rows[names][1] != SHT_STRTAB:
            malformed("the section names are not in a string table")
        strings = data[rows[names][4] : rows[names][4] + rows[names][5]]
        headers = []
        for index, row in enumerate(rows):
            name = _string(strings, row[0]) if index else ""
            headers.append(_Header(index, name, row[1], row[2], row[4], row[5], *row[6:]))
        if rows[0][1] != SHT_NULL:
            malformed("section 0 is not the null section")
        return headers

    def _only(self, kind: int) -> _Header:
        found = [h for h in self._headers if h.type == kind]
        if len(found) != 1:
            malformed(f"it has {len(found)} sections of type {kind}, one is expected")
        return found[0]

    def _contents(self, header: _Header) -> bytes:
        return self._data[header.offset : header.offset + header.size]

    def _note(self, name: str, limit: int) -> bytes:
        found = [h for h in self._headers if h.name == name]
        if len(found) != 1 or found[0].type != SHT_PROGBITS or found[0].flags & SHF_ALLOC:
            malformed(f"exactly one section {name}, not loaded, is expected")
        if found[0].size > limit:
            malformed(f"section {name} is larger than {limit} bytes")
        return self._contents(found[0])

    def _read_symtab(self, header: _Header) -> list[tuple[str, int, int, int, int]]:
        """(name, type, section index, value, size) of each symbol."""
        if header.entry_size != 24 or header.size % 24 or not header.size:
            malformed("the symbol table's size is odd")
        if header.size // 24 > MAX_SYMBOLS:
            malformed(f"more than {MAX_SYMBOLS} symbols")
        if not 0 < header.link < len(self._headers):
            malformed("the symbol table has no string table")
        if self._headers[header.link].type != SHT_STRTAB:
            malformed("the symbol table's names are not in a string table")
        strings = self._contents(self._headers[header.link])
        rows = []
        table = self._contents(header)
        for index, entry in enumerate(struct.iter_unpack("<IBBHQQ", table)):
            name, info, _, section, value, size = entry
            if index == 0:
                if any(entry):
                    malformed("symbol 0 is not the null symbol")
                rows.append(("", 0, 0, 0, 0))
                continue
            kind = info & 0xF
            if kind > STT_MAX:
                malformed(f"symbol {index} is of unknown type {kind}")
            if section >= SHN_LORESERVE:
                if section != SHN_ABS or kind != STT_FILE:
                    malformed(f"symbol {index} is in reserved section {section:#x}")
            elif section >= len(self._headers):
                malformed(f"symbol {index} is in section {section}, which does not exist")
            rows.append((_string(strings, name), kind, section, value, size))
        return rows

    def _own(
        self,
        rows: list[tuple[str, int, int, int, int]],
        owners: dict[str, ObjectSymbol | ImportedSymbol],
    ) -> tuple[PatchSymbol, ...]:
        """The symbols, the undefined ones with their owners."""
        symbols = []
        unused = set(owners)
        for index, (name, kind, section, value, size) in enumerate(rows):
            owner = None
            home: int | None = None
            if section == SHN_UNDEF:
                if index:
                    if name not in unused:
                        malformed(
                            f"undefined symbol {name!r} has no owner or occurs twice", symbol=name
                        )
                    unused.discard(name)
                    owner = owners[name]
            elif section != SHN_ABS:
                header = self._headers[section]
                if header.flags & SHF_ALLOC and (value > header.size or size > header.size - value):
                    malformed(f"symbol {name!r} reaches beyond section {header.name}", symbol=name)
                home = section
            symbols.append(PatchSymbol(name, kind, home, value, size, owner))
        if unused:
            malformed(f"metadata name symbols that do not occur: {sorted(unused)[:8]}")
        return tuple(symbols)

    def _read_sections(
        self, symbols: tuple[PatchSymbol, ...], symtab: int
    ) -> dict[int, PatchSection]:
        relocations = self._read_relocations(symbols, symtab)
        sections: dict[int, PatchSection] = {}
        loaded = 0
        for header in self._headers[1:]:
            if header.type in (SHT_SYMTAB, SHT_STRTAB, SHT_RELA) or not header.flags & SHF_ALLOC:
                if header.flags & SHF_ALLOC or header.type not in (
                    SHT_SYMTAB,
                    SHT_STRTAB,
                    SHT_RELA,
                    SHT_PROGBITS,
                ):
                    malformed(f"section {header.name!r} is of type {header.type:#x}")
                continue
            if header.type not in (SHT_PROGBITS, SHT_NOBITS, SHT_X86_64_UNWIND):
                malformed(f"section {header.name!r} to load is of type {header.type:#x}")
            if header.flags & ~(SHF_WRITE | SHF_ALLOC | SHF_EXECINSTR):
                malformed(f"section {header.name!r} has flags {header.flags:#x}")
            writable, executable = (
                bool(header.flags & SHF_WRITE),
                bool(header.flags & SHF_EXECINSTR),
            )
            if writable and executable:
                malformed(f"section {header.name!r} is both writable and executable")
            if executable and header.type == SHT_NOBITS:
                malformed(f"section {header.name!r} is code without bytes")
            alignment = max(header.alignment, 1)
            if alignment & (alignment - 1) or alignment > MAX_ALIGNMENT:
                malformed(f"section {header.name!r} wants alignment {alignment}")
            loaded += header.size + alignment
            if loaded > MAX_LOADED:
                malformed(f"its sections to load exceed {MAX_LOADED} bytes")
            sections[header.index] = PatchSection(
                header.index,
                header.name,
                writable,
                executable,
                alignment,
                header.size,
                b"" if header.type == SHT_NOBITS else self._contents(header),
                relocations.pop(header.index, ()),
            )
        if relocations:
            malformed("relocations apply to a section that is not loaded")
        for section in sections.values():
            if section.zero_filled and section.relocations:
                malformed(f"relocations apply to zero-filled section {section.name!r}")
            for relocation in section.relocations:
                width = RELOCATIONS[relocation.type].width
                if relocation.offset > section.size or width > section.size - relocation.offset:
                    malformed(f"a relocation reaches beyond section {section.name!r}")
                symbol = symbols[relocation.symbol]
                if symbol.section is not None and symbol.section not in sections:
                    malformed(f"a relocation needs {symbol.name!r}, which is not loaded")
        return sections

    def _read_relocations(
        self, symbols: tuple[PatchSymbol, ...], symtab: int
    ) -> dict[int, tuple[PatchRelocation, ...]]:
        tables: dict[int, tuple[PatchRelocation, ...]] = {}
        total = 0
        for header in self._headers:
            if header.type != SHT_RELA:
                continue
            if header.entry_size != 24 or header.size % 24 or header.link != symtab:
                malformed(f"relocation section {header.name!r} is damaged")
            if header.info in tables:
                malformed(f"section {header.info} has two relocation sections")
            total += header.size // 24
            if total > MAX_RELOCATIONS:
                malformed(f"more than {MAX_RELOCATIONS} relocations")
            found = []
            for offset, info, addend in struct.iter_unpack("<QQq", self._contents(header)):
                kind, symbol = info & 0xFFFFFFFF, info >> 32
                if kind not in RELOCATIONS:
                    raise Refused(
                        "unsupported_relocation",
                        f"section {header.name!r} of the patch ELF has a relocation of type "
                        f"{relocation_name(kind)} at {offset:#x}, which this applier does not "
                        "link; rebuild the patch with flags that avoid it",
                        section=header.name,
                        type=kind,
                        offset=offset,
                    )
                if not 0 < symbol < len(symbols):
                    malformed(f"a relocation in {header.name!r} names symbol {symbol}")
                if symbols[symbol].type == STT_FILE:
                    malformed(f"a relocation in {header.name!r} names a file symbol")
                found.append(PatchRelocation(offset, kind, symbol, addend))
            tables[header.info] = tuple(found)
        return tables

    def _new_entries(
        self, symbols: tuple[PatchSymbol, ...], sections: dict[int, PatchSection]
    ) -> dict[str, NewEntry | None]:
        """Each defined function symbol's place; None for a name that occurs twice."""
        entries: dict[str, NewEntry | None] = {}
        for symbol in symbols:
            if symbol.type == STT_FUNC and symbol.section in sections and symbol.size:
                assert symbol.section is not None
                if sections[symbol.section].executable:
                    entry = NewEntry(symbol.section, symbol.value, symbol.size)
                    entries[symbol.name] = None if symbol.name in entries else entry
        return entries


def _string(table: bytes, offset: int) -> str:
    """The NUL-terminated string at ``offset`` of a string table."""
    if offset >= len(table):
        malformed("a name lies beyond its string table")
    end = table.find(b"\0", offset, offset + MAX_NAME + 1)
    if end < 0:
        malformed("a name has no end")
    try:
        text = table[offset:end].decode("utf-8")
    except UnicodeDecodeError:
        malformed("a name is not UTF-8")
    if text and not text.isprintable():
        malformed("a name has unprintable characters")
    return text


__all__ = [
    "Built",
    "Displaced",
    "Fixup",
    "Hold",
    "ImportedSymbol",
    "NewEntry",
    "ObjectSymbol",
    "OldPiece",
    "Padding",
    "PatchElf",
    "PatchRelocation",
    "PatchSection",
    "PatchSymbol",
    "PatchedObject",
    "ReplacedFunction",
    "TextSegment",
    "read_patch",
]
