# SPDX-License-Identifier: GPL-3.0-or-later
"""How the symbols of a stock binary are found: by an exact rebuild, or else by matching."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wfpatch_build.build_tree import BuildTree
from wfpatch_build.compile import Compiler
from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.errors import Refusal
from wfpatch_build.linked_objects import Unit
from wfpatch_build.matched_stock import MatchedStock
from wfpatch_build.matching import Matching, match
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.section_identity import Identity
from wfpatch_build.stock import Stock

METHODS = ("auto", "exact", "matched")
# With less than this of a binary's functions located, another source or compiler made it: what is
# like it by chance proves nothing of the rest, of structures above all.
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class UnitObjects:
    """The units of a binary that can be compiled, their objects, and each unit's rank among the
    units of the same file name."""

    units: tuple[Unit, ...]
    objects: tuple[CompiledObject, ...]
    ranks: tuple[int, ...]


def compile_units(
    build: BuildTree, units: Sequence[Unit], options: Sequence[str] = ()
) -> UnitObjects:
    """Compile all units of the unchanged tree, with ``options`` behind the stock build's own; those
    that do not compile alone are left out (assembler source, sources that the build removes again).
    """
    with tempfile.TemporaryDirectory(dir=build.tree.parent, prefix=".wfpatch-units-") as scratch:
        compiler = Compiler(build, Path(scratch), options)
        found = compiler.compile_possible([(unit, build.tree, "old") for unit in units])
    kept: list[tuple[Unit, CompiledObject, int]] = []
    seen: dict[str, int] = {}
    for unit, obj in zip(units, found, strict=True):
        name = posixpath.basename(unit.source)
        rank = seen[name] = seen.get(name, -1) + 1
        if obj is not None:
            kept.append((unit, obj, rank))
    return UnitObjects(
        tuple(unit for unit, _, _ in kept),
        tuple(obj for _, obj, _ in kept),
        tuple(rank for _, _, rank in kept),
    )


def symbols_by(
    method: str,
    image: ObjectFile,
    unstripped: ObjectFile,
    identity: Identity,
    build: BuildTree,
    units: Sequence[Unit],
    progress: Callable[[str], None],
) -> tuple[Stock, bool]:
    """The stock object with its symbols, and whether matching found them.

    ``method`` is one of METHODS: ``auto`` matches where the rebuild is not exact, ``matched``
    always. Raises Refusal("stock_mismatch").
    """
    if method != "matched" and identity.exact:
        return Stock(image, unstripped.symtab), False
    if method == "exact":
        raise Refusal(
            "stock_mismatch",
            f"what was built is not the stock {image.name}: {identity.summary()}",
            sections=list(identity.differing),
        )
    compiled = compile_units(build, units)
    matching = match(image, compiled.objects)
    located, total = len(matching.functions), len(matching.functions) + _missing(matching)
    progress(
        f"matched: {located} of {total} functions and {len(matching.data)} data located in "
        f"{image.name}"
    )
    if located < LEAST_SHARE * total or not located:
        raise Refusal(
            "stock_mismatch",
            f"what was built is not the stock {image.name} ({identity.summary()}), and only "
            f"{located} of its {total} functions are in it: wrong version, compiler or flags",
            sections=list(identity.differing),
        )
    return MatchedStock(matching, compiled.ranks), True


def _missing(matching: Matching) -> int:
    return sum(definition.is_function for definition in matching.unresolved)
