# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares a patch ELF's code with the same code as the system's linker links it.

The oracle shares nothing with the builder but the instruction decoder: it links the changed source
fully, reads the result with pyelftools and asks where each operand of a function leads. In the
patch ELF the same question is answered from its relocations and metadata. Both must name the same
thing: a symbol and offset, or a piece of read-only content.
"""

from __future__ import annotations

import bisect
import io
import json
from pathlib import Path

from elftools.elf.elffile import ELFFile
from iced_x86 import Decoder, FlowControl, Mnemonic, OpKind


def _operand(instruction):
    """(kind, address) of the one place an instruction names PC-relatively, or None."""
    if instruction.op_count and instruction.op0_kind == OpKind.NEAR_BRANCH64:
        return "branch", instruction.near_branch_target
    if instruction.is_ip_rel_memory_operand:
        return "memory", instruction.ip_rel_memory_address
    return None


def _code(data: bytes, address: int):
    return [i for i in Decoder(64, data, ip=address) if i.mnemonic != Mnemonic.NOP]


def _plain(name: str) -> str:
    return name.partition("@")[0]


class Linked:
    """A fully linked, unstripped binary."""

    def __init__(self, path: Path) -> None:
        self.elf = ELFFile(io.BytesIO(path.read_bytes()))
        rows = [
            s
            for s in self.elf.get_section_by_name(".symtab").iter_symbols()
            if s["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT") and s["st_shndx"] != "SHN_UNDEF"
        ]
        self.symbols = {_plain(s.name): (s["st_value"], s["st_size"]) for s in rows}
        self._sorted = sorted((a, n, size) for n, (a, size) in self.symbols.items())
        self._plt = self._read_plt()

    def read(self, address: int, size: int) -> bytes:
        for segment in self.elf.iter_segments("PT_LOAD"):
            delta = address - segment["p_vaddr"]
            if 0 <= delta < segment["p_memsz"]:
                return segment.data()[delta : delta + size].ljust(size, b"\0")
        raise AssertionError(f"nothing at {address:#x}")

    def writable(self, address: int) -> bool:
        return any(
            s["p_vaddr"] <= address < s["p_vaddr"] + s["p_memsz"] and s["p_flags"] & 2
            for s in self.elf.iter_segments("PT_LOAD")
        )

    def _read_plt(self) -> dict[int, str]:
        dynsym = self.elf.get_section_by_name(".dynsym")
        slots = {}
        for name in (".rela.plt", ".rela.dyn"):
            section = self.elf.get_section_by_name(name)
            for row in section.iter_relocations() if section else ():
                if row["r_info_sym"]:
                    slots[row["r_offset"]] = dynsym.get_symbol(row["r_info_sym"]).name
        self.slots = slots
        entries = {}
        for name in (".plt", ".plt.got", ".plt.sec"):
            section = self.elf.get_section_by_name(name)
            if section is None:
                continue
            for instruction in Decoder(64, section.data(), ip=section["sh_addr"]):
                if instruction.flow_control == FlowControl.INDIRECT_BRANCH:
                    slot = instruction.ip_rel_memory_address
                    if slot in slots:
                        entries[instruction.ip] = slots[slot]
        return entries

    def names(self, address: int) -> set[tuple[str, int]]:
        """All (symbol, offset) pairs for an address."""
        if address in self._plt:
            return {(self._plt[address], 0)}
        if address in self.slots:
            return {(self.slots[address], 0)}
        found = set()
        index = bisect.bisect_right(self._sorted, (address, chr(0x10FFFF), 0))
        for start, name, size in self._sorted[max(0, index - 40) : index]:
            if start <= address < start + max(size, 1):
                found.add((name, address - start))
        return found


class Patch:
    """A patch ELF, read with pyelftools."""

    def __init__(self, data: bytes) -> None:
        self.elf = ELFFile(io.BytesIO(data))
        self.metadata = json.loads(self.elf.get_section_by_name(".wfpatch.meta").data())
        self.symbols = list(self.elf.get_section_by_name(".symtab").iter_symbols())
        self.sections = list(self.elf.iter_sections())
        self._relocations: dict[int, dict[int, object]] = {}
        for section in self.sections:
            if section["sh_type"] == "SHT_RELA":
                rows = {r["r_offset"]: r for r in section.iter_relocations()}
                self._relocations[section["sh_info"]] = rows

    def place(self, name: str) -> tuple[int, int, int]:
        """(section, offset, size) of a defined function symbol."""
        for symbol in self.symbols:
            if symbol.name == name and symbol["st_info"]["type"] == "STT_FUNC":
                return symbol["st_shndx"], symbol["st_value"], symbol["st_size"]
        raise AssertionError(f"no code for {name}")

    def target(self, section: int, instruction):
        """(symbol, offset beyond it) that the instruction's relocated field names, or None."""
        for offset in range(instruction.ip, instruction.ip + instruction.len):
            row = self._relocations.get(section, {}).get(offset)
            if row is not None:
                end = instruction.ip + instruction.len
                return self.symbols[row["r_info_sym"]], row["r_addend"] + end - offset
        return None

    def table_targets(self, section: int) -> list[tuple[object, int]]:
        """Where the entries of a switch table section lead: (symbol, offset), in order."""
        rows = self._relocations.get(section, {})
        return [
            (self.symbols[rows[o]["r_info_sym"]], rows[o]["r_addend"] - o) for o in sorted(rows)
        ]


def same_code(patch: Patch, linked: Linked, name: str, spelt: str | None = None) -> int:
    """Assert that ``name``'s new code does what the linked function does; returns operands seen."""
    section, offset, size = patch.place(name)
    content = patch.sections[section].data()[offset : offset + size]
    mine = _code(content, offset)
    start, length = linked.symbols[spelt or name]
    theirs = _code(linked.read(start, length), start)
    assert len(mine) == len(theirs), f"{name}: {len(mine)} instructions, linked {len(theirs)}"
    number_of = {i.ip: n for n, i in enumerate(mine)}
    linked_number_of = {i.ip: n for n, i in enumerate(theirs)}
    seen = 0
    for ours, other in zip(mine, theirs, strict=True):
        relaxed = other.mnemonic == Mnemonic.LEA or ours.is_call_near_indirect
        assert ours.mnemonic == other.mnemonic or relaxed, f"{name}: {ours} / {other}"
        place = _operand(other)
        named = patch.target(section, ours)
        if named is None:
            if place is not None and place[0] == "branch":
                own = _operand(ours)
                assert number_of[own[1]] == linked_number_of[place[1]], f"{name}: {ours}"
            continue
        seen += 1
        _same_place(patch, linked, named, place, f"{name}: {ours}")
    return seen


def _same_place(patch: Patch, linked: Linked, named, place, where: str) -> None:
    symbol, offset = named
    assert place is not None, where
    address = place[1]
    if symbol["st_shndx"] == "SHN_UNDEF":
        owner = patch.metadata["symbols"][symbol.name]
        names = linked.names(address)
        assert (owner["name"], offset) in names, f"{where}: {owner['name']}+{offset}, not {names}"
        return
    if symbol["st_info"]["type"] == "STT_FUNC":
        assert (symbol.name.partition("~")[0], offset) in linked.names(address), where
        return
    section = patch.sections[symbol["st_shndx"]]
    start = symbol["st_value"] + offset
    tables = patch.table_targets(symbol["st_shndx"])
    if tables and tables[0][0]["st_info"]["type"] == "STT_FUNC":
        for number, (target, beyond) in enumerate(tables):
            raw = linked.read(address + 4 * number, 4)
            there = address + int.from_bytes(raw, "little", signed=True)
            found = {n for n, _ in linked.names(there)}
            assert target.name.partition("~")[0] in found, f"{where}: table entry {number}"
            first = linked.symbols[target.name.partition("~")[0]][0]
            assert abs((there - first) - beyond) < 64, f"{where}: table entry {number}"
        return
    if section["sh_type"] == "SHT_NOBITS" or section["sh_flags"] & 1:
        assert linked.writable(address), f"{where}: new data at {address:#x}"
        return
    if not tables:
        # Behind an unnamed datum there may be fill, which the linker lays out anew.
        mine = section.data()[start : start + max(1, symbol["st_size"])].rstrip(b"\0")
        assert linked.read(address, len(mine)) == mine, f"{where}: other content"
