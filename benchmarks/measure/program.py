# SPDX-License-Identifier: GPL-3.0-or-later
"""A benchmark program, compiled, running, and a signed patch for its function ``patched``."""

from __future__ import annotations

import contextlib
import mmap
import pathlib
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import sample_patch
from proof.bundles import Run, SignedStore

from . import PROGRAMS

FLAGS = ("-O2", "-g", "-pthread", "-Wall", "-Wextra", "-Werror")
PATCH_ID = "bench-1"


@dataclass
class Program:
    """The process, its store with the patch, and the file in which it says what it saw."""

    process: subprocess.Popen[str]
    store: SignedStore
    seen: mmap.mmap | None

    def word(self, index: int) -> int:
        """A counter of the program's."""
        if self.seen is None:
            raise ValueError("the program keeps no counters")
        value: int = struct.unpack_from("<Q", self.seen, 8 * index)[0]
        return value

    def set_word(self, index: int, value: int) -> None:
        """Tell the program something."""
        if self.seen is None:
            raise ValueError("the program keeps no counters")
        struct.pack_into("<Q", self.seen, 8 * index, value)

    def applier(self, *words: object, timeout: float = 120.0) -> Run:
        """One run of the applier's command line on the program."""
        return self.store.run(*words, PATCH_ID, "--pid", self.process.pid, timeout=timeout)


@contextlib.contextmanager
def running(name: str, new_source: str, *arguments: object, counters: bool) -> Iterator[Program]:
    """The program for the length of a `with`; ``counters`` gives it a file as first argument."""
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = pathlib.Path(scratch)
        program = folder / name
        subprocess.run(["gcc", *FLAGS, "-o", str(program), str(PROGRAMS / f"{name}.c")], check=True)
        store = SignedStore(folder)
        store.add(PATCH_ID, sample_patch.build(program, new_source, ["patched"]))
        words = [str(program), *([str(folder / "seen")] if counters else [])]
        process = subprocess.Popen(
            [*words, *(str(argument) for argument in arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{name} did not start")
            seen = None
            if counters:
                with open(folder / "seen", "r+b") as file:
                    seen = mmap.mmap(file.fileno(), 0)
            yield Program(process, store, seen)
        finally:
            process.kill()
            process.wait()
