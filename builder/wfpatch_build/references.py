# SPDX-License-Identifier: GPL-3.0-or-later
"""What a relocation of a compiled object really refers to.

Compilers name many targets by section and offset; for PC-relative fields the addend also holds the
distance from the field to the end of the instruction (4, or more where an immediate follows), so
the instruction must be decoded to know the target. Reference: x86-64 psABI 4.4.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from iced_x86 import Instruction

from wfpatch_build.compiled_object import (
    SHN_ABS,
    SHN_COMMON,
    SHN_UNDEF,
    STT_FUNC,
    STT_GNU_IFUNC,
    STT_OBJECT,
    STT_TLS,
    CompiledObject,
    CompiledRelocation,
    CompiledSection,
    CompiledSymbol,
)
from wfpatch_build.instructions import decode

R_64, R_PC32, R_PLT32, R_GOTPCREL, R_32S, R_TPOFF32, R_GOTTPOFF, R_PC64 = 1, 2, 4, 9, 11, 23, 22, 24
R_32, R_GOTPCRELX, R_REX_GOTPCRELX = 10, 41, 42
R_TLSGD, R_TLSLD, R_DTPOFF32, R_GOTPC32_TLSDESC, R_TLSDESC_CALL = 19, 20, 21, 34, 35
# Fields whose value is relative to their own place; the rest hold an address or an offset.
PC_RELATIVE = frozenset(
    (
        R_PC32,
        R_PLT32,
        R_GOTPCREL,
        R_GOTTPOFF,
        R_PC64,
        R_GOTPCRELX,
        R_REX_GOTPCRELX,
        R_TLSGD,
        R_TLSLD,
    )
    + (R_GOTPC32_TLSDESC,)
)
THROUGH_GOT = frozenset((R_GOTPCREL, R_GOTPCRELX, R_REX_GOTPCRELX))
THREAD_LOCAL = frozenset((R_TPOFF32, R_GOTTPOFF, R_TLSGD, R_TLSLD, R_DTPOFF32, R_GOTPC32_TLSDESC))


@dataclass(frozen=True)
class Reference:
    """What one relocation names.

    ``kind``: ``undefined``; ``function``, code of this object; ``data``, a named datum; ``string``
    or ``constant``, anonymous and merged by content; ``anonymous``, other unnamed data, switch
    tables among them; or ``absolute``. ``offset`` counts from the start of what is named;
    ``content`` are a string's or constant's bytes; ``section`` and ``place`` say where it lies.
    """

    kind: str
    name: str
    offset: int
    section: int = SHN_UNDEF
    place: int = 0
    content: bytes = b""
    symbol: CompiledSymbol | None = None


class References:
    """Resolves the relocations of one compiled object."""

    def __init__(self, obj: CompiledObject) -> None:
        self.obj = obj

    @functools.cache  # noqa: B019 - one resolver lives as long as its object
    def instructions(self, section: int) -> tuple[Instruction, ...]:
        """The decoded instructions of an executable section, addresses counting from 0."""
        return tuple(decode(self.obj.sections[section].data, 0))

    @functools.cache  # noqa: B019
    def distances(self, section: int) -> dict[int, int]:
        """Offset of each relocated field of code -> distance from it to its instruction's end."""
        fields = sorted(r.offset for r in self.obj.sections[section].relocations)
        found: dict[int, int] = {}
        position = 0
        for instruction in self.instructions(section):
            end = instruction.ip + instruction.len
            while position < len(fields) and fields[position] < end:
                found[fields[position]] = end - fields[position]
                position += 1
        return found

    def distance(self, section: CompiledSection, relocation: CompiledRelocation) -> int:
        """What a PC-relative addend is short of the true target offset; 0 for other types."""
        if relocation.type not in PC_RELATIVE:
            return 0
        if section.executable:
            return self.distances(section.index)[relocation.offset]
        return 0  # a table entry: the caller knows the table's start

    def resolve(self, section: CompiledSection, relocation: CompiledRelocation) -> Reference:
        """The Reference of ``relocation``, which belongs to ``section``."""
        symbol = self.obj.symbols[relocation.symbol]
        addend = relocation.addend + self.distance(section, relocation)
        if symbol.section in (SHN_UNDEF, SHN_COMMON):  # in both cases the linker decides
            return Reference("undefined", symbol.name, addend, symbol=symbol)
        if symbol.section == SHN_ABS:
            return Reference("absolute", symbol.name, symbol.value + addend)
        return self.at(symbol.section, symbol.value + addend, symbol)

    def at(self, number: int, place: int, symbol: CompiledSymbol | None = None) -> Reference:
        """The Reference of ``place`` in section ``number``; ``symbol`` is what named it."""
        section = self.obj.sections[number]
        if section.executable:
            return self._code(section, place)
        if section.mergeable:
            return self._merged(section, place, symbol)
        named = self._datum(section, place, symbol)
        if named is not None:
            return Reference(
                "data", named.name, place - named.value, number, named.value, symbol=named
            )
        return Reference("anonymous", section.name, place, number, place)

    def _code(self, section: CompiledSection, place: int) -> Reference:
        best: CompiledSymbol | None = None
        for symbol in self.obj.by_section.get(section.index, ()):
            if symbol.type not in (STT_FUNC, STT_GNU_IFUNC) or symbol.value > place:
                continue
            if best is None or best.value < symbol.value:
                best = symbol
        if best is None:
            return Reference("anonymous", section.name, place, section.index, place)
        return Reference(
            "function", best.name, place - best.value, section.index, best.value, symbol=best
        )

    def _merged(
        self, section: CompiledSection, place: int, symbol: CompiledSymbol | None
    ) -> Reference:
        width = max(1, section.entry_size)
        start = place // width * width
        if section.is_strings:
            if symbol is not None and symbol.name and 0 <= symbol.value <= place:
                start = symbol.value  # .LC5+1 names the inside of a literal, never the next one
            else:
                while start >= width and any(section.data[start - width : start]):
                    start -= width
        else:
            # GCC names the upper half of a wide constant too (.set .LC5,.LC4+8); ld merges whole
            # entries.
            content = section.data[start : start + width]
            return Reference("constant", "", place - start, section.index, start, content)
        end = start
        while end < section.size and any(section.data[end : end + width]):
            end += width
        return Reference(
            "string", "", place - start, section.index, start, section.data[start : end + width]
        )

    def _datum(
        self, section: CompiledSection, place: int, symbol: CompiledSymbol | None
    ) -> CompiledSymbol | None:
        if symbol is not None and symbol.type in (STT_OBJECT, STT_TLS):
            return symbol
        candidates = [
            s for s in self.obj.by_section.get(section.index, ()) if s.type in (STT_OBJECT, STT_TLS)
        ]
        # With one datum per section the section says which it is, even for an address one past
        # its end or in front of its start.
        if len({c.value for c in candidates}) == 1:
            return candidates[0]
        inside = [c for c in candidates if c.value <= place < c.value + max(1, c.size)]
        return inside[-1] if inside else None
