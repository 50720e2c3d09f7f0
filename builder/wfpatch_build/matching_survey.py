# SPDX-License-Identifier: GPL-3.0-or-later
"""How well matching does on a binary whose symbols an exact rebuild tells: located, wrong, missed.

The objects that are matched come from the same source, or from a neighbour: another version of the
package, the source with a patch, or other compiler options. Functions that differ there must come
out as unresolved; anything that is located at another symbol's address is wrong.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wfpatch_build.compile import Compiler
from wfpatch_build.debian import RebuiltBinary, rebuilt_binary
from wfpatch_build.definitions import Definition
from wfpatch_build.errors import Refusal
from wfpatch_build.matching import Matching, match
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.pairing import group_name
from wfpatch_build.source import patched_variant
from wfpatch_build.stock import Stock
from wfpatch_build.stock_symbols import UnitObjects, compile_units

SAME_SOURCE = "the same source"

Progress = Callable[[str], None]
_Key = tuple[int | None, str]  # unit of a local, None for a global; name without clone numbers


@dataclass(frozen=True)
class Score:
    """``present``: compiled functions (or data) that the stock binary has by name; ``alike``: those
    whose body is that of the stock one; ``wrong``: names of what was located elsewhere."""

    kind: str
    present: int
    alike: int
    located: int
    wrong: tuple[str, ...]

    @property
    def share(self) -> float:
        return 100.0 * self.located / self.present if self.present else 0.0


@dataclass(frozen=True)
class Row:
    """One matching: of ``binary`` against objects ``compiled`` from this or that."""

    binary: str
    compiled: str
    exports_used: bool
    functions: Score
    data: Score


class Truth:
    """What lies where in the stock binary, as the symbol table of its exact rebuild says."""

    def __init__(self, image: ObjectFile, unstripped: ObjectFile) -> None:
        self._stock = Stock(image, unstripped.symtab)
        self._names: dict[int, set[_Key]] = {}
        self._places: dict[_Key, set[int]] = {}
        for symbol in self._stock.symbols:
            address = symbol.address
            if symbol.type == "STT_TLS":
                address = image.thread_pointer_offset(address)
            local = symbol.binding == "STB_LOCAL" and symbol.file is not None
            name = group_name(symbol.name.partition("@")[0])
            key = (symbol.unit if local else None, name)
            self._names.setdefault(address, set()).add(key)
            self._places.setdefault(key, set()).add(address)

    def judge(self, matching: Matching, objects: UnitObjects) -> tuple[Score, Score]:
        """The scores of functions and of data."""
        units = [
            self._stock.unit_of(unit.obj, rank)
            for unit, rank in zip(matching.definitions.units, objects.ranks, strict=True)
        ]
        everything = (*matching.definitions.functions, *matching.definitions.data)
        functions = [d for d in everything if d.is_function and d.size]
        data = [d for d in everything if not d.is_function]
        return (
            self._score("functions", functions, matching, units),
            self._score("data", data, matching, units),
        )

    def _score(
        self,
        kind: str,
        definitions: Iterable[Definition],
        matching: Matching,
        units: Sequence[int | None],
    ) -> Score:
        located = matching.functions if kind == "functions" else matching.data
        present = alike = right = 0
        wrong = []
        for definition in definitions:
            keys = set(_keys(definition, units[definition.unit]))
            places = {a for key in keys for a in self._places.get(key, ())}
            present += bool(places)
            alike += bool(places & set(matching.alike.get(definition, ())))
            address = located.get(definition)
            if address is None:
                continue
            if keys & self._names.get(address, set()):
                right += 1
            else:
                wrong.append(definition.name)
        return Score(kind, present, alike, right, tuple(sorted(wrong)))


def _keys(definition: Definition, unit: int | None) -> Iterator[_Key]:
    for symbol in definition.symbols:
        if not symbol.is_local:
            yield None, group_name(symbol.name)
        elif unit is not None:
            yield unit, group_name(symbol.name)


@dataclass(frozen=True)
class Neighbours:
    """From what else than the same source objects are compiled."""

    versions: tuple[str, ...] = ()
    patches: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()


def matching_survey(
    name: str,
    version: str,
    binary: str | None,
    neighbours: Neighbours = Neighbours(),
    progress: Progress = lambda text: None,
) -> list[Row]:
    """Match a binary of a Debian package, with and without the names that it exports itself.

    Raises Refusal("stock_mismatch") when the rebuild is not exact: then nothing tells the truth.
    """
    found = rebuilt_binary(name, version, binary, progress=progress)
    if not found.identity.exact:
        raise Refusal(
            "stock_mismatch", f"no exact rebuild tells the truth: {found.identity.summary()}"
        )
    truth = Truth(found.image, found.unstripped)
    rows = []
    for compiled, objects in _objects(found, name, binary, neighbours, progress):
        for exports in (True, False):
            matching = match(found.image, objects.objects, exports)
            functions, data = truth.judge(matching, objects)
            rows.append(Row(found.image.name, compiled, exports, functions, data))
        progress(f"{found.image.name}: matched with {compiled}")
    return rows


def _objects(
    found: RebuiltBinary,
    name: str,
    binary: str | None,
    neighbours: Neighbours,
    progress: Progress,
) -> Iterator[tuple[str, UnitObjects]]:
    same = compile_units(found.build, found.units)
    yield SAME_SOURCE, same
    for patch in neighbours.patches:
        yield patch.name, _patched(found, same, patch)
    for option in neighbours.options:
        yield option, compile_units(found.build, found.units, option.split())
    for version in neighbours.versions:
        other = rebuilt_binary(name, version, binary, progress=progress)
        yield version, compile_units(other.build, other.units)


def _patched(found: RebuiltBinary, same: UnitObjects, patch: Path) -> UnitObjects:
    """The objects of the same source, those that ``patch`` affects compiled anew."""
    place = Path(tempfile.mkdtemp(prefix=".wfpatch-variants-", dir=found.build.tree.parent))
    try:
        tree, out = place / "tree", place / "out"
        out.mkdir()
        touched = patched_variant(found.build.tree, tree, (patch,))
        compiler = Compiler(found.build, out)
        affected = compiler.affected(same.units, (found.build.tree, tree), touched)
        changed = compiler.compile_all([(unit, tree, "patched") for unit in affected])
        new = dict(zip(affected, changed, strict=True))
        objects = tuple(
            new.get(unit, obj) for unit, obj in zip(same.units, same.objects, strict=True)
        )
        return UnitObjects(same.units, objects, same.ranks)
    finally:
        shutil.rmtree(place, ignore_errors=True)


HEAD = (
    *("binary", "compiled from", "exports", "functions", "alike", "located", "share", "wrong"),
    *("data", "located", "share", "wrong"),
)


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table."""
    return (
        row.binary,
        row.compiled,
        "used" if row.exports_used else "unused",
        str(row.functions.present),
        str(row.functions.alike),
        str(row.functions.located),
        f"{row.functions.share:.1f} %",
        str(len(row.functions.wrong)),
        str(row.data.present),
        str(row.data.located),
        f"{row.data.share:.1f} %",
        str(len(row.data.wrong)),
    )
