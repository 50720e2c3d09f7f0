# SPDX-License-Identifier: GPL-3.0-or-later
"""A linked ELF image (executable or shared library) as the builder reads it.

Addresses are link-time virtual addresses. The file may be stripped: everything here comes from
program headers, dynamic relocations, .dynsym and .eh_frame, except ``symtab``.
"""

from __future__ import annotations

import bisect
import functools
import io
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import NoteSection, SymbolTableSection
from iced_x86 import Mnemonic

from wfpatch_build.errors import Refusal
from wfpatch_build.instructions import decode, is_indirect_jump, rip_target
from wfpatch_build.unwind_table import Fde, read_fdes

R_X86_64_64 = 1
R_X86_64_COPY = 5
R_X86_64_GLOB_DAT = 6
R_X86_64_JUMP_SLOT = 7
R_X86_64_RELATIVE = 8
R_X86_64_DTPMOD64 = 16
R_X86_64_DTPOFF64 = 17
R_X86_64_TPOFF64 = 18
R_X86_64_IRELATIVE = 37


@dataclass(frozen=True)
class Section:
    name: str
    type: str
    address: int
    offset: int
    size: int
    flags: int

    @property
    def allocated(self) -> bool:
        return bool(self.flags & 2)

    @property
    def writable(self) -> bool:
        return bool(self.flags & 1)

    @property
    def executable(self) -> bool:
        return bool(self.flags & 4)

    def contains(self, address: int) -> bool:
        return self.address <= address < self.address + self.size


@dataclass(frozen=True)
class Symbol:
    """One row of .symtab or .dynsym. ``file`` is the STT_FILE above a local symbol, ``unit`` the
    number of that STT_FILE row among all: two objects may come from files of one name."""

    name: str
    address: int
    size: int
    type: str  # STT_FUNC, STT_OBJECT, STT_TLS, STT_NOTYPE, STT_GNU_IFUNC
    binding: str  # STB_LOCAL, STB_GLOBAL, STB_WEAK
    section: int | None  # None: undefined
    file: str | None = None
    version: str | None = None
    unit: int = -1


@dataclass(frozen=True)
class DynamicRelocation:
    address: int
    type: int
    addend: int
    symbol: Symbol | None


@dataclass(frozen=True)
class Segment:
    address: int
    offset: int
    file_size: int
    memory_size: int
    flags: int


class ObjectFile:
    """A linked x86-64 ELF image held in memory."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        try:
            self._elf = ELFFile(io.BytesIO(data))
        except ELFError as error:
            raise Refusal("not_an_object", f"{name}: not an ELF file ({error})") from error
        header = self._elf.header
        if self._elf.elfclass != 64 or header["e_machine"] != "EM_X86_64":
            raise Refusal("not_an_object", f"{name}: not an x86-64 ELF file")
        self.type = str(header["e_type"])
        self.segments = tuple(
            Segment(s["p_vaddr"], s["p_offset"], s["p_filesz"], s["p_memsz"], s["p_flags"])
            for s in self._elf.iter_segments("PT_LOAD")
        )
        self.sections = tuple(
            Section(s.name, s["sh_type"], s["sh_addr"], s["sh_offset"], s["sh_size"], s["sh_flags"])
            for s in self._elf.iter_sections()
        )

    @classmethod
    def load(cls, path: Path) -> ObjectFile:
        """Read ``path``; its name is the resolved file's. Raises Refusal."""
        resolved = path.resolve()
        return cls(resolved.read_bytes(), resolved.name)

    # -- identity ---------------------------------------------------------------------------

    @functools.cached_property
    def build_id(self) -> str | None:
        """The GNU build-id as lower-case hex, or None."""
        for section in self._elf.iter_sections():
            if isinstance(section, NoteSection):
                for note in section.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        return str(note["n_desc"])
        return None

    @functools.cached_property
    def soname(self) -> str | None:
        dynamic = self._elf.get_section_by_name(".dynamic")
        if isinstance(dynamic, DynamicSection):
            for tag in dynamic.iter_tags("DT_SONAME"):
                return str(tag.soname)
        return None

    @functools.cached_property
    def needed(self) -> tuple[str, ...]:
        """Sonames of the libraries it is linked to."""
        dynamic = self._elf.get_section_by_name(".dynamic")
        if isinstance(dynamic, DynamicSection):
            return tuple(str(tag.needed) for tag in dynamic.iter_tags("DT_NEEDED"))
        return ()

    @functools.cached_property
    def kind(self) -> str:
        """``executable`` or ``shared_library``: a PIE has an interpreter, a library has none."""
        interp = any(s["p_type"] == "PT_INTERP" for s in self._elf.iter_segments())
        pie = self.type == "ET_DYN" and self._dynamic_flags_1 & 0x08000000  # DF_1_PIE
        if self.type == "ET_EXEC" or pie or (interp and self.soname is None):
            return "executable"
        return "shared_library"

    @functools.cached_property
    def _dynamic_flags_1(self) -> int:
        dynamic = self._elf.get_section_by_name(".dynamic")
        if isinstance(dynamic, DynamicSection):
            for tag in dynamic.iter_tags("DT_FLAGS_1"):
                return int(tag["d_val"])
        return 0

    @property
    def text_segments(self) -> tuple[Segment, ...]:
        return tuple(s for s in self.segments if s.flags & 1)

    # -- bytes ------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at ``address`` as the file has them (before relocation); .bss is zero.

        Returns fewer bytes where the segment ends, b"" where nothing is mapped.
        """
        for segment in self.segments:
            delta = address - segment.address
            if 0 <= delta < segment.memory_size:
                size = min(size, segment.memory_size - delta)
                start = segment.offset + delta
                stop = min(start + size, segment.offset + segment.file_size)
                return self.data[start : max(start, stop)].ljust(size, b"\0")
        return b""

    def section(self, name: str) -> Section | None:
        return next((s for s in self.sections if s.name == name), None)

    def section_bytes(self, section: Section) -> bytes:
        if section.type == "SHT_NOBITS":
            return bytes(section.size)
        return self.data[section.offset : section.offset + section.size]

    def section_at(self, address: int) -> Section | None:
        """The allocated section that holds ``address`` (TLS templates excepted)."""
        for section in self.sections:
            if section.allocated and not section.flags & 0x400 and section.contains(address):
                return section
        return None

    @functools.cached_property
    def thread_local_size(self) -> int:
        """The size of an executable's thread-local block, as it lies below the thread pointer."""
        for segment in self._elf.iter_segments("PT_TLS"):
            alignment = max(1, segment["p_align"])
            return int(-(-segment["p_memsz"] // alignment) * alignment)
        return 0

    def thread_pointer_offset(self, value: int) -> int:
        """An executable's STT_TLS value -> offset from the thread pointer (negative).

        TLS variant II: the block ends at the thread pointer (ELF handling for TLS, 3.4.6).
        """
        return value - self.thread_local_size

    def thread_local_value(self, offset: int) -> int:
        """The opposite of thread_pointer_offset()."""
        return offset + self.thread_local_size

    # -- symbols ----------------------------------------------------------------------------

    def _symbols(self, name: str) -> tuple[Symbol, ...]:
        table = self._elf.get_section_by_name(name)
        if not isinstance(table, SymbolTableSection):
            return ()
        versions = self._versions if name == ".dynsym" else {}
        found: list[Symbol] = []
        file: str | None = None
        unit = -1
        for number, row in enumerate(table.iter_symbols()):
            info = row["st_info"]
            if info["type"] == "STT_FILE":
                file = row.name or None
                unit += 1
                continue
            index = row["st_shndx"]
            local = info["bind"] == "STB_LOCAL"
            found.append(
                Symbol(
                    row.name,
                    row["st_value"],
                    row["st_size"],
                    "STT_GNU_IFUNC" if info["type"] == "STT_LOOS" else info["type"],
                    info["bind"],
                    None if index == "SHN_UNDEF" else (index if isinstance(index, int) else -1),
                    file if local else None,
                    versions.get(number),
                    unit if local else -1,
                )
            )
        return tuple(found)

    @functools.cached_property
    def symtab(self) -> tuple[Symbol, ...]:
        """.symtab in file order, locals with their file; empty when stripped."""
        return self._symbols(".symtab")

    @functools.cached_property
    def dynsym(self) -> tuple[Symbol, ...]:
        return self._symbols(".dynsym")

    @functools.cached_property
    def _versions(self) -> dict[int, str]:
        table = self._elf.get_section_by_name(".gnu.version")
        need = self._elf.get_section_by_name(".gnu.version_r")
        if table is None or not isinstance(need, GNUVerNeedSection):
            return {}
        names = {
            aux["vna_other"] & 0x7FFF: aux.name
            for _, auxiliaries in need.iter_versions()
            for aux in auxiliaries
        }
        raw = table.data()
        numbers = [int.from_bytes(raw[i : i + 2], "little") & 0x7FFF for i in range(0, len(raw), 2)]
        return {i: names[n] for i, n in enumerate(numbers) if n in names}

    # -- relocations ------------------------------------------------------------------------

    @functools.cached_property
    def relocations(self) -> tuple[DynamicRelocation, ...]:
        """The dynamic relocations, .rela.dyn and .rela.plt together."""
        found = []
        for section in self._elf.iter_sections():
            if not isinstance(section, RelocationSection) or not section["sh_flags"] & 2:
                continue
            for row in section.iter_relocations():
                number = row["r_info_sym"]
                found.append(
                    DynamicRelocation(
                        row["r_offset"],
                        row["r_info_type"],
                        row["r_addend"],
                        self.dynsym[number] if number else None,
                    )
                )
        return tuple(found)

    @functools.cached_property
    def relative(self) -> dict[int, int]:
        """Address of a data word -> the address in this object that it will hold."""
        words = {r.address: r.addend for r in self.relocations if r.type == R_X86_64_RELATIVE}
        for r in self.relocations:
            if r.type == R_X86_64_64 and r.symbol is not None and r.symbol.section is not None:
                words[r.address] = r.symbol.address + r.addend
        return words

    @functools.cached_property
    def symbolic(self) -> dict[int, str]:
        """Address of a data word -> name of the dynamic symbol whose address it will hold."""
        return {
            r.address: r.symbol.name
            for r in self.relocations
            if r.type == R_X86_64_64 and r.symbol is not None
        }

    @functools.cached_property
    def got_slots(self) -> dict[str, tuple[int, ...]]:
        """Name of a dynamic symbol -> addresses of the GOT slots that hold its address."""
        slots: dict[str, list[int]] = {}
        for r in self.relocations:
            if r.type in (R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT) and r.symbol is not None:
                slots.setdefault(r.symbol.name, []).append(r.address)
        return {name: tuple(sorted(found)) for name, found in slots.items()}

    @functools.cached_property
    def plt(self) -> dict[int, str]:
        """Address of a PLT entry -> name of the symbol it jumps to."""
        by_slot = {
            r.address: r.symbol.name
            for r in self.relocations
            if r.type in (R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT) and r.symbol is not None
        }
        entries: dict[int, str] = {}
        for section in self.sections:
            if section.name not in (".plt", ".plt.got", ".plt.sec"):
                continue
            landing_pad = None  # an endbr64 in front of the jump is the entry's first byte
            for instruction in decode(self.section_bytes(section), section.address):
                if is_indirect_jump(instruction):
                    slot = rip_target(instruction)
                    if slot in by_slot:
                        start = instruction.ip if landing_pad is None else landing_pad
                        entries[start] = by_slot[slot]
                endbr = instruction.mnemonic == Mnemonic.ENDBR64
                landing_pad = instruction.ip if endbr else None
        return entries

    # -- code -------------------------------------------------------------------------------

    @functools.cached_property
    def fdes(self) -> tuple[Fde, ...]:
        section = self.section(".eh_frame")
        if section is None or section.type == "SHT_NOBITS":
            return ()
        return tuple(read_fdes(self.section_bytes(section), section.address))

    @functools.cached_property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """(start, size) of each piece of code that an FDE describes, PLT sections left out."""
        plt = [s for s in self.sections if s.executable and s.name.startswith(".plt")]
        return tuple(
            sorted(
                {(f.start, f.size) for f in self.fdes if not any(s.contains(f.start) for s in plt)}
            )
        )

    @functools.cached_property
    def _piece_starts(self) -> list[int]:
        return [start for start, _ in self.pieces]

    def piece_at(self, address: int) -> tuple[int, int] | None:
        """The (start, size) of the piece whose inside holds ``address``."""
        index = bisect.bisect_right(self._piece_starts, address) - 1
        if index >= 0:
            start, size = self.pieces[index]
            if start <= address < start + size:
                return start, size
        return None
