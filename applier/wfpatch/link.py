# SPDX-License-Identifier: GPL-3.0-or-later
"""Linking a patch ELF against a running process.

Pure: it reads the process, and returns the bytes exactly as they must lie in its memory. Layout, in
the order of addresses; every part begins at its own alignment:

text (in the region's r-x part): code sections | stubs | read-only data, 64-aligned | .eh_frame
data (in the region's rw- part): slots | variables, zero-filled ones included

A *slot* is an 8-byte word that holds an address (or an offset from the thread pointer), a *stub*
is ``jmp *slot(%rip)``: how new code reaches what may be farther away than 2 GiB. New code refers to
a replaced function by its original entry, so such a call takes the path of every other call.

Unwinding: ``LinkedPatch.eh_frame`` is the new code's relocated .eh_frame, ended by a zero word as
``__register_frame`` of libgcc wants it. Until someone registers it, C++ exceptions do not propagate
through new code; the applier's own unwinder (unwind.py) reads it as it lies.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .elf_object import ObjectImage
from .errors import Refused
from .imports import Imports
from .patch_elf import ObjectSymbol, PatchElf, PatchSection, PatchSymbol
from .region_header import Piece
from .relocations import (
    R_X86_64_GOTPCREL,
    R_X86_64_GOTTPOFF,
    R_X86_64_PC32,
    RELOCATIONS,
    Relocation,
    relocation_name,
)

CODE_ALIGNMENT = 16
READ_ONLY_ALIGNMENT = 64  # code and data do not share a cache line
SLOT_SIZE = 8
STUB_SIZE = 8  # ff 25 rel32, padded
_INT3 = b"\xcc"
_REACH = (1 << 31) - 1


@dataclass(frozen=True)
class LinkedFunction:
    """A replaced function: ``address`` of its original entry, ``entry`` of its new code.

    ``pieces`` are all code of the patch that runs as part of it: its body, cold parts, and new
    functions that only new code calls.
    """

    name: str
    file: str | None
    address: int
    entry: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class LinkedPatch:
    """The patch as it must lie in memory. ``eh_frame`` is (address, size without the end mark)."""

    text_at: int
    text: bytes
    data_at: int
    data: bytes
    functions: tuple[LinkedFunction, ...]
    eh_frame: tuple[int, int] | None
    imports: dict[str, int]

    def entry(self, name: str) -> int:
        """The new entry of the first function of that name; KeyError when there is none."""
        for function in self.functions:
            if function.name == name:
                return function.entry
        raise KeyError(name)


def link(
    patch: PatchElf,
    image: ObjectImage,
    images: Sequence[ObjectImage],
    text_at: int,
    data_at: int,
    text_room: int | None = None,
    data_room: int | None = None,
) -> LinkedPatch:
    """Lay the patch out at ``text_at`` and ``data_at`` and relocate it for the process.

    ``image`` is the patched object, ``images`` are all objects of the process; the rooms are in
    bytes. Raises Refused: ``symbol_not_found``, ``symbol_out_of_reach``, ``region_too_small``,
    ``unsupported_relocation``.
    """
    return _Linker(patch, image, images, text_at, data_at).link(text_room, data_room)


def _aligned(address: int, alignment: int) -> int:
    return address + alignment - 1 & -alignment


class _Part:
    """One of the two runs of memory that are filled from their beginning."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start

    def reserve(self, size: int, alignment: int) -> int:
        address = _aligned(self.end, alignment)
        self.end = address + size
        return address


class _Linker:
    def __init__(
        self,
        patch: PatchElf,
        image: ObjectImage,
        images: Sequence[ObjectImage],
        text_at: int,
        data_at: int,
    ) -> None:
        self._patch = patch
        self._image = image
        self._imports = Imports(image, images)
        self._text, self._data = _Part(text_at), _Part(data_at)
        self._places: dict[int, int] = {}  # section index -> address
        self._slots: dict[tuple[int, bool], int] = {}  # (symbol, thread-local) -> slot
        self._stubs: dict[int, int] = {}  # symbol -> stub
        self._addresses: dict[int, int] = {}  # symbol -> address

    def link(self, text_room: int | None, data_room: int | None) -> LinkedPatch:
        self._lay_out()
        for what, part, room in (("text", self._text, text_room), ("data", self._data, data_room)):
            size = part.end - part.start
            if room is not None and size > room:
                raise Refused(
                    "region_too_small",
                    f"the patch for {self._image.path} takes {size} bytes of {what}, "
                    f"{room} are left in the region",
                    needed=size,
                    room=room,
                )
        text = bytearray(self._text.end - self._text.start)
        data = bytearray(self._data.end - self._data.start)
        for section in self._patch.sections.values():
            if section.executable:
                self._fill_before(text, section)
        for index, section in self._patch.sections.items():
            part, image = (self._data, data) if section.writable else (self._text, text)
            start = self._places[index] - part.start
            image[start : start + len(section.data)] = self._relocated(section)
        for (symbol, thread_local), slot in self._slots.items():
            word = self.tls_offset(symbol) if thread_local else self.address(symbol)
            struct.pack_into("<Q", data, slot - self._data.start, word & (1 << 64) - 1)
        for symbol, stub in self._stubs.items():
            distance = self._slots[symbol, False] - (stub + 6)
            code = b"\xff\x25" + struct.pack("<i", distance) + 2 * _INT3
            start = stub - self._text.start
            text[start : start + STUB_SIZE] = code
        eh_frame = None
        if self._patch.eh_frame is not None:
            section = self._patch.sections[self._patch.eh_frame]
            eh_frame = (self._places[section.index], section.size)
        imports = {
            symbol.owner.name: self._addresses[index]
            for index, symbol in enumerate(self._patch.symbols)
            if index in self._addresses
            and symbol.owner is not None
            and not isinstance(symbol.owner, ObjectSymbol)
        }
        return LinkedPatch(
            self._text.start,
            bytes(text),
            self._data.start,
            bytes(data),
            self._functions(),
            eh_frame,
            imports,
        )

    # -- layout -----------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        sections = list(self._patch.sections.values())
        for section in sections:
            if section.executable:
                # one byte between sections: a return address at a section's end (after a call
                # that never returns) must not look like the next one's entry
                alignment = max(section.alignment, CODE_ALIGNMENT)
                self._places[section.index] = self._text.reserve(section.size, alignment)
                self._text.reserve(1, 1)
        for section in sections:
            for relocation in section.relocations:
                self._reserve_for(relocation.symbol, RELOCATIONS[relocation.type])
        self._text.end = _aligned(self._text.end, READ_ONLY_ALIGNMENT)
        for section in sections:
            if not section.executable and not section.writable:
                end_mark = 4 if section.index == self._patch.eh_frame else 0
                alignment = max(section.alignment, 8 if end_mark else 1)
                self._places[section.index] = self._text.reserve(section.size + end_mark, alignment)
        for section in sections:
            if section.writable:
                self._places[section.index] = self._data.reserve(section.size, section.alignment)

    def _reserve_for(self, symbol: int, kind: type[Relocation]) -> None:
        """A slot, and a stub where a function may be out of reach, once for each symbol."""
        if issubclass(kind, R_X86_64_GOTTPOFF):
            self._reserve_slot(symbol, True)
        elif issubclass(kind, R_X86_64_GOTPCREL):
            self._reserve_slot(symbol, False)
        elif issubclass(kind, R_X86_64_PC32) and self._needs_stub(self._patch.symbols[symbol]):
            self._reserve_slot(symbol, False)
            if symbol not in self._stubs:
                self._stubs[symbol] = self._text.reserve(STUB_SIZE, STUB_SIZE)

    def _reserve_slot(self, symbol: int, thread_local: bool) -> None:
        if (symbol, thread_local) not in self._slots:
            self._slots[symbol, thread_local] = self._data.reserve(SLOT_SIZE, SLOT_SIZE)

    def _needs_stub(self, symbol: PatchSymbol) -> bool:
        owner = symbol.owner
        if owner is None or owner.kind != "function":
            return False
        if not isinstance(owner, ObjectSymbol):
            return True
        # the region lies in reach of its object by construction, but a huge object may reach on
        distance = self._image.address(owner.address) - self._text.start
        return abs(distance) > _REACH - (64 << 20)

    def _fill_before(self, text: bytearray, section: PatchSection) -> None:
        """What no code covers, between code, traps."""
        end = self._places[section.index] + section.size - self._text.start
        stop = _aligned(end + 1, CODE_ALIGNMENT)
        stop = min(stop, len(text))
        text[end:stop] = _INT3 * (stop - end)

    # -- values -----------------------------------------------------------------------------------

    def _relocated(self, section: PatchSection) -> bytes:
        data = bytearray(section.data)
        for relocation in section.relocations:
            kind = RELOCATIONS[relocation.type]
            operands = _Operands(
                self,
                relocation.symbol,
                self._patch.symbols[relocation.symbol].name or section.name,
                self._places[section.index] + relocation.offset,
                relocation.addend,
                relocation.type,
            )
            data[relocation.offset : relocation.offset + kind.width] = kind.encode(operands)
        return bytes(data)

    def address(self, index: int) -> int:
        """The run-time address of a symbol."""
        if index not in self._addresses:
            self._addresses[index] = self._find(index, self._patch.symbols[index])
        return self._addresses[index]

    def _find(self, index: int, symbol: PatchSymbol) -> int:
        if symbol.section is not None:
            return self._places[symbol.section] + symbol.value
        if symbol.owner is None:
            raise AssertionError("patch_elf.py lets no undefined symbol without owner pass")
        if not isinstance(symbol.owner, ObjectSymbol):
            return self._imports.address(symbol.owner, index in self._stubs)
        owner = symbol.owner
        address = self._image.address(owner.address)
        end = address + owner.size
        if owner.kind == "tls":
            raise self._not_found(owner, "it is thread-local, but the patch uses its address")
        if owner.kind == "function" and not self._image.in_text(address):
            raise self._not_found(owner, f"{owner.address:#x} is not in its text")
        if not self._image.start <= address <= end <= self._image.end:
            raise self._not_found(owner, f"{owner.address:#x} lies outside of it")
        return address

    def tls_offset(self, index: int) -> int:
        """A thread-local symbol's offset from the thread pointer."""
        owner = self._patch.symbols[index].owner
        if not isinstance(owner, ObjectSymbol) or owner.kind != "tls":
            name = self._patch.symbols[index].name
            raise Refused(
                "symbol_not_found",
                f"{name!r} is used as a thread-local variable of {self._image.path}, which it is "
                "not; only those of the patched object itself can be linked",
                symbol=name,
                object=self._image.path,
            )
        block, offset = self._image.thread_local, self._image.thread_local_offset
        if block is None:
            raise self._not_found(owner, "it has no thread-local variables")
        if offset is None:
            raise self._not_found(owner, "its thread-local block has no fixed place in each thread")
        if owner.address + owner.size > block.size:
            raise self._not_found(owner, f"{owner.address:#x} is outside of its thread-local block")
        return offset + owner.address

    def _not_found(self, owner: ObjectSymbol, why: str) -> Refused:
        return Refused(
            "symbol_not_found",
            f"{owner.name!r} of {self._image.path} was not found: {why}; rebuild the patch for the "
            "build that runs here",
            symbol=owner.name,
            object=self._image.path,
        )

    def near_address(self, index: int) -> int:
        """A stub's address where the symbol has one, else its own."""
        return self._stubs[index] if index in self._stubs else self.address(index)

    def has_stub(self, index: int) -> bool:
        """Whether the symbol is reached through a stub."""
        return index in self._stubs

    def slot(self, index: int, thread_local: bool) -> int:
        """The slot reserved for a symbol."""
        return self._slots[index, thread_local]

    # -- results ----------------------------------------------------------------------------------

    def _functions(self) -> tuple[LinkedFunction, ...]:
        return tuple(
            LinkedFunction(
                function.name,
                function.file,
                self._image.address(function.address),
                self._places[function.entry.section] + function.entry.offset,
                self._pieces(function.entry.section),
            )
            for function in self._patch.functions
        )

    def _pieces(self, entry: int) -> tuple[Piece, ...]:
        """All code sections that code or data reachable from an entry's section refer to.

        Which instruction is a section's last is not known here, so its end counts as a return
        address, and its beginning as a saved one: both can only delay a thread, never mix code.
        """
        reached, pending = {entry}, [entry]
        while pending:
            for relocation in self._patch.sections[pending.pop()].relocations:
                home = self._patch.symbols[relocation.symbol].section
                if home is not None and home not in reached:
                    reached.add(home)
                    pending.append(home)
        pieces = []
        for index in sorted(reached, key=lambda index: (index != entry, index)):
            section = self._patch.sections[index]
            if section.executable:
                low = self._places[index]
                pieces.append(Piece(low, low + section.size, entry=False, ends_in_call=True))
        return tuple(pieces)


@dataclass(frozen=True)
class _Operands:
    """What one relocation asks the linker for (relocations.Operands)."""

    linker: _Linker
    symbol: int
    symbol_name: str
    place: int
    addend: int
    type: int

    def address(self) -> int:
        return self.linker.address(self.symbol)

    def near_address(self) -> int:
        if self.linker.has_stub(self.symbol) and self.addend != -4:
            raise Refused(
                "unsupported_relocation",
                f"{relocation_name(self.type)} at {self.place:#x} refers to the inside of "
                f"{self.symbol_name!r}, which lies in another object; rebuild the patch with -fPIC",
                symbol=self.symbol_name,
                type=self.type,
            )
        return self.linker.near_address(self.symbol)

    def got_slot(self) -> int:
        return self.linker.slot(self.symbol, False)

    def tls_offset(self) -> int:
        return self.linker.tls_offset(self.symbol)

    def tls_slot(self) -> int:
        return self.linker.slot(self.symbol, True)
