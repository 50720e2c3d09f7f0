# SPDX-License-Identifier: GPL-3.0-or-later
"""Layouts of structures, unions and enumerations, from the debug information of compiled objects.

Running code has made instances of the old layout, and code that is not replaced goes on reading
them; so a type of file scope whose layout changes makes a patch impossible. Types that are declared
inside a function are seen by that function alone and do not count. Format: DWARF 4 and 5.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.references import R_32, R_64

_AGGREGATES = {
    "DW_TAG_structure_type": "struct",
    "DW_TAG_class_type": "struct",
    "DW_TAG_union_type": "union",
    "DW_TAG_enumeration_type": "enum",
}
_TRANSPARENT = (
    "DW_TAG_typedef",
    "DW_TAG_const_type",
    "DW_TAG_volatile_type",
    "DW_TAG_restrict_type",
    "DW_TAG_atomic_type",
)
_POINTERS = (
    "DW_TAG_pointer_type",
    "DW_TAG_reference_type",
    "DW_TAG_rvalue_reference_type",
    "DW_TAG_ptr_to_member_type",
)
_SCOPES = ("DW_TAG_namespace", *_AGGREGATES)

# (name, offset in bits, size in bits or None, type) of each member; (name, value) of enumerators
Layout = tuple[Any, ...]


@dataclass(frozen=True)
class LayoutChange:
    """A type of file scope, as `struct name`, and what changed of it."""

    type: str
    text: str


def changed_layouts(old: CompiledObject, new: CompiledObject) -> list[LayoutChange]:
    """Types that both compiled objects define, with different layouts."""
    before, after = layouts(old), layouts(new)
    found = []
    for name in sorted(before.keys() & after.keys()):
        text = _difference(before[name], after[name])
        if text is not None:
            found.append(LayoutChange(name, text))
    return found


def layouts(obj: CompiledObject) -> dict[str, Layout]:
    """`struct name` (or `union`, `enum`) -> layout, of all complete types of file scope.

    An anonymous type that only a typedef names goes by that name.
    """
    elf = ELFFile(io.BytesIO(_relocated(obj)))
    if not elf.has_dwarf_info():
        return {}
    found: dict[str, Layout] = {}
    for unit in elf.get_dwarf_info(relocate_dwarf_sections=False).iter_CUs():
        reader = _Types(unit)
        for die, scope in _file_scope(unit.get_top_DIE(), ""):
            target, name = die, _name(die)
            if die.tag == "DW_TAG_typedef":
                aimed = reader.type_of(die)
                if aimed is None or aimed.tag not in _AGGREGATES or _name(aimed):
                    continue
                target = aimed
            if name and "DW_AT_declaration" not in target.attributes:
                key = f"{_AGGREGATES[target.tag]} {scope}{name}"
                found.setdefault(key, reader.layout(target))
    return found


def _relocated(obj: CompiledObject) -> bytes:
    """The object's bytes with the debug sections' references to each other filled in.

    pyelftools would do it, but refuses objects that have thread-local variables (DTPOFF32).
    """
    data = bytearray(obj.raw)
    for section in obj.sections:
        if not section.name.startswith(".debug_"):
            continue
        for relocation in section.relocations:
            width = {R_32: 4, R_64: 8}.get(relocation.type)
            if width is not None:
                at = section.offset + relocation.offset
                value = obj.symbols[relocation.symbol].value + relocation.addend
                data[at : at + width] = value.to_bytes(width, "little", signed=value < 0)
    return bytes(data)


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return "" if attribute is None else attribute.value.decode("utf-8", "replace")


def _number(die: DIE, attribute: str) -> int | None:
    found = die.attributes.get(attribute)
    return found.value if found is not None and isinstance(found.value, int) else None


def _file_scope(parent: DIE, scope: str) -> Iterator[tuple[DIE, str]]:
    for die in parent.iter_children():
        if die.tag in _AGGREGATES or die.tag == "DW_TAG_typedef":
            yield die, scope
        if die.tag in _SCOPES and die.has_children and _name(die):
            yield from _file_scope(die, f"{scope}{_name(die)}::")


class _Types:
    """Describes types of one compilation unit; each aggregate once."""

    def __init__(self, unit: CompileUnit) -> None:
        self._unit = unit
        self._known: dict[int, Layout] = {}

    def type_of(self, die: DIE) -> DIE | None:
        return die.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in die.attributes else None

    def layout(self, die: DIE) -> Layout:
        known = self._known.get(die.offset)
        if known is not None:
            return known
        size = _number(die, "DW_AT_byte_size")
        if die.tag == "DW_TAG_enumeration_type":
            layout: Layout = (
                "enum",
                size,
                tuple(
                    (_name(c), _number(c, "DW_AT_const_value"))
                    for c in die.iter_children()
                    if c.tag == "DW_TAG_enumerator"
                ),
            )
        else:
            layout = (
                _AGGREGATES[die.tag],
                size,
                tuple(
                    self._member(c)
                    for c in die.iter_children()
                    if c.tag in ("DW_TAG_member", "DW_TAG_inheritance")
                    and "DW_AT_external" not in c.attributes
                ),
            )
        self._known[die.offset] = layout
        return layout

    def _member(self, die: DIE) -> Layout:
        bits = _number(die, "DW_AT_data_bit_offset")
        if bits is None:
            bits = 8 * (_number(die, "DW_AT_data_member_location") or 0)
        return (_name(die), bits, _number(die, "DW_AT_bit_size"), self._describe(self.type_of(die)))

    def _describe(self, die: DIE | None) -> Any:
        while die is not None and die.tag in _TRANSPARENT:
            die = self.type_of(die)
        if die is None:
            return "void"
        if die.tag in _POINTERS or die.tag == "DW_TAG_subroutine_type":
            return "pointer"  # what it points to is compared by itself
        if die.tag == "DW_TAG_array_type":
            counts = tuple(
                _number(c, "DW_AT_upper_bound")
                if "DW_AT_count" not in c.attributes
                else (_number(c, "DW_AT_count") or 0) - 1
                for c in die.iter_children()
            )
            return ("array", self._describe(self.type_of(die)), counts)
        if die.tag in _AGGREGATES:
            if _name(die):
                return (_AGGREGATES[die.tag], _name(die), _number(die, "DW_AT_byte_size"))
            return self.layout(die)
        return (die.tag, _number(die, "DW_AT_byte_size"), _number(die, "DW_AT_encoding"))


def _difference(old: Layout, new: Layout) -> str | None:
    """What differs between two layouts of one type, for people; None when nothing that matters.

    A further enumerator is none, as long as the others keep their values.
    """
    if old == new:
        return None
    if old[0] == "enum" and new[0] == "enum":
        values = dict(new[2])
        if old[1] == new[1] and all(values.get(n, v) == v and n in values for n, v in old[2]):
            return None
        return "values of its enumerators change"
    if old[1] != new[1]:
        return f"{old[1]} bytes become {new[1]}"
    names, new_names = [m[0] for m in old[2]], [m[0] for m in new[2]]
    if names != new_names:
        gone = [n for n in names if n not in new_names]
        come = [n for n in new_names if n not in names]
        if gone or come:
            return f"members {gone or 'none'} go, {come or 'none'} come"
        return "members change their order"
    for before, after in zip(old[2], new[2], strict=True):
        if before != after:
            return f"member {before[0] or '(anonymous)'} changes its place or type"
    return "its layout changes"
