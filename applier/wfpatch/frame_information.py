# SPDX-License-Identifier: GPL-3.0-or-later
"""Call frame information: what .eh_frame says about one place in the code.

Sources: DWARF 4, section 6.4; LSB Core 5.0, chapter 10.6 (.eh_frame, .eh_frame_hdr); System V ABI
AMD64 supplement, 3.6.2 (register numbers). All input is the process's memory: bounded, checked, and
what is not understood raises CannotUnwind.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import NamedTuple

from .dwarf_expression import CannotUnwind, Reader
from .object_memory import ObjectMemory

RBX, RBP, RSP, RIP = 3, 6, 7, 16
#: Registers that a function must leave as they were (psABI 3.2.1): without a rule, unchanged.
CALLEE_SAVED = frozenset((RBX, RBP, 12, 13, 14, 15))

_MAX_RECORD = 1 << 20
_MAX_STATES = 64
_MAX_RECORDS = 1 << 16

OMIT = 0xFF
PCREL, DATAREL, INDIRECT = 0x10, 0x30, 0x80


class Rule(NamedTuple):
    """How to get one register of the caller; ``kind`` is one of the words below.

    undefined | same | offset (saved at CFA + value) | val_offset (is CFA + value) | register |
    expression (saved at its result) | val_expression (is its result)
    """

    kind: str
    value: int = 0
    code: bytes = b""


UNDEFINED, SAME = Rule("undefined"), Rule("same")


class CfaRule(NamedTuple):
    """The canonical frame address: register + offset, or an expression."""

    register: int
    offset: int
    code: bytes | None = None


@dataclass(frozen=True)
class Row:
    """The rules at one pc; ``begin`` and ``end`` are of the whole FDE."""

    begin: int
    end: int
    cfa: CfaRule
    rules: dict[int, Rule]
    return_register: int
    signal_frame: bool


@dataclass(frozen=True)
class _Cie:
    code_factor: int
    data_factor: int
    return_register: int
    encoding: int
    augmented: bool
    signal_frame: bool
    instructions: bytes


@dataclass(frozen=True)
class _Fde:
    cie: _Cie
    begin: int
    end: int
    instructions: bytes


def _pointer(reader: Reader, encoding: int, place: int, data: int) -> int:
    """An encoded pointer; ``place`` is its own address, ``data`` the base of datarel ones."""
    size = {0x00: 8, 0x02: 2, 0x03: 4, 0x04: 8, 0x0A: -2, 0x0B: -4, 0x0C: -8}.get(encoding & 0x0F)
    if size is None or encoding & INDIRECT:
        raise CannotUnwind(f"pointer encoding {encoding:#x} is not used in frame tables")
    value = reader.unsigned(size) if size > 0 else reader.signed(-size)
    base = {0x00: 0, PCREL: place, DATAREL: data}.get(encoding & 0x70)
    if base is None:
        raise CannotUnwind(f"pointer encoding {encoding:#x} is not used in frame tables")
    return value + base & (1 << 64) - 1


class FrameTable:
    """The CIEs and FDEs that lie in one stretch of memory."""

    def __init__(self, memory: ObjectMemory) -> None:
        self._memory = memory
        self._cies: dict[int, _Cie] = {}
        self._fdes: dict[int, _Fde] = {}

    def row(self, fde: int, pc: int) -> Row | None:
        """The rules at ``pc`` by the FDE at that address; None if it does not cover it."""
        if fde not in self._fdes:
            self._fdes[fde] = self._read_fde(fde)
        found = self._fdes[fde]
        if not found.begin <= pc < found.end:
            return None
        return _run(found, pc)

    def bounds(self, fde: int) -> tuple[int, int]:
        """[begin, end) of the code that the FDE at an address describes."""
        if fde not in self._fdes:
            self._fdes[fde] = self._read_fde(fde)
        return self._fdes[fde].begin, self._fdes[fde].end

    def records(self, start: int, size: int) -> list[tuple[int, bool]]:
        """(address, whether it is an FDE) of each record in ``size`` bytes from ``start``."""
        found: list[tuple[int, bool]] = []
        position = start
        while position + 8 <= start + size and len(found) < _MAX_RECORDS:
            length, pointer = self._memory.unpack("II", position)
            if length in (0, 0xFFFFFFFF):
                break
            found.append((position, pointer != 0))
            position += 4 + length
        return found

    def _record(self, address: int) -> tuple[Reader, int, int]:
        """(its bytes behind the length, their address, the CIE pointer's value)."""
        (length,) = self._memory.unpack("I", address)
        if not 4 <= length <= _MAX_RECORD:
            raise CannotUnwind(f"a record of frame information at {address:#x} has {length} bytes")
        reader = Reader(self._memory.read(address + 4, length))
        return reader, address + 4, reader.unsigned(4)

    def _read_fde(self, address: int) -> _Fde:
        reader, base, pointer = self._record(address)
        if pointer == 0:
            raise CannotUnwind(f"the record at {address:#x} is no FDE")
        cie_at = base - pointer
        if cie_at not in self._cies:
            self._cies[cie_at] = self._read_cie(cie_at)
        cie = self._cies[cie_at]
        begin = _pointer(reader, cie.encoding, base + reader.position, 0)
        size = _pointer(reader, cie.encoding & 0x0F, 0, 0)
        if cie.augmented:
            reader.take(reader.uleb())
        if size >> 47 or begin >> 47:
            raise CannotUnwind(f"the FDE at {address:#x} is for no address")
        return _Fde(cie, begin, begin + size, reader.data[reader.position :])

    def _read_cie(self, address: int) -> _Cie:
        reader, base, pointer = self._record(address)
        if pointer != 0:
            raise CannotUnwind(f"the record at {address:#x} is no CIE")
        version = reader.unsigned(1)
        end = reader.data.find(b"\0", reader.position)
        if version not in (1, 3) or end < 0:
            raise CannotUnwind(f"the CIE at {address:#x} has version {version}")
        augmentation = reader.take(end - reader.position)
        reader.take(1)
        code_factor, data_factor = reader.uleb(), reader.sleb()
        return_register = reader.unsigned(1) if version == 1 else reader.uleb()
        encoding, signal_frame = 0, False
        if augmentation.startswith(b"z"):
            stop = reader.uleb() + reader.position
            for letter in augmentation[1:]:
                if letter == ord("R"):
                    encoding = reader.unsigned(1)
                elif letter == ord("L"):
                    reader.unsigned(1)
                elif letter == ord("P"):
                    self._skip_personality(reader, base)
                elif letter == ord("S"):
                    signal_frame = True
                else:
                    raise CannotUnwind(f"the CIE at {address:#x} has augmentation {augmentation!r}")
            reader.position = stop
        elif augmentation:
            raise CannotUnwind(f"the CIE at {address:#x} has augmentation {augmentation!r}")
        return _Cie(
            code_factor,
            data_factor,
            return_register,
            encoding,
            bool(augmentation),
            signal_frame,
            reader.data[reader.position :],
        )

    def _skip_personality(self, reader: Reader, base: int) -> None:
        encoding = reader.unsigned(1)
        if encoding != OMIT:
            _pointer(reader, encoding & ~INDIRECT, base + reader.position, 0)


def _run(fde: _Fde, pc: int) -> Row:
    """Execute the CIE's and the FDE's instructions up to ``pc`` (DWARF 4, 6.4.2 and 7.23)."""
    machine = _Machine(fde.cie)
    machine.execute(fde.cie.instructions, fde.begin, None)
    machine.initial = dict(machine.rules)
    machine.execute(fde.instructions, fde.begin, pc)
    if machine.cfa is None:
        raise CannotUnwind(f"no frame address is defined at {pc:#x}")
    return Row(
        fde.begin,
        fde.end,
        machine.cfa,
        machine.rules,
        fde.cie.return_register,
        fde.cie.signal_frame,
    )


class _Machine:
    def __init__(self, cie: _Cie) -> None:
        self._cie = cie
        self.cfa: CfaRule | None = None
        self.rules: dict[int, Rule] = {}
        self.initial: dict[int, Rule] = {}
        self._states: list[tuple[CfaRule | None, dict[int, Rule]]] = []

    def execute(self, code: bytes, location: int, pc: int | None) -> None:
        """Run instructions until the location passes ``pc``; all of them for None."""
        reader = Reader(code)
        while reader:
            op = reader.unsigned(1)
            high, low = op & 0xC0, op & 0x3F
            if high == 0x40:  # DW_CFA_advance_loc
                location += low * self._cie.code_factor
            elif high == 0x80:  # DW_CFA_offset
                self.rules[low] = Rule("offset", reader.uleb() * self._cie.data_factor)
            elif high == 0xC0:  # DW_CFA_restore
                self._restore(low)
            elif op in (0x02, 0x03, 0x04):  # DW_CFA_advance_loc1, 2, 4
                location += reader.unsigned(1 << op - 2) * self._cie.code_factor
            elif op == 0x01:  # DW_CFA_set_loc
                if self._cie.encoding & 0x70:
                    raise CannotUnwind("DW_CFA_set_loc with a relative address")
                location = _pointer(reader, self._cie.encoding, 0, 0)
            else:
                self._other(op, reader)
            if pc is not None and location > pc:
                return

    def _restore(self, register: int) -> None:
        if register in self.initial:
            self.rules[register] = self.initial[register]
        else:
            self.rules.pop(register, None)

    def _other(self, op: int, reader: Reader) -> None:
        factor = self._cie.data_factor
        if op == 0x00:  # nop
            pass
        elif op == 0x05:  # offset_extended
            register = reader.uleb()
            self.rules[register] = Rule("offset", reader.uleb() * factor)
        elif op == 0x06:  # restore_extended
            self._restore(reader.uleb())
        elif op == 0x07:  # undefined
            self.rules[reader.uleb()] = UNDEFINED
        elif op == 0x08:  # same_value
            self.rules[reader.uleb()] = SAME
        elif op == 0x09:  # register
            register = reader.uleb()
            self.rules[register] = Rule("register", reader.uleb())
        elif op == 0x0A:  # remember_state
            if len(self._states) >= _MAX_STATES:
                raise CannotUnwind("frame information remembers too many states")
            self._states.append((self.cfa, dict(self.rules)))
        elif op == 0x0B:  # restore_state
            if not self._states:
                raise CannotUnwind("frame information restores a state that it did not remember")
            self.cfa, self.rules = self._states.pop()
        elif op == 0x0C:  # def_cfa
            register = reader.uleb()
            self.cfa = CfaRule(register, reader.uleb())
        elif op == 0x0D:  # def_cfa_register
            self.cfa = CfaRule(reader.uleb(), self._cfa().offset)
        elif op == 0x0E:  # def_cfa_offset
            self.cfa = CfaRule(self._cfa().register, reader.uleb())
        elif op == 0x0F:  # def_cfa_expression
            self.cfa = CfaRule(0, 0, reader.take(reader.uleb()))
        elif op in (0x10, 0x16):  # expression, val_expression
            register = reader.uleb()
            kind = "expression" if op == 0x10 else "val_expression"
            self.rules[register] = Rule(kind, 0, reader.take(reader.uleb()))
        elif op == 0x11:  # offset_extended_sf
            register = reader.uleb()
            self.rules[register] = Rule("offset", reader.sleb() * factor)
        elif op == 0x12:  # def_cfa_sf
            register = reader.uleb()
            self.cfa = CfaRule(register, reader.sleb() * factor)
        elif op == 0x13:  # def_cfa_offset_sf
            self.cfa = CfaRule(self._cfa().register, reader.sleb() * factor)
        elif op == 0x14:  # val_offset
            register = reader.uleb()
            self.rules[register] = Rule("val_offset", reader.uleb() * factor)
        elif op == 0x15:  # val_offset_sf
            register = reader.uleb()
            self.rules[register] = Rule("val_offset", reader.sleb() * factor)
        elif op == 0x2E:  # GNU_args_size
            reader.uleb()
        elif op == 0x2F:  # GNU_negative_offset_extended
            register = reader.uleb()
            self.rules[register] = Rule("offset", -reader.uleb() * factor)
        else:
            raise CannotUnwind(f"frame instruction {op:#x} is not known")

    def _cfa(self) -> CfaRule:
        if self.cfa is None or self.cfa.code is not None:
            raise CannotUnwind("frame information changes a frame address that is not there")
        return self.cfa


class IndexedTable:
    """The frame information of an object, by its .eh_frame_hdr (a binary search table)."""

    def __init__(self, memory: ObjectMemory, address: int) -> None:
        self._memory = memory
        self._table = FrameTable(memory)
        version, frame, count, encoding = memory.read(address, 4)
        if version != 1 or count == OMIT or encoding != 0x3B:
            raise CannotUnwind(f"{memory.name} has no search table of frame information")
        reader = Reader(memory.read(address + 4, min(24, memory.end - address - 4)))
        _pointer(reader, frame, address + 4 + reader.position, address)
        self._count = _pointer(reader, count, address + 4 + reader.position, address)
        self._base = address
        self._first = address + 4 + reader.position
        if self._first + 8 * self._count > memory.end:
            raise CannotUnwind(f"{memory.name}'s table of frame information has no end")

    def row(self, pc: int) -> Row | None:
        """The rules at ``pc``; None where no FDE covers it."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle)[0] <= pc:
                low = middle + 1
            else:
                high = middle
        return self._table.row(self._entry(low - 1)[1], pc) if low else None

    def _entry(self, index: int) -> tuple[int, int]:
        start, fde = self._memory.unpack("ii", self._first + 8 * index)
        return self._base + start, self._base + fde


class ListedTable:
    """Frame information without a search table: new code's in a region. Read once, in order."""

    def __init__(self, memory: ObjectMemory, start: int, size: int) -> None:
        self._table = FrameTable(memory)
        found = [at for at, is_fde in self._table.records(start, size) if is_fde]
        self._fdes = sorted((*self._table.bounds(at), at) for at in found)
        self._begins = [begin for begin, _, _ in self._fdes]

    @property
    def extent(self) -> tuple[int, int]:
        """From the first to the last address it describes."""
        if not self._fdes:
            return 0, 0
        return self._begins[0], max(end for _, end, _ in self._fdes)

    def row(self, pc: int) -> Row | None:
        """The rules at ``pc``; None where no FDE covers it."""
        index = bisect.bisect_right(self._begins, pc) - 1
        return self._table.row(self._fdes[index][2], pc) if index >= 0 else None
