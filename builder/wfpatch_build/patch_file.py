# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts a patch ELF together: replaced functions, their old bytes, carried content, metadata.

The format is specified in docs/patch-elf.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wfpatch_build.canonical_json import canonical
from wfpatch_build.carried import Carried
from wfpatch_build.differ import COLD
from wfpatch_build.displacement import NotRelocatable
from wfpatch_build.elf_writer import write_relocatable
from wfpatch_build.entry_analysis import EntryAnalysis, OldFunction, Piece, describe_functions
from wfpatch_build.errors import Refusal
from wfpatch_build.new_tail_jumps import new_tail_edges
from wfpatch_build.object_change import ObjectChange
from wfpatch_build.stock import Stock

FORMAT = 1


@dataclass(frozen=True)
class Replaced:
    """A stock function and the change that replaces it with ``new_name``."""

    change: ObjectChange
    new_name: str
    old: OldFunction


def replaced_functions(stock: Stock, changes: Sequence[ObjectChange]) -> list[Replaced]:
    """The stock functions whose code the patch changes, in the order of their addresses.

    Functions that are gone in the new code count as pieces of a function that used them: a thread
    that was tail-called into one runs old code without a frame of its caller.
    Raises Refusal("old_code_unknown").
    """
    found: list[Replaced] = []
    for change in changes:
        unit = change.stock_unit(stock)
        mine: list[Replaced] = []
        for old_name, new_name in change.diff.changed:
            stock_name = change.stock_function(new_name)
            symbol = None if stock_name is None else stock.function(stock_name, unit)
            if stock_name is None or symbol is None:
                raise Refusal(
                    "old_code_unknown",
                    f"{old_name} of {change.unit.source} changes, but {stock.image.name} has no "
                    "function of that name: it was brought by a patch before this one, or the "
                    "linker dropped it",
                    function=old_name,
                )
            if any(symbol.address == r.old.address for r in (*found, *mine)):
                continue  # an alias, or one COMDAT function compiled into several objects
            cold = stock.function(f"{stock_name}{COLD}", unit)
            pieces = () if cold is None else (Piece("cold", cold.address, cold.size),)
            file = symbol.file
            mine.append(
                Replaced(
                    change,
                    new_name,
                    OldFunction(stock_name, symbol.address, symbol.size, pieces, file),
                )
            )
        found += _with_removed(stock, change, unit, mine)
    names = [r.old.name for r in found]
    for index, item in enumerate(found):
        if names.count(item.old.name) > 1 and item.old.file is None:
            raise Refusal(
                "old_code_unknown",
                f"two functions are called {item.old.name} and nothing tells them apart",
            )
        found[index] = item
    return sorted(found, key=lambda r: r.old.address)


def _with_removed(
    stock: Stock, change: ObjectChange, unit: int | None, mine: list[Replaced]
) -> list[Replaced]:
    pieces: list[Piece] = []
    for name in change.diff.removed:
        stock_name = name if change.base is None else change.base.functions.old_of.get(name)
        if stock_name is None:
            continue
        symbol = stock.function(stock_name, unit)
        if symbol is not None:
            pieces.append(Piece("part", symbol.address, symbol.size))
            cold = stock.function(f"{stock_name}{COLD}", unit)
            if cold is not None:
                pieces.append(Piece("cold", cold.address, cold.size))
    if not pieces or not mine:
        return mine
    first = mine[0]
    old = first.old
    whole = OldFunction(old.name, old.address, old.size, (*old.pieces, *pieces), old.file)
    return [Replaced(first.change, first.new_name, whole), *mine[1:]]


def stock_functions(stock: Stock) -> list[OldFunction]:
    """All functions of the stock object with their cold parts, for whole-object analysis."""
    by_place = {(s.unit, s.name): s for s in stock.functions}
    found = []
    for symbol in stock.functions:
        if symbol.name.endswith(COLD):
            continue
        cold = by_place.get((symbol.unit, symbol.name + COLD))
        if cold is None:
            cold = next(
                (
                    s
                    for s in (stock.function(symbol.name + COLD, symbol.unit),)
                    if s is not None and symbol.binding != "STB_LOCAL"
                ),
                None,
            )
        pieces = () if cold is None else (Piece("cold", cold.address, cold.size),)
        found.append(OldFunction(symbol.name, symbol.address, symbol.size, pieces, symbol.file))
    return found


def assemble(
    stock: Stock,
    changes: Sequence[ObjectChange],
    replaced: Sequence[Replaced],
    built: dict[str, str],
    importable: Callable[[str], bool] | None = None,
) -> bytes:
    """The patch ELF's bytes. Raises Refusal."""
    image = stock.image
    if image.build_id is None:
        raise Refusal("no_build_id", f"{image.name} has no build-id by which hosts could find it")
    carried = Carried(stock, changes, importable)
    entries = [carried.add_replaced(r.change, r.new_name) for r in replaced]
    carried.finish()
    analysis = EntryAnalysis(image, stock_functions(stock))
    try:
        functions = describe_functions(analysis, [r.old for r in replaced])
    except NotRelocatable as error:
        raise Refusal("entry_not_relocatable", f"{image.name}: {error}") from error
    entry_symbols = {symbol.name: symbol for symbol in carried.symbols.values()}
    new_edges = new_tail_edges(
        carried.sections,
        {r.old.address: entry_symbols[name] for r, name in zip(replaced, entries, strict=True)},
        {r.old.address: r.old.name for r in replaced},
        carried.owners,
        analysis.addresses_taken,
    )
    old, mask = b"", b""
    for members, entry in zip(functions, entries, strict=True):
        members["symbol"] = entry
        members["new_tail_edges"] = new_edges[members["address"]]
        for piece in (members, *members["pieces"]):
            piece["old_offset"] = len(old)
            content = image.read(piece["address"], piece["size"])
            old += content
            mask += _mask(stock, piece["address"], piece["size"])
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "machine": "x86_64",
        "object": {
            "build_ids": [image.build_id],
            "name": image.name,
            "soname": image.soname,
            "kind": image.kind,
            "text": [{"address": s.address, "size": s.memory_size} for s in image.text_segments],
        },
        "functions": functions,
        "symbols": carried.owners,
        "built": built,
    }
    notes = {".wfpatch.meta": canonical(metadata), ".wfpatch.old": old, ".wfpatch.mask": mask}
    return write_relocatable(carried.sections, list(carried.symbols.values()), notes)


def _mask(stock: Stock, address: int, size: int) -> bytes:
    """0xff where memory must equal the file; 0x00 where the loader writes (text relocations)."""
    mask = bytearray(b"\xff" * size)
    for relocation in stock.image.relocations:
        for at in range(relocation.address - address, relocation.address - address + 8):
            if 0 <= at < size:
                mask[at] = 0
    return bytes(mask)
