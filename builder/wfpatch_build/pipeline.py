# SPDX-License-Identifier: GPL-3.0-or-later
"""From a built tree, a stock binary and a patch to a patch ELF: what all ways of building share."""

from __future__ import annotations

import posixpath
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wfpatch_build import __version__
from wfpatch_build.build_tree import BuildTree
from wfpatch_build.compile import Compiler
from wfpatch_build.errors import Refusal
from wfpatch_build.linked_objects import Unit
from wfpatch_build.object_change import ObjectChange
from wfpatch_build.pairing import source_name
from wfpatch_build.patch_file import Replaced, assemble, replaced_functions
from wfpatch_build.refusals import check_changes, check_replaced
from wfpatch_build.source import other_tree, patched_variant
from wfpatch_build.stock import Stock
from wfpatch_build.stock_check import Difference, StockCheck

Progress = Callable[[str], None]

_GENERATOR_INPUTS = (
    *(".y", ".yy", ".ypp", ".l", ".ll", ".lex", ".rl", ".re", ".gperf", ".asn1", ".idl", ".proto"),
    *(".c.in", ".h.in", ".c.py", ".def.in", ".tbl", ".pidl"),
)


@dataclass(frozen=True)
class Change:
    """What is to be changed: ``patches`` on top of ``base_patches``, or everything in which the
    tree ``new`` differs. ``accept_layout`` names structures whose layout may change."""

    patches: tuple[Path, ...] = ()
    base_patches: tuple[Path, ...] = ()
    new: Path | None = None
    accept_layout: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A finished patch ELF and what was found on the way."""

    elf: bytes
    replaced: tuple[Replaced, ...]
    added: tuple[str, ...]
    objects: tuple[str, ...]
    checked: int
    differences: tuple[Difference, ...] = field(default=())

    @property
    def functions(self) -> tuple[str, ...]:
        """Stock names of the replaced functions, by address."""
        return tuple(r.old.name for r in self.replaced)


def build_patch(
    build: BuildTree,
    units: Sequence[Unit],
    stock: Stock,
    change: Change,
    method: str,
    importable: Callable[[str], bool] | None = None,
    progress: Progress = lambda text: None,
) -> Result:
    """Make the patch ELF. ``method`` tells how the stock symbols were found. Raises Refusal."""
    scratch = Path(tempfile.mkdtemp(prefix=".wfpatch-variants-", dir=build.tree.parent))
    try:
        changes = _compiled(build, units, change, scratch, progress)
        check_changes(changes, change.accept_layout)
        checked, differences = _compare_with_stock(stock, changes)
        progress(f"{checked - len(differences)} of {checked} old functions are the stock code")
        replaced = replaced_functions(stock, changes)
        _refuse_foreign(replaced, differences)
        check_replaced(stock.image, replaced)
        first = changes[0].unit.call
        built = {
            "builder": __version__,
            "compiler": _compiler(build, first.driver),
            "flags": first.flags(),
            "method": method,
        }
        elf = assemble(stock, changes, replaced, built, importable)
        return Result(
            elf,
            tuple(replaced),
            tuple(name for c in changes for name in c.diff.added),
            tuple(c.unit.source for c in changes),
            checked,
            tuple(differences),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _compiled(
    build: BuildTree, units: Sequence[Unit], change: Change, scratch: Path, progress: Progress
) -> list[ObjectChange]:
    """Compile every affected object in all its versions; those without any change are left out."""
    pre, post = build.tree, scratch / "post"
    if change.base_patches:
        pre = scratch / "pre"
        patched_variant(build.tree, pre, change.base_patches)
    if change.new is not None:
        touched = other_tree(build.tree, change.new, post)
    else:
        touched = patched_variant(build.tree, post, (*change.base_patches, *change.patches))
    out = scratch / "out"
    out.mkdir()
    compiler = Compiler(build, out)
    trees = [build.tree, post] if pre is build.tree else [build.tree, pre, post]
    affected = compiler.affected(units, trees, touched)
    _refuse_generated(touched)
    progress(f"{len(touched)} files differ, {len(affected)} of {len(units)} objects are affected")
    labels = ("old", "post") if pre is build.tree else ("old", "pre", "post")
    jobs = [(u, t, label) for u in affected for t, label in zip(trees, labels, strict=True)]
    objects = compiler.compile_all(jobs)
    progress(f"{len(jobs)} objects compiled")
    step = len(trees)
    found = []
    for number, unit in enumerate(affected):
        versions = objects[number * step : (number + 1) * step]
        name = posixpath.basename(unit.source)
        alike = [u for u in units if posixpath.basename(u.source) == name]
        rank = alike.index(unit)
        found.append(ObjectChange(unit, versions[0], versions[-2], versions[-1], rank))
    return found


def _refuse_generated(touched: Sequence[str]) -> None:
    """Sources that a program makes during the build are not made again for one object."""
    inputs = [name for name in touched if name.endswith(_GENERATOR_INPUTS)]
    if inputs:
        raise Refusal(
            "generated_source",
            f"{', '.join(inputs)}: sources are generated from it during the build; patch what is "
            "generated instead",
            files=inputs,
        )


def _compare_with_stock(
    stock: Stock, changes: Sequence[ObjectChange]
) -> tuple[int, list[Difference]]:
    checked = 0
    differences = []
    for change in changes:
        if change.diff.is_empty:
            continue
        check = StockCheck(stock, change.old_side.forms, change.stock_unit(stock))
        for symbol in change.old.functions.values():
            checked += 1
            difference = check.function(symbol)
            if difference is not None:
                differences.append(difference)
    return checked, differences


def _refuse_foreign(replaced: Sequence[Replaced], differences: Sequence[Difference]) -> None:
    bad = {d.function: d for d in differences}
    for item in replaced:
        for name in (item.old.name, f"{item.old.name}.cold"):
            if name in bad:
                raise Refusal(
                    "stock_mismatch",
                    f"what is compiled here for {name} is not the stock code: {bad[name]}",
                    function=name,
                )


def _compiler(build: BuildTree, driver: str) -> str:
    done = build.sandbox.run([driver, "--version"])
    return done.stdout.decode("utf-8", "replace").split("\n")[0]


def check_expected(result: Result, expected: Sequence[str]) -> None:
    """Refuse when other functions are replaced than a recipe names (clone suffixes left out)."""
    if not expected:
        return
    found = {source_name(name) for name in result.functions}
    if found != set(expected):
        raise Refusal(
            "functions_unexpected",
            f"the recipe names {sorted(set(expected))}, the patch replaces {sorted(found)}",
            expected=sorted(set(expected)),
            found=sorted(found),
        )
