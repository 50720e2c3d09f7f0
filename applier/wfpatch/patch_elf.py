# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading a patch ELF, format 1 (docs/patch-elf.md).

A patch ELF is an ET_REL file whose bytes may be hostile or damaged: every offset, size and index is
checked before it is used, all counts are capped, and whatever does not fit is refused with
``patch_elf_malformed`` (``patch_elf_unsupported`` for another format or machine,
``unsupported_relocation`` for a relocation type outside the format). What is returned is consistent
in itself; whether it fits the running process is checked by matching and linking.
"""

from __future__ import annotations

import bisect
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from .errors import Refused
from .relocations import RELOCATIONS, relocation_name
from .strict_json import Fields, Invalid, parse_canonical

FORMAT = 1
MACHINE = "x86_64"

MAX_FILE = 64 << 20
MAX_META = 8 << 20
MAX_SECTIONS = 8192
MAX_SYMBOLS = 1 << 17
MAX_RELOCATIONS = 1 << 18
MAX_NAME = 16 << 10  # mangled C++ names run to several thousand characters
MAX_FUNCTIONS = 4096
MAX_LOADED = 64 << 20  # sum of the allocatable sections' sizes, zero-filled ones included
MAX_ALIGNMENT = 4096
MAX_ADDRESS = 1 << 47  # of user space (4-level paging), and so of link-time addresses

SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS = 0, 1, 2, 3, 4, 8
SHT_X86_64_UNWIND = 0x70000001
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK = 0x1, 0x2, 0x4, 0x40
STT_FUNC, STT_FILE, STT_MAX = 2, 4, 6
SHN_UNDEF, SHN_LORESERVE, SHN_ABS = 0, 0xFF00, 0xFFF1

EH_FRAME = ".eh_frame"
_KINDS = ("function", "data", "tls")
_MIGRATE = ("always", "after_direct_call", "never")
_METHODS = ("exact_rebuild", "matching", "plain")


@dataclass(frozen=True)
class Fixup:
    """``code[offset:offset+4]`` = runtime(target) + addend - address_of(code[offset])."""

    offset: int
    addend: int
    target: int


@dataclass(frozen=True)
class Displaced:
    """A function's first instruction in relocated form; ``length`` is that of the original."""

    length: int
    code: bytes
    fixups: tuple[Fixup, ...]
    falls_through: bool
    is_call: bool
    cfa_offset: int


@dataclass(frozen=True)
class Hold:
    """The whole instructions that make up the first >= 5 bytes, relocated.

    ``boundaries`` are (offset in the old code, offset in ``code``) of each instruction.
    """

    length: int
    code: bytes
    fixups: tuple[Fixup, ...]
    boundaries: tuple[tuple[int, int], ...]
    falls_through: bool


@dataclass(frozen=True)
class Padding:
    """Bytes near an entry that are never executed."""

    address: int
    size: int


@dataclass(frozen=True)
class OldPiece:
    """One stretch of old code; ``kind`` is main, cold or part.

    ``mask`` is as long as ``old``: 0xff where a byte must be equal in memory, else 0x00.
    """

    kind: str
    address: int
    size: int
    old: bytes
    mask: bytes
    ends_in_call: bool


@dataclass(frozen=True)
class NewEntry:
    """Where a replaced function's new code begins: section index and offset in it; its size."""

    section: int
    offset: int
    size: int


@dataclass(frozen=True)
class ReplacedFunction:
    """A function that the patch brings new code for. Addresses are link-time virtual ones."""

    name: str
    file: str | None
    symbol: str
    main: OldPiece
    pieces: tuple[OldPiece, ...]
    displaced: Displaced
    hold: Hold | None
    padding: Padding | None
    inner_entries: tuple[int, ...]
    migrate: str
    tail_edges: tuple[str, ...]
    entry: NewEntry

    @property
    def address(self) -> int:
        return self.main.address

    @property
    def size(self) -> int:
        return self.main.size

    def all_pieces(self) -> tuple[OldPiece, ...]:
        """The main piece and the others."""
        return (self.main, *self.pieces)


@dataclass(frozen=True)
class ObjectSymbol:
    """An undefined symbol that the patched object itself has.

    ``address`` is a link-time virtual address; for ``kind`` tls it is the offset in the object's
    thread-local block, as in a symbol table.
    """

    name: str
    file: str | None
    kind: str
    address: int
    size: int


@dataclass(frozen=True)
class ImportedSymbol:
    """An undefined symbol of another object.

    ``got`` are the link-time addresses of the patched object's own slots that hold its address.
    """

    name: str
    version: str | None
    kind: str
    got: tuple[int, ...]


@dataclass(frozen=True)
class PatchSymbol:
    """A row of the symbol table; ``section`` is None for an undefined symbol."""

    name: str
    type: int
    section: int | None
    value: int
    size: int
    owner: ObjectSymbol | ImportedSymbol | None


@dataclass(frozen=True)
class PatchRelocation:
    """``symbol`` is an index into PatchElf.symbols."""

    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class PatchSection:
    """An allocatable section; ``data`` is empty for a zero-filled one."""

    index: int
    name: str
    writable: bool
    executable: bool
    alignment: int
    size: int
    data: bytes
    relocations: tuple[PatchRelocation, ...]

    @property
    def zero_filled(self) -> bool:
        return len(self.data) != self.size


@dataclass(frozen=True)
class TextSegment:
    address: int
    size: int


@dataclass(frozen=True)
class PatchedObject:
    """The object the patch is for."""

    build_ids: tuple[str, ...]
    name: str
    soname: str | None
    kind: str
    text: tuple[TextSegment, ...]


@dataclass(frozen=True)
class Built:
    """How the patch was made, for reports."""

    builder: str
    compiler: str
    flags: str
    method: str


@dataclass(frozen=True)
class PatchElf:
    """A patch ELF, read and checked. ``sections`` maps section indices to allocatable sections."""

    object: PatchedObject
    functions: tuple[ReplacedFunction, ...]
    sections: dict[int, PatchSection]
    symbols: tuple[PatchSymbol, ...]
    eh_frame: int | None
    built: Built

    def function(self, name: str) -> ReplacedFunction:
        """The first replaced function of that name; KeyError when there is none."""
        for function in self.functions:
            if function.name == name:
                return function
        raise KeyError(name)


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


def _malformed(message: str, **facts: Any) -> NoReturn:
    raise Refused(
        "patch_elf_malformed", f"the patch ELF is malformed: {message}; rebuild the patch", **facts
    )


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
        meta = _Metadata(
            self._note(".wfpatch.meta", MAX_META),
            self._note(".wfpatch.old", MAX_FILE),
            self._note(".wfpatch.mask", MAX_FILE),
        )
        symbols = self._own(rows, meta.symbols)
        sections = self._read_sections(symbols, symtab.index)
        eh_frames = [s.index for s in sections.values() if s.name == EH_FRAME]
        if len(eh_frames) > 1:
            _malformed("it has more than one .eh_frame")
        if eh_frames and (sections[eh_frames[0]].writable or sections[eh_frames[0]].zero_filled):
            _malformed(".eh_frame must be read-only data")
        functions = tuple(
            meta.function(fields, self._new_entries(symbols, sections))
            for fields in meta.function_fields
        )
        _check_functions(functions, meta.object)
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
            _malformed(f"{len(data)} bytes exceed the limit of {MAX_FILE}")
        if len(data) < 64 or data[:4] != b"\x7fELF":
            _malformed("it is not an ELF file")
        if data[4:7] != b"\x02\x01\x01":
            _malformed("it is not a 64-bit little-endian ELF file of version 1")
        kind, machine, version = struct.unpack_from("<HHI", data, 16)
        if kind != 1 or version != 1:
            _malformed(f"it is of ELF type {kind}, a relocatable file (1) is expected")
        if machine != 62:
            raise Refused(
                "patch_elf_unsupported",
                f"the patch ELF is for ELF machine {machine}; this applier serves x86-64 (62)",
                machine=machine,
            )
        (table,) = struct.unpack_from("<Q", data, 40)
        header_size, _, segments, entry, count, names = struct.unpack_from("<HHHHHH", data, 52)
        if header_size != 64 or segments != 0 or entry != 64:
            _malformed("header sizes are not those of an ELF64 relocatable file")
        if not 1 <= count <= MAX_SECTIONS or not 0 < names < count:
            _malformed(f"{count} sections, names in section {names}")
        if table > len(data) or count * 64 > len(data) - table:
            _malformed("the section headers reach beyond the file")
        rows = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
        for index, row in enumerate(rows):
            if row[1] not in (SHT_NULL, SHT_NOBITS) and (
                row[4] > len(data) or row[5] > len(data) - row[4]
            ):
                _malformed(f"section {index} reaches beyond the file")
        if rows[names][1] != SHT_STRTAB:
            _malformed("the section names are not in a string table")
        strings = data[rows[names][4] : rows[names][4] + rows[names][5]]
        headers = []
        for index, row in enumerate(rows):
            name = _string(strings, row[0]) if index else ""
            headers.append(_Header(index, name, row[1], row[2], row[4], row[5], *row[6:]))
        if rows[0][1] != SHT_NULL:
            _malformed("section 0 is not the null section")
        return headers

    def _only(self, kind: int) -> _Header:
        found = [h for h in self._headers if h.type == kind]
        if len(found) != 1:
            _malformed(f"it has {len(found)} sections of type {kind}, one is expected")
        return found[0]

    def _contents(self, header: _Header) -> bytes:
        return self._data[header.offset : header.offset + header.size]

    def _note(self, name: str, limit: int) -> bytes:
        found = [h for h in self._headers if h.name == name]
        if len(found) != 1 or found[0].type != SHT_PROGBITS or found[0].flags & SHF_ALLOC:
            _malformed(f"exactly one section {name}, not loaded, is expected")
        if found[0].size > limit:
            _malformed(f"section {name} is larger than {limit} bytes")
        return self._contents(found[0])

    def _read_symtab(self, header: _Header) -> list[tuple[str, int, int, int, int]]:
        """(name, type, section index, value, size) of each symbol."""
        if header.entry_size != 24 or header.size % 24 or not header.size:
            _malformed("the symbol table's size is odd")
        if header.size // 24 > MAX_SYMBOLS:
            _malformed(f"more than {MAX_SYMBOLS} symbols")
        if not 0 < header.link < len(self._headers):
            _malformed("the symbol table has no string table")
        if self._headers[header.link].type != SHT_STRTAB:
            _malformed("the symbol table's names are not in a string table")
        strings = self._contents(self._headers[header.link])
        rows = []
        table = self._contents(header)
        for index, entry in enumerate(struct.iter_unpack("<IBBHQQ", table)):
            name, info, _, section, value, size = entry
            if index == 0:
                if any(entry):
                    _malformed("symbol 0 is not the null symbol")
                rows.append(("", 0, 0, 0, 0))
                continue
            kind = info & 0xF
            if kind > STT_MAX:
                _malformed(f"symbol {index} is of unknown type {kind}")
            if section >= SHN_LORESERVE:
                if section != SHN_ABS or kind != STT_FILE:
                    _malformed(f"symbol {index} is in reserved section {section:#x}")
            elif section >= len(self._headers):
                _malformed(f"symbol {index} is in section {section}, which does not exist")
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
                        _malformed(
                            f"undefined symbol {name!r} has no owner or occurs twice", symbol=name
                        )
                    unused.discard(name)
                    owner = owners[name]
            elif section != SHN_ABS:
                header = self._headers[section]
                if header.flags & SHF_ALLOC and (value > header.size or size > header.size - value):
                    _malformed(f"symbol {name!r} reaches beyond section {header.name}", symbol=name)
                home = section
            symbols.append(PatchSymbol(name, kind, home, value, size, owner))
        if unused:
            _malformed(f"metadata name symbols that do not occur: {sorted(unused)[:8]}")
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
                    _malformed(f"section {header.name!r} is of type {header.type:#x}")
                continue
            if header.type not in (SHT_PROGBITS, SHT_NOBITS, SHT_X86_64_UNWIND):
                _malformed(f"section {header.name!r} to load is of type {header.type:#x}")
            if header.flags & ~(SHF_WRITE | SHF_ALLOC | SHF_EXECINSTR):
                _malformed(f"section {header.name!r} has flags {header.flags:#x}")
            writable, executable = (
                bool(header.flags & SHF_WRITE),
                bool(header.flags & SHF_EXECINSTR),
            )
            if writable and executable:
                _malformed(f"section {header.name!r} is both writable and executable")
            if executable and header.type == SHT_NOBITS:
                _malformed(f"section {header.name!r} is code without bytes")
            alignment = max(header.alignment, 1)
            if alignment & (alignment - 1) or alignment > MAX_ALIGNMENT:
                _malformed(f"section {header.name!r} wants alignment {alignment}")
            loaded += header.size + alignment
            if loaded > MAX_LOADED:
                _malformed(f"its sections to load exceed {MAX_LOADED} bytes")
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
            _malformed("relocations apply to a section that is not loaded")
        for section in sections.values():
            if section.zero_filled and section.relocations:
                _malformed(f"relocations apply to zero-filled section {section.name!r}")
            for relocation in section.relocations:
                width = RELOCATIONS[relocation.type].width
                if relocation.offset > section.size or width > section.size - relocation.offset:
                    _malformed(f"a relocation reaches beyond section {section.name!r}")
                symbol = symbols[relocation.symbol]
                if symbol.section is not None and symbol.section not in sections:
                    _malformed(f"a relocation needs {symbol.name!r}, which is not loaded")
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
                _malformed(f"relocation section {header.name!r} is damaged")
            if header.info in tables:
                _malformed(f"section {header.info} has two relocation sections")
            total += header.size // 24
            if total > MAX_RELOCATIONS:
                _malformed(f"more than {MAX_RELOCATIONS} relocations")
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
                    _malformed(f"a relocation in {header.name!r} names symbol {symbol}")
                if symbols[symbol].type == STT_FILE:
                    _malformed(f"a relocation in {header.name!r} names a file symbol")
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
        _malformed("a name lies beyond its string table")
    end = table.find(b"\0", offset, offset + MAX_NAME + 1)
    if end < 0:
        _malformed("a name has no end")
    try:
        text = table[offset:end].decode("utf-8")
    except UnicodeDecodeError:
        _malformed("a name is not UTF-8")
    if text and not text.isprintable():
        _malformed("a name has unprintable characters")
    return text


class _Metadata:
    """``.wfpatch.meta`` with ``.wfpatch.old`` and ``.wfpatch.mask``. Raises Invalid or Refused."""

    def __init__(self, meta: bytes, old: bytes, mask: bytes) -> None:
        if len(old) != len(mask):
            _malformed(f"{len(old)} old bytes, but {len(mask)} bytes of mask")
        if mask.translate(None, b"\x00\xff"):
            _malformed("the mask has bytes other than 0x00 and 0xff")
        self._old, self._mask = old, mask
        top = Fields(parse_canonical(meta, MAX_META))
        number = top.number("format")
        machine = top.text("machine", 64)
        if number != FORMAT or machine != MACHINE:
            raise Refused(
                "patch_elf_unsupported",
                f"the patch ELF has format {number} for {machine!r}; this applier reads format "
                f"{FORMAT} for {MACHINE}; install a newer applier",
                format=number,
                machine=machine,
            )
        self.object = _read_object(top.nested("object"))
        self.symbols = _read_owners(top)
        self.function_fields = [
            Fields(item, path) for path, item in top.items("functions", MAX_FUNCTIONS)
        ]
        if not self.function_fields:
            raise Invalid("functions", "no function is replaced")
        built = top.nested("built")
        self.built = Built(
            _name(built, "builder", 256),
            _name(built, "compiler", 1024),
            _name(built, "flags", MAX_NAME),
            built.text("method", choices=_METHODS),
        )
        built.done()
        top.done()

    def function(self, fields: Fields, entries: dict[str, NewEntry | None]) -> ReplacedFunction:
        """One entry of ``functions``."""
        name = _name(fields, "name")
        symbol = _name(fields, "symbol")
        entry = entries.get(symbol)
        if entry is None:
            _malformed(f"new code of {name!r}: no single function symbol {symbol!r}", function=name)
        main = self._piece(fields, "main", name)
        pieces = []
        for path, item in fields.items("pieces", 64):
            piece = Fields(item, path)
            kind = piece.text("kind", choices=("cold", "part"))
            pieces.append(self._piece(piece, kind, name))
            piece.done()
        displaced = self._displaced(fields.nested("displaced"), main, name)
        held = fields.optional_nested("hold")
        hold = None if held is None else _read_hold(held, main)
        gap = fields.optional_nested("padding")
        padding = None
        if gap is not None:
            padding = Padding(gap.number("address", 0, MAX_ADDRESS), gap.number("size", 5, 4096))
            gap.done()
        inner = _numbers(fields, "inner_entries", 1, 4)
        function = ReplacedFunction(
            name,
            _optional_name(fields, "file"),
            symbol,
            main,
            tuple(pieces),
            displaced,
            hold,
            padding,
            inner,
            fields.text("migrate", choices=_MIGRATE),
            fields.texts("tail_edges", MAX_FUNCTIONS + 1, MAX_NAME),
            entry,
        )
        fields.done()
        return function

    def _piece(self, fields: Fields, kind: str, name: str) -> OldPiece:
        address = fields.number("address", 0, MAX_ADDRESS)
        size = fields.number("size", 1, MAX_FILE)
        offset = fields.number("old_offset", 0, MAX_FILE)
        if offset > len(self._old) or size > len(self._old) - offset:
            _malformed(f"old bytes of {name!r} reach beyond .wfpatch.old", function=name)
        return OldPiece(
            kind,
            address,
            size,
            self._old[offset : offset + size],
            self._mask[offset : offset + size],
            fields.flag("ends_in_call"),
        )

    def _displaced(self, fields: Fields, main: OldPiece, name: str) -> Displaced:
        code = _hex(fields, "code", 64)
        frame = fields.nested("frame")
        displaced = Displaced(
            fields.number("length", 1, 15),  # Intel SDM vol. 2, 2.3.11: no instruction is longer
            code,
            _read_fixups(fields, code),
            fields.flag("falls_through"),
            fields.flag("is_call"),
            frame.number("cfa_offset", 8, 8),
        )
        frame.done()
        fields.done()
        if displaced.length > main.size:
            _malformed(f"the first instruction of {name!r} is longer than it", function=name)
        return displaced


def _name(fields: Fields, name: str, limit: int = MAX_NAME) -> str:
    value = fields.text(name, limit)
    if not value.isprintable():
        raise Invalid(name, "has unprintable characters")
    return value


def _optional_name(fields: Fields, name: str) -> str | None:
    value = fields.optional_text(name, MAX_NAME)
    if value is not None and not value.isprintable():
        raise Invalid(name, "has unprintable characters")
    return value


def _numbers(fields: Fields, name: str, low: int, high: int) -> tuple[int, ...]:
    """A list of strictly increasing integers."""
    found: list[int] = []
    for path, item in fields.items(name):
        if not isinstance(item, int) or isinstance(item, bool) or not low <= item <= high:
            raise Invalid(path, f"an integer in {low}..{high} is expected")
        if found and item <= found[-1]:
            raise Invalid(path, "is not in order")
        found.append(item)
    return tuple(found)


def _hex(fields: Fields, name: str, limit: int) -> bytes:
    text = fields.text(name, 2 * limit)
    if not text or len(text) % 2 or text.strip("0123456789abcdef"):
        raise Invalid(name, "bytes in lower-case hexadecimal are expected")
    return bytes.fromhex(text)


def _read_object(fields: Fields) -> PatchedObject:
    build_ids = fields.texts("build_ids", 64, 128)
    for build_id in build_ids:
        if len(build_id) % 2 or not build_id or build_id.strip("0123456789abcdef"):
            raise Invalid("object.build_ids", "a build-id in lower-case hexadecimal is expected")
    if not build_ids:
        raise Invalid("object.build_ids", "is empty")

    def segment(item: Fields) -> TextSegment:
        return TextSegment(item.number("address", 0, MAX_ADDRESS), item.number("size", 1, 1 << 32))

    text = fields.each("text", segment, 64)
    if not text:
        raise Invalid("object.text", "is empty")
    found = PatchedObject(
        build_ids,
        _name(fields, "name"),
        _optional_name(fields, "soname"),
        fields.text("kind", choices=("executable", "shared_library")),
        text,
    )
    fields.done()
    return found


def _read_owners(top: Fields) -> dict[str, ObjectSymbol | ImportedSymbol]:
    raw = top.raw("symbols")
    if not isinstance(raw, dict) or len(raw) > MAX_SYMBOLS:
        raise Invalid("symbols", "an object is expected")
    owners: dict[str, ObjectSymbol | ImportedSymbol] = {}
    for key, value in raw.items():
        fields = Fields(value, f"symbols[{key[:128]!r}]")
        if fields.text("owner", choices=("object", "import")) == "object":
            owners[key] = ObjectSymbol(
                _name(fields, "name"),
                _optional_name(fields, "file"),
                fields.text("kind", choices=_KINDS),
                fields.number("address", 0, MAX_ADDRESS),
                fields.number("size"),
            )
        else:
            owners[key] = ImportedSymbol(
                _name(fields, "name"),
                _optional_name(fields, "version"),
                fields.text("kind", choices=_KINDS[:2]),
                _numbers(fields, "got", 0, MAX_ADDRESS),
            )
        fields.done()
    return owners


def _read_fixups(fields: Fields, code: bytes) -> tuple[Fixup, ...]:
    def fixup(item: Fields) -> Fixup:
        return Fixup(
            item.number("offset", 0, len(code) - 4 if len(code) > 4 else 0),
            item.number("addend", -64, 64),
            item.number("target", 0, MAX_ADDRESS),
        )

    fixups: tuple[Fixup, ...] = fields.each("fixups", fixup, 16)
    taken = [range(f.offset, f.offset + 4) for f in fixups]
    for index, first in enumerate(taken):
        if first.stop > len(code):
            raise Invalid("fixups", "a fixup reaches beyond the code")
        if any(first.start < other.stop and other.start < first.stop for other in taken[:index]):
            raise Invalid("fixups", "two fixups overlap")
    return fixups


def _read_hold(fields: Fields, main: OldPiece) -> Hold:
    code = _hex(fields, "code", 128)
    length = fields.number("length", 5, 32)
    boundaries: list[tuple[int, int]] = []
    for path, item in fields.items("boundaries", 16):
        if not isinstance(item, list) or len(item) != 2:
            raise Invalid(path, "a pair is expected")
        for value, limit in zip(item, (length, len(code))):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
                raise Invalid(path, "an offset in the code is expected")
        pair = (item[0], item[1])
        if boundaries and (pair[0] <= boundaries[-1][0] or pair[1] <= boundaries[-1][1]):
            raise Invalid(path, "is not in order")
        boundaries.append(pair)
    if not boundaries or boundaries[0] != (0, 0):
        raise Invalid("hold.boundaries", "the first is not [0,0]")
    hold = Hold(
        length,
        code,
        _read_fixups(fields, code),
        tuple(boundaries),
        fields.flag("falls_through"),
    )
    fields.done()
    if length > main.size:
        raise Invalid("hold.length", "is larger than the function")
    return hold


def _check_functions(functions: tuple[ReplacedFunction, ...], patched: PatchedObject) -> None:
    """What holds between the functions: nothing overlaps, all lies in the object's text."""
    names = {function.name for function in functions}
    if len({(function.name, function.file) for function in functions}) != len(functions):
        _malformed("a function is replaced twice")
    if len({(f.entry.section, f.entry.offset) for f in functions}) != len(functions):
        _malformed("two functions share one new entry")
    edges_known = names | {"*"}
    code = []
    for function in functions:
        if list(function.tail_edges) != sorted(set(function.tail_edges) & edges_known):
            _malformed(f"tail edges of {function.name!r} are not names of replaced functions")
        for piece in function.all_pieces():
            end = piece.address + piece.size
            code.append((piece.address, end, f"{piece.kind} piece of {function.name!r}"))
    code.sort()
    starts = [start for start, _, _ in code]
    for (_, end, name), (following, _, other) in zip(code, code[1:]):
        if end > following:
            _malformed(f"{name} and {other} overlap")
    # two functions may name the same padding: which one uses it is decided when arming is planned
    gaps = []
    for function in functions:
        gap = function.padding
        if gap is not None:
            before = bisect.bisect_left(starts, gap.address + gap.size) - 1
            if before >= 0 and code[before][1] > gap.address:
                _malformed(f"padding of {function.name!r} overlaps {code[before][2]}")
            gaps.append((gap.address, gap.address + gap.size, f"padding of {function.name!r}"))
    for start, end, name in [*code, *gaps]:
        if not any(t.address <= start and end <= t.address + t.size for t in patched.text):
            _malformed(f"{name} lies outside of the object's text")
