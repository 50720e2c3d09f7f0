# SPDX-License-Identifier: GPL-3.0-or-later
"""Patch ELFs for the engine's tests, made from a test program and a new source file.

    patch = sample_patch.build(program, "int step(int x) { return x + 2; }", ["step"])

The program must not be stripped: what the new code refers to is looked up in its .symtab. The
product's builder does this for stock binaries and with a differ; here the test says which
functions are replaced.

Rules for the new source: a function in ``functions`` becomes new code; any other function or
variable that the program has is the program's (so static ones may simply be repeated in the new
source); what the program does not have is new, or an import when the source only declares it.
"""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import relocatable_elf as out
import sample_entry_analysis as analysis
from elftools.elf.elffile import ELFFile
from relocatable_elf import Relocation, Section, Symbol

R_X86_64_64, R_X86_64_PC32, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT = 1, 2, 6, 7
R_X86_64_PLT32 = 4
_TYPES = {"STT_FUNC": "function", "STT_GNU_IFUNC": "function", "STT_TLS": "tls"}


def compile_program(
    source: str | Path,
    output: Path,
    flags: Sequence[str] = ("-O2", "-g"),
    compiler: str = "gcc",
) -> Path:
    """Compile one C (or, with ``compiler="g++"``, C++) source text or file into ``output``."""
    with tempfile.TemporaryDirectory() as scratch:
        path = _source_file(source, Path(scratch), compiler)
        _run([compiler, "-o", str(output), str(path), *flags])
    return output


def build(
    program: str | Path,
    new_source: str | Path,
    functions: Sequence[str],
    *,
    flags: Sequence[str] | None = None,
    compiler: str = "gcc",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    meta_overrides: Mapping[str, Any] | None = None,
) -> bytes:
    """A patch ELF, format 1, that replaces ``functions`` of ``program`` by ``new_source``'s.

    ``flags`` default to ``-O2 -fno-toplevel-reorder`` with -fPIE or -fPIC as the program needs;
    ``overrides`` maps a function's name to entries of its metadata that the test wants changed
    (``{"f": {"migrate": "never"}}``), ``meta_overrides`` does so at the top level.
    """
    old = _Program(Path(program))
    if flags is None:
        flags = ("-O2", "-fPIC" if old.kind == "shared_library" else "-fPIE")
    with tempfile.TemporaryDirectory() as scratch:
        path = _source_file(new_source, Path(scratch), compiler)
        target = Path(scratch) / "new.o"
        _run(
            [compiler, "-c", "-o", str(target), str(path), "-ffunction-sections"]
            + ["-fdata-sections", "-fcf-protection=none", *flags]
        )
        new = _NewCode(target.read_bytes(), old, list(functions))
    meta, old_bytes = _metadata(old, new, list(functions), compiler, flags)
    for name, changes in (overrides or {}).items():
        next(f for f in meta["functions"] if f["name"] == name).update(changes)
    meta.update(meta_overrides or {})
    return out.write(
        new.sections,
        list(new.symbols.values()),
        {
            ".wfpatch.meta": canonical_json(meta),
            ".wfpatch.old": old_bytes,
            ".wfpatch.mask": b"\xff" * len(old_bytes),
        },
    )


def canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _source_file(source: str | Path, scratch: Path, compiler: str) -> Path:
    if isinstance(source, Path):
        return source
    path = scratch / ("source.cc" if compiler.endswith("++") else "source.c")
    path.write_text(source)
    return path


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _stem(name: str) -> str:
    """``f`` of ``f.part.0``, ``f.cold``; ``x`` of the static local ``x.1234``."""
    return re.sub(r"\.(cold|part\.\d+|\d+)$", "", name)


@dataclass
class _OldSymbol:
    name: str
    type: str
    address: int
    size: int
    file: str | None


class _Program:
    """The test program: symbols, code and GOT slots, by link-time address."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = path.read_bytes()
        elf = ELFFile(io.BytesIO(self._bytes))
        self._loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        self.text = [
            {"address": s["p_vaddr"], "size": s["p_memsz"]} for s in self._loads if s["p_flags"] & 1
        ]
        interpreter = any(s["p_type"] == "PT_INTERP" for s in elf.iter_segments())
        executable = elf["e_type"] == "ET_EXEC" or interpreter
        self.kind = "executable" if executable else "shared_library"
        self.build_id = ""
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_NOTE":
                for note in segment.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        self.build_id = note["n_desc"]
        dynamic = elf.get_section_by_name(".dynamic")
        self.soname: str | None = None
        for tag in dynamic.iter_tags() if dynamic else ():
            if tag.entry.d_tag == "DT_SONAME":
                self.soname = tag.soname
        self.symbols: dict[str, list[_OldSymbol]] = {}
        file = None
        for symbol in elf.get_section_by_name(".symtab").iter_symbols():
            kind = symbol["st_info"]["type"]
            if kind == "STT_FILE":
                file = symbol.name or None
            elif symbol.name and symbol["st_shndx"] != "SHN_UNDEF" and kind != "STT_SECTION":
                local = symbol["st_info"]["bind"] == "STB_LOCAL"
                name = symbol.name.split("@")[0]
                self.symbols.setdefault(name, []).append(
                    _OldSymbol(
                        name,
                        kind,
                        symbol["st_value"],
                        symbol["st_size"],
                        file if local else None,
                    )
                )
        self._read_imports(elf)

    def _read_imports(self, elf: ELFFile) -> None:
        self.got: dict[str, list[int]] = {}
        self.versions: dict[str, str | None] = {}
        self.import_kinds: dict[str, str] = {}
        dynsym = elf.get_section_by_name(".dynsym")
        if dynsym is None:
            return
        versym = elf.get_section_by_name(".gnu.version")
        needed = elf.get_section_by_name(".gnu.version_r")
        names: dict[int, str] = {}
        for _, auxiliaries in needed.iter_versions() if needed else ():
            for auxiliary in auxiliaries:
                names[auxiliary["vna_other"]] = auxiliary.name
        for index, symbol in enumerate(dynsym.iter_symbols()):
            if symbol["st_shndx"] == "SHN_UNDEF" and versym:
                number = versym.get_symbol(index)["ndx"]
                self.versions[symbol.name] = names.get(number)
                data = symbol["st_info"]["type"] == "STT_OBJECT"
                self.import_kinds[symbol.name] = "data" if data else "function"
        for section in elf.iter_sections():
            if section["sh_type"] == "SHT_RELA" and section["sh_flags"] & out.SHF_ALLOC:
                for entry in section.iter_relocations():
                    if entry["r_info_type"] in (R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT):
                        name = dynsym.get_symbol(entry["r_info_sym"]).name
                        self.got.setdefault(name, []).append(entry["r_offset"])

    def read(self, address: int, size: int) -> bytes:
        for load in self._loads:
            start = load["p_vaddr"]
            if start <= address and address + size <= start + load["p_filesz"]:
                offset = load["p_offset"] + address - start
                return self._bytes[offset : offset + size]
        raise ValueError(f"{self.path} has no bytes at {address:#x}+{size}")

    def entries(self) -> list[tuple[int, int]]:
        """(address, size) of each function, sorted, without aliases."""
        found: dict[int, int] = {}
        for symbols in self.symbols.values():
            for symbol in symbols:
                inside = any(
                    t["address"] <= symbol.address < t["address"] + t["size"] for t in self.text
                )
                if inside and (symbol.type == "STT_FUNC" or symbol.name == "_start"):
                    found[symbol.address] = max(found.get(symbol.address, 0), symbol.size)
        return sorted(found.items())

    def function(self, name: str) -> _OldSymbol:
        found = [s for s in self.symbols.get(name, ()) if s.type in ("STT_FUNC", "STT_GNU_IFUNC")]
        if len({s.address for s in found}) != 1:
            raise ValueError(f"{self.path} has {len(found)} functions named {name}")
        return found[0]

    def find(self, name: str) -> _OldSymbol | None:
        """The program's symbol of that name; a static local by its stem if that is unique."""
        found = self.symbols.get(name, [])
        if not found and re.search(r"\.\d+$", name):
            stem = _stem(name)
            found = [
                symbol
                for other, symbols in self.symbols.items()
                if re.fullmatch(re.escape(stem) + r"\.\d+", other)
                for symbol in symbols
            ]
        if len({s.address for s in found}) > 1:
            raise ValueError(f"{self.path}: {name} is ambiguous")
        return found[0] if found else None

    def pieces(self, name: str) -> list[tuple[str, _OldSymbol]]:
        """(kind, symbol) of the cold and part pieces of a function."""
        found = []
        for other, symbols in sorted(self.symbols.items()):
            if other == name or not other.startswith(name + "."):
                continue
            if re.fullmatch(r"(\.part\.\d+)?\.cold", other[len(name) :]):
                found.append(("cold", symbols[0]))
            elif re.fullmatch(r"\.part\.\d+", other[len(name) :]):
                found.append(("part", symbols[0]))
        return found


@dataclass
class _NewCode:
    """The sections and symbols of the patch ELF, picked from the compiled new source."""

    data: bytes
    old: _Program
    functions: list[str]
    sections: list[Section] = field(default_factory=list)
    symbols: dict[str, Symbol] = field(default_factory=dict)
    owners: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        elf = ELFFile(io.BytesIO(self.data))
        self._elf = elf
        self._symtab = list(elf.get_section_by_name(".symtab").iter_symbols())
        self._homes: dict[int, Section] = {}
        self._rela = {s["sh_info"]: s for s in elf.iter_sections() if s["sh_type"] == "SHT_RELA"}
        self._at: dict[tuple[int, int], str] = {}
        for symbol in self._symtab:
            index = symbol["st_shndx"]
            if isinstance(index, int) and symbol["st_info"]["type"] != "STT_SECTION":
                self._at.setdefault((index, symbol["st_value"]), symbol.name)
        todo = [
            s["st_shndx"]
            for s in self._symtab
            if s.name in self.functions and isinstance(s["st_shndx"], int)
        ]
        missing = set(self.functions) - {s.name for s in self._symtab}
        if missing:
            raise ValueError(f"the new source has no {', '.join(sorted(missing))}")
        while todo:
            todo += self._take(todo.pop())
        self._take_eh_frame()

    def _is_new(self, name: str) -> bool:
        """Whether a name that the new source defines is new code or data."""
        return (
            _stem(name) in self.functions
            or _stem(_stem(name)) in self.functions
            or (self.old.find(name) is None)
        )

    def _take(self, index: int) -> list[int]:
        """Copy a section; the indices of sections it needs."""
        if index in self._homes:
            return []
        source = self._elf.get_section(index)
        nobits = source["sh_type"] == "SHT_NOBITS"
        flags = source["sh_flags"] & (out.SHF_WRITE | out.SHF_ALLOC | out.SHF_EXECINSTR)
        if not flags & out.SHF_ALLOC:
            raise ValueError(f"new code needs {source.name}, which is not loaded")
        section = Section(
            source.name,
            out.SHT_NOBITS if nobits else out.SHT_PROGBITS,
            flags,
            b"" if nobits else source.data(),
            max(source["sh_addralign"], 1),
            source["sh_size"] if nobits else None,
        )
        self._homes[index] = section
        self.sections.append(section)
        for symbol in self._symtab:
            if symbol["st_shndx"] == index and symbol["st_info"]["type"] == "STT_FUNC":
                self.symbols["new:" + symbol.name] = Symbol(
                    symbol.name, out.STT_FUNC, section, symbol["st_value"], symbol["st_size"]
                )
        return self._relocate(index, section)

    def _relocate(self, index: int, section: Section) -> list[int]:
        needed: list[int] = []
        code = bool(section.flags & out.SHF_EXECINSTR)
        for entry in self._rela[index].iter_relocations() if index in self._rela else ():
            symbol, addend, more = self._resolve(entry, section.data if code else None)
            section.relocations.append(
                Relocation(entry["r_offset"], symbol, entry["r_info_type"], addend)
            )
            needed += more
        return needed

    def _resolve(self, entry: Any, code: bytes | None) -> tuple[Symbol, int, list[int]]:
        """Symbol and addend in the patch ELF for a relocation of the object file, and the
        sections it needs; ``code`` is the code that holds the field, None for data.
        """
        symbol = self._symtab[entry["r_info_sym"]]
        addend, home = entry["r_addend"], symbol["st_shndx"]
        if home == "SHN_UNDEF":
            outside = self._outside(symbol.name)
            owner = self.owners[outside.name]
            unknown = owner["owner"] == "import" and symbol.name not in self.old.import_kinds
            if unknown and entry["r_info_type"] == R_X86_64_PC32:
                # only data are referred to so: functions by PLT32, their addresses by a slot
                owner["kind"] = "data"
            return outside, addend, []
        if not isinstance(home, int):
            raise RuntimeError(f"unexpected home {home} of {symbol.name}")
        if symbol["st_info"]["type"] != "STT_SECTION":
            name = symbol.name
            if name in self.functions or not self._is_new(name):
                return self._outside(name), addend, []
            if symbol["st_info"]["type"] == "STT_TLS":
                raise ValueError(f"{name} is a thread-local variable the program does not have")
            return self._section_symbol(home), addend + symbol["st_value"], [home]
        # gas refers to local symbols as section + offset: find out which symbol was meant
        section = self._elf.get_section(home)
        if section["sh_flags"] & out.SHF_EXECINSTR:
            meant = self._function_meant(entry, home, code)
        elif section["sh_flags"] & out.SHF_WRITE and not section.name.startswith(".data.rel.ro"):
            objects = {
                (s.name, s["st_value"])
                for s in self._symtab
                if s["st_shndx"] == home and s["st_info"]["type"] == "STT_OBJECT"
            }
            meant = objects.pop() if len(objects) == 1 else None
        else:
            meant = None  # constants come along with the new code
        if meant is not None and (meant[0] in self.functions or not self._is_new(meant[0])):
            return self._outside(meant[0]), addend - meant[1], []
        return self._section_symbol(home), addend, [home]

    def _function_meant(self, entry: Any, home: int, text: bytes | None) -> tuple[str, int] | None:
        """(name, offset) of the function whose entry a relocation against a section means."""
        offset = entry["r_addend"]
        if text is not None:
            # a PC-relative field's addend also counts the bytes to the instruction's end
            if entry["r_info_type"] != R_X86_64_64:
                offset += _distance_to_end(text, entry["r_offset"])
        elif entry["r_info_type"] != R_X86_64_64:
            return None  # a jump table or unwind information: this very code
        name = self._at.get((home, offset))
        return None if name is None else (name, offset)

    def _section_symbol(self, index: int) -> Symbol:
        key = f"section:{index}"
        if key not in self.symbols:
            self.symbols[key] = Symbol("", out.STT_SECTION, None, local=True)
        return self.symbols[key]

    def _outside(self, name: str) -> Symbol:
        """An undefined symbol: of the program, or an import."""
        key = "undefined:" + name
        if key in self.symbols:
            return self.symbols[key]
        found = self.old.find(name)
        label = name
        if found is None:
            self.owners[label] = {
                "owner": "import",
                "name": name,
                "version": self.old.versions.get(name),
                "kind": self.old.import_kinds.get(name, "function"),
                "got": self.old.got.get(name, []),
            }
        else:
            if name in self.functions:
                label = name + ".original"
            self.owners[label] = {
                "owner": "object",
                "name": found.name,
                "file": found.file,
                "kind": _TYPES.get(found.type, "data"),
                "address": found.address,
                "size": found.size,
            }
        self.symbols[key] = Symbol(label, out.STT_NOTYPE)
        return self.symbols[key]

    def _take_eh_frame(self) -> None:
        """Copy the unwind information of the sections taken, and of no others."""
        index = self._elf.get_section_index(".eh_frame")
        if index is None:
            return
        data = self._elf.get_section(index).data()
        entries = {e["r_offset"]: e for e in self._rela[index].iter_relocations()}
        records = _eh_frame_records(data)

        def kept() -> list[tuple[int, int, int]]:
            chosen = []
            for start, end, cie in records:
                if cie is not None:
                    begin = self._symtab[entries[start + 8]["r_info_sym"]]
                    if begin["st_shndx"] in self._homes:
                        chosen.append((start, end, cie))
            return chosen

        # language-specific data may lead to further sections (landing pads in cold code)
        before = -1
        while before != len(self._homes):
            before = len(self._homes)
            for start, end, cie in kept():
                for offset, entry in entries.items():
                    if start <= offset < end or offset == cie:
                        todo = self._resolve(entry, None)[2]
                        while todo:
                            todo += self._take(todo.pop())

        section = Section(".eh_frame", out.SHT_PROGBITS, out.SHF_ALLOC, b"", 8)
        result = bytearray()

        def copy(start: int, end: int) -> int:
            place = len(result)
            result.extend(data[start:end])
            for offset in sorted(entries):
                if start <= offset < end:
                    symbol, addend, more = self._resolve(entries[offset], None)
                    for home in more:
                        self._take(home)
                    section.relocations.append(
                        Relocation(
                            place + offset - start, symbol, entries[offset]["r_info_type"], addend
                        )
                    )
            return place

        cies: dict[int, int] = {}
        for start, end, cie in kept():
            if cie not in cies:
                cies[cie] = copy(cie, next(e for s, e, _ in records if s == cie))
            place = copy(start, end)
            struct.pack_into("<I", result, place + 4, place + 4 - cies[cie])
        section.data = bytes(result)
        if result:
            self.sections.append(section)
        for key, symbol in self.symbols.items():
            if key.startswith("section:"):
                symbol.section = self._homes[int(key.split(":")[1])]


def _eh_frame_records(data: bytes) -> list[tuple[int, int, int | None]]:
    """(start, end, start of its CIE or None for a CIE) of each record of an .eh_frame."""
    records: list[tuple[int, int, int | None]] = []
    position = 0
    while position + 8 <= len(data):
        length, pointer = struct.unpack_from("<II", data, position)
        if length == 0:
            break
        cie = position + 4 - pointer if pointer else None
        records.append((position, position + 4 + length, cie))
        position += 4 + length
    return records


def _distance_to_end(text: bytes, field_offset: int) -> int:
    """Bytes from a 32-bit field of an instruction to the instruction's end."""
    decoder = analysis.Decoder(64, text, ip=0)
    for instruction in decoder:
        if instruction.ip <= field_offset < instruction.ip + instruction.len:
            return int(instruction.ip + instruction.len - field_offset)
    raise ValueError(f"no instruction at {field_offset:#x}")


def _metadata(
    old: _Program,
    new: _NewCode,
    functions: Sequence[str],
    compiler: str,
    flags: Sequence[str],
) -> tuple[dict[str, Any], bytes]:
    symbols = {name: old.function(name) for name in functions}
    replaced = {symbol.address: name for name, symbol in symbols.items()}
    entries = old.entries()
    old_bytes = bytearray()
    described, edges = [], {}
    for name, symbol in symbols.items():
        main = analysis.Piece(symbol.address, old.read(symbol.address, symbol.size))
        others = [
            (kind, analysis.Piece(s.address, old.read(s.address, s.size)))
            for kind, s in old.pieces(name)
        ]
        every = [main, *(piece for _, piece in others)]
        edges[name] = analysis.tail_edges(every, replaced)
        offset = len(old_bytes)
        old_bytes += main.code
        pieces = []
        for kind, piece in others:
            pieces.append(
                {
                    "kind": kind,
                    "address": piece.address,
                    "size": len(piece.code),
                    "old_offset": len(old_bytes),
                    "ends_in_call": analysis.ends_in_call(piece),
                }
            )
            old_bytes += piece.code
        described.append(
            {
                "name": name,
                "file": symbol.file,
                "symbol": name,
                "address": symbol.address,
                "size": symbol.size,
                "old_offset": offset,
                "ends_in_call": analysis.ends_in_call(main),
                "pieces": pieces,
                "displaced": analysis.displaced(main),
                "hold": analysis.hold(main, every[1:]),
                "padding": analysis.padding(main, old.read, entries),
                "inner_entries": analysis.inner_entries(main, every[1:], [e[0] for e in entries]),
                "tail_edges": edges[name],
                "new_tail_edges": [],
            }
        )
    rules = analysis.migrate_rules(edges)
    for function in described:
        function["migrate"] = rules[function["name"]]
    meta = {
        "format": 1,
        "machine": "x86_64",
        "object": {
            "build_ids": [old.build_id],
            "name": old.path.name,
            "soname": old.soname,
            "kind": old.kind,
            "text": old.text,
        },
        "functions": described,
        "symbols": new.owners,
        "built": {
            "builder": "sample",
            "compiler": compiler,
            "flags": " ".join(flags),
            "method": "plain",
        },
    }
    return meta, bytes(old_bytes)
