# SPDX-License-Identifier: GPL-3.0-or-later
"""The compiler calls of a build, as compiler_log.c recorded them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wfpatch_build.errors import Refusal

SOURCE_SUFFIXES = (".c", ".cc", ".cpp", ".cxx", ".c++", ".C", ".i", ".ii", ".m", ".S", ".s", ".sx")
ASSEMBLER_SUFFIXES = (".S", ".s", ".sx")

# Options that take the next word as their value, as far as they occur in builds (gcc(1)).
_WITH_VALUE = frozenset(
    (
        *("-o", "-x", "-I", "-D", "-U", "-L", "-l", "-T", "-u", "-z", "-e", "-B", "-A", "-G"),
        *("-include", "-imacros", "-isystem", "-iquote", "-idirafter", "-iprefix", "-isysroot"),
        *("-iwithprefix", "-iwithprefixbefore", "-MF", "-MT", "-MQ", "-aux-info", "-arch"),
        *("-Xlinker", "-Xassembler", "-Xpreprocessor", "-Xclang", "-target", "--param"),
        *("-dumpbase", "-dumpdir", "-wrapper", "-specs"),
    )
)
# Dependency output: no part of what is compiled, and it would write into the tree.
_DEPENDENCY = ("-M", "-MM", "-MD", "-MMD", "-MP", "-MG")
_DEPENDENCY_WITH_VALUE = ("-MF", "-MT", "-MQ")


@dataclass(frozen=True)
class CompilerCall:
    """One call of a compiler driver: where, as which program, with which arguments."""

    directory: str
    driver: str
    arguments: tuple[str, ...]  # without argv[0]; response files expanded

    def _words(self) -> Iterator[tuple[str, str | None]]:
        """(option, its value) pairs; an input file is ("", name)."""
        words = iter(self.arguments)
        for word in words:
            if word in _WITH_VALUE:
                yield word, next(words, "")
            elif word.startswith("-") and word != "-":
                yield word, None
            else:
                yield "", word

    @property
    def output(self) -> str | None:
        """Absolute path of -o, or None."""
        for option, value in self._words():
            if option == "-o" and value is not None:
                return self.absolute(value)
            if option.startswith("-o") and value is None and len(option) > 2:
                return self.absolute(option[2:])
        return None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input files as given."""
        return tuple(v for o, v in self._words() if o == "" and v is not None)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(i for i in self.inputs if i.endswith(SOURCE_SUFFIXES))

    @property
    def compiles_only(self) -> bool:
        return "-c" in self.arguments

    @property
    def compiles(self) -> bool:
        """Whether it turns sources into machine code, linked at once or not."""
        return bool(self.sources) and not any(
            a in ("-E", "-S", "-M", "-MM", "-fsyntax-only") for a in self.arguments
        )

    @property
    def links(self) -> bool:
        return self.output is not None and not any(
            a in ("-c", "-E", "-S", "-M", "-MM", "-r", "-fsyntax-only") for a in self.arguments
        )

    def object_of(self, source: str) -> str:
        """Where the object of ``source`` goes (for one compiled and linked at once: nowhere)."""
        output = self.output
        if self.compiles_only and output is not None:
            return output
        stem = os.path.splitext(os.path.basename(source))[0]
        return self.absolute(f"{stem}.o")

    def absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.directory, path))

    def uses_lto(self) -> bool:
        """Whether -flto is in force (the last of -flto, -fno-lto counts)."""
        last = [a for a in self.arguments if a == "-fno-lto" or a.split("=")[0] == "-flto"]
        return bool(last) and last[-1] != "-fno-lto"

    def recompile(self, source: str, output: str, extra: Sequence[str]) -> list[str]:
        """Arguments that compile ``source`` alone, with the same options, into ``output``."""
        kept: list[str] = []
        for option, value in self._words():
            if option in ("-o", *_DEPENDENCY_WITH_VALUE) or option in _DEPENDENCY or option == "-c":
                continue
            if option.startswith("-o") and value is None and len(option) > 2:
                continue
            if option in ("-l", "-L", "-Xlinker", "-z", "-T", "-u", "-e") or option.startswith(
                ("-Wl,", "-Wp,-MD", "-Wp,-MMD", "-l", "-L")
            ):
                continue
            if option == "":
                if value == source:
                    kept.append(source)
                continue
            kept.append(option)
            if value is not None:
                kept.append(value)
        return [*kept, *extra, "-c", "-o", output]

    def flags(self) -> str:
        """The options that matter for the code, for the record."""
        return shlex.join(
            a for a in self.arguments if a.startswith(("-O", "-f", "-m", "-std", "-g", "-D_FORT"))
        )


def read_log(path: Path, read_inside: Callable[[str], str | None]) -> list[CompilerCall]:
    """All calls in a log, in order. ``read_inside`` gives the text of a response file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    calls = []
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        count, size = (int(n) for n in data[at:end].split())
        strings = data[end + 1 : end + 1 + size].split(b"\0")[:-1]
        if len(strings) != count:
            raise Refusal("build_failed", f"{path} is damaged at offset {at}")
        at = end + 1 + size
        directory, driver, _, *arguments = (s.decode("utf-8", "surrogateescape") for s in strings)
        calls.append(
            CompilerCall(directory, driver, tuple(_expanded(arguments, directory, read_inside)))
        )
    return calls


def _expanded(
    arguments: Sequence[str], directory: str, read_inside: Callable[[str], str | None]
) -> Iterator[str]:
    for word in arguments:
        if word.startswith("@"):
            text = read_inside(os.path.join(directory, word[1:]))
            if text is not None:
                yield from _expanded(shlex.split(text), directory, read_inside)
                continue
        yield word
