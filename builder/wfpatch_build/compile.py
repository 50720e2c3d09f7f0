# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiles single objects of a built tree anew, in variants of it.

The flags are the stock build's; added are only those that give each function and datum a section of
its own and, for type layouts, debug information. Neither changes the code that is generated.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from wfpatch_build.build_tree import BuildTree
from wfpatch_build.cache import key_of
from wfpatch_build.chroot import LOG_DIRECTORY
from wfpatch_build.compile_log import ASSEMBLER_SUFFIXES, SOURCE_SUFFIXES
from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.errors import Refusal
from wfpatch_build.linked_objects import Unit

_OUT = "/usr/lib/wfpatch-build/out"
_INCLUDE = re.compile(rb"""(?m)^[ \t]*#[ \t]*include[^\n"<]*["<](?:[^">\n]*/)?([^">/\n]+)[">]""")
_COMPUTED_INCLUDE = re.compile(rb"(?m)^[ \t]*#[ \t]*include[ \t]+[A-Za-z_]")
_SOURCES_AND_HEADERS = frozenset(
    (*SOURCE_SUFFIXES, ".h", ".hh", ".hpp", ".hxx", ".inc", ".inl", ".def", ".tcc", ".ipp")
)
SECTIONS = ("-ffunction-sections", "-fdata-sections", "-g")


class Compiler:
    """Compiles units of one build; objects go to ``scratch``, a directory of this machine.

    ``options`` come behind the stock build's own.
    """

    def __init__(self, build: BuildTree, scratch: Path, options: Sequence[str] = ()) -> None:
        self.build = build
        self.scratch = scratch
        self._options = (*SECTIONS, *options)
        # In a chroot the scratch directory is bound in; on this machine it is where it is.
        self._out = _OUT if build.sandbox.root else str(scratch)

    def _sandbox_run(
        self, tree: Path, unit: Unit, arguments: list[str]
    ) -> tuple[int, bytes, bytes]:
        sandbox = self.build.with_tree(tree)
        if self.build.sandbox.root:
            # The stand-in's log of these calls is of no use: it goes to the scratch directory too.
            sandbox = sandbox.with_binds((self.scratch, _OUT), (self.scratch, LOG_DIRECTORY))
        done = sandbox.run([unit.call.driver, *arguments], unit.call.directory)
        return done.returncode, done.stdout, done.stderr

    def compile(self, unit: Unit, tree: Path, label: str) -> CompiledObject:
        """Compile one unit in ``tree``. Raises Refusal with build_failed or lto_unsupported."""
        if unit.call.uses_lto():
            raise Refusal(
                "lto_unsupported",
                f"{unit.source} is compiled with -flto: its code is made at link time, "
                "one object alone has none",
            )
        if unit.source.endswith(ASSEMBLER_SUFFIXES):
            raise Refusal(
                "inline_assembly", f"{unit.source} is assembler source, whose parts have no bounds"
            )
        kept = self._kept(unit) if tree == self.build.tree else None
        if kept is not None and kept.is_file():
            return CompiledObject(kept.read_bytes(), f"{label}:{unit.source}")
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", unit.call.object_of(unit.source).lstrip("/"))
        name = f"{label}-{stem}"
        arguments = unit.call.recompile(unit.source, f"{self._out}/{name}", self._options)
        code, _, errors = self._sandbox_run(tree, unit, arguments)
        if code:
            tail = errors.decode("utf-8", "replace").strip().splitlines()[-15:]
            raise Refusal(
                "build_failed",
                f"{unit.source} does not compile in the {label} tree:\n" + "\n".join(tail),
                source=unit.source,
            )
        data = (self.scratch / name).read_bytes()
        if kept is not None:
            kept.parent.mkdir(exist_ok=True)
            fresh = kept.with_name(f"{kept.name}.{os.getpid()}")
            fresh.write_bytes(data)
            fresh.replace(kept)
        return CompiledObject(data, f"{label}:{unit.source}")

    def _kept(self, unit: Unit) -> Path | None:
        """Where the unit's object, compiled in the unchanged tree, is kept for further patches."""
        if self.build.objects is None:
            return None
        call = unit.call
        name = key_of(call.directory, call.driver, call.arguments, unit.source, self._options)
        return self.build.objects / f"{name}.o"

    def compile_all(self, jobs: Sequence[tuple[Unit, Path, str]]) -> list[CompiledObject]:
        """Compile several units, as many at a time as there are processors."""
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda job: self.compile(*job), jobs))

    def compile_possible(
        self, jobs: Sequence[tuple[Unit, Path, str]]
    ) -> list[CompiledObject | None]:
        """The same; None for each unit that does not compile."""

        def attempt(job: tuple[Unit, Path, str]) -> CompiledObject | None:
            try:
                return self.compile(*job)
            except Refusal as refusal:
                if refusal.reason in ("build_failed", "inline_assembly"):
                    return None
                raise

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(attempt, jobs))

    def dependencies(self, unit: Unit, tree: Path) -> frozenset[str]:
        """Absolute inside paths of all files that compiling ``unit`` in ``tree`` reads."""
        arguments = unit.call.recompile(unit.source, "-", ("-M", "-MT", "x"))
        # -M replaces -c and -o: the rule goes to standard output.
        arguments = arguments[: arguments.index("-c", len(arguments) - 3)]
        code, printed, _ = self._sandbox_run(tree, unit, arguments)
        if code:
            return frozenset((unit.source_path,))
        text = printed.decode("utf-8", "surrogateescape").replace("\\\n", " ")
        words = re.findall(r"(?:\\.|\S)+", text.partition(":")[2])
        return frozenset(unit.call.absolute(re.sub(r"\\(.)", r"\1", w)) for w in words)

    def affected(
        self, units: Sequence[Unit], trees: Sequence[Path], changed: Iterable[str]
    ) -> list[Unit]:
        """The units that read one of the ``changed`` files (relative to the tree) in any tree.

        Asking the compiler what a unit reads takes a tenth of a second; that is spared where only
        sources change that nothing includes.
        """
        included, computed = included_names(trees)
        included |= {
            os.path.basename(value)
            for unit in units
            for option, value in zip(unit.call.arguments, unit.call.arguments[1:], strict=False)
            if option in ("-include", "-imacros")
        }
        sources = {unit.source_path for unit in units}
        paths = {f"{self.build.path}/{name}" for name in changed}
        headers = {p for p in paths if os.path.basename(p) in included}
        if computed:
            headers |= {
                p for p in paths - sources if os.path.splitext(p)[1] in _SOURCES_AND_HEADERS
            }
        direct = [u for u in units if u.source_path in paths & sources]
        if not headers:
            return direct
        rest = [u for u in units if u not in direct]

        def reads(unit: Unit) -> bool:
            return any(headers & self.dependencies(unit, tree) for tree in trees)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            hits = list(pool.map(reads, rest))
        return [*direct, *(u for u, hit in zip(rest, hits, strict=True) if hit)]


def included_names(trees: Sequence[Path]) -> tuple[set[str], bool]:
    """Last path components of all files that any source or header of the trees includes, and
    whether some file is named by a macro, so that it could be any."""
    found: set[str] = set()
    computed = False
    seen: set[tuple[int, int]] = set()
    for tree in trees:
        for path in tree.rglob("*"):
            if path.suffix not in _SOURCES_AND_HEADERS or path.is_symlink():
                continue
            state = path.stat()
            if (state.st_dev, state.st_ino) not in seen:  # variants share their files
                seen.add((state.st_dev, state.st_ino))
                text = path.read_bytes()
                found |= {m[1].decode("utf-8", "replace") for m in _INCLUDE.finditer(text)}
                computed = computed or _COMPUTED_INCLUDE.search(text) is not None
    return found, computed
