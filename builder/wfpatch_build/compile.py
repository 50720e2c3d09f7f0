# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiles single objects of a built tree anew, in variants of it.

The flags are the stock build's; added are only those that give each function and datum a section of
its own and, for type layouts, debug information. Neither changes the code that is generated.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from wfpatch_build.build_tree import BuildTree
from wfpatch_build.chroot import LOG_DIRECTORY
from wfpatch_build.compile_log import ASSEMBLER_SUFFIXES
from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.errors import Refusal
from wfpatch_build.linked_objects import Unit

_OUT = "/usr/lib/wfpatch-build/out"
SECTIONS = ("-ffunction-sections", "-fdata-sections", "-g")


class Compiler:
    """Compiles units of one build; objects go to ``scratch``, a directory of this machine."""

    def __init__(self, build: BuildTree, scratch: Path) -> None:
        self.build = build
        self.scratch = scratch
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
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", unit.call.object_of(unit.source).lstrip("/"))
        name = f"{label}-{stem}"
        arguments = unit.call.recompile(unit.source, f"{self._out}/{name}", SECTIONS)
        code, _, errors = self._sandbox_run(tree, unit, arguments)
        if code:
            tail = errors.decode("utf-8", "replace").strip().splitlines()[-15:]
            raise Refusal(
                "build_failed",
                f"{unit.source} does not compile in the {label} tree:\n" + "\n".join(tail),
                source=unit.source,
            )
        return CompiledObject((self.scratch / name).read_bytes(), f"{label}:{unit.source}")

    def compile_all(self, jobs: Sequence[tuple[Unit, Path, str]]) -> list[CompiledObject]:
        """Compile several units, as many at a time as there are processors."""
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda job: self.compile(*job), jobs))

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
        self, units: Iterable[Unit], trees: Sequence[Path], changed: Iterable[str]
    ) -> list[Unit]:
        """The units that read one of the ``changed`` files (relative to the tree) in any tree."""
        wanted = {f"{self.build.path}/{name}" for name in changed}
        units = list(units)
        direct = [u for u in units if u.source_path in wanted]
        if wanted <= {u.source_path for u in direct}:
            rest: list[Unit] = []
            included = wanted & set(self._included(units, trees))
            if not included:
                return direct
        rest = [u for u in units if u not in direct]

        def reads(unit: Unit) -> bool:
            return any(wanted & self.dependencies(unit, tree) for tree in trees)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            hits = list(pool.map(reads, rest))
        return [*direct, *(u for u, hit in zip(rest, hits, strict=True) if hit)]

    def _included(self, units: Sequence[Unit], trees: Sequence[Path]) -> Iterable[str]:
        """Sources that another source of the build includes: a name in an #include line."""
        names = {os.path.basename(u.source_path): u.source_path for u in units}
        pattern = re.compile(rb'(?m)^[ \t]*#[ \t]*include[ \t]*[<"](?:[^>"\n]*/)?([^>"/\n]+)[>"]')
        for unit in units:
            for tree in trees:
                inside = unit.source_path
                if inside.startswith(self.build.path + "/"):
                    file = tree / inside[len(self.build.path) + 1 :]
                    if file.is_file():
                        for match in pattern.finditer(file.read_bytes()):
                            name = names.get(match[1].decode("utf-8", "replace"))
                            if name is not None:
                                yield name


@functools.cache
def compiler_version(driver: str) -> str:
    """First line of `driver --version`, for the record."""
    import subprocess

    done = subprocess.run([driver, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0]
