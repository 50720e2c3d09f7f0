# SPDX-License-Identifier: GPL-3.0-or-later
"""A source tree that was built with its compiler calls logged."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from wfpatch_build.compile_log import CompilerCall, read_log
from wfpatch_build.sandbox import Sandbox


@dataclass(frozen=True)
class BuildTree:
    """``tree`` is the built tree on this machine, ``path`` where the build saw it; ``sandbox`` has
    the build's root, environment and binds, but no tree at ``path``; ``log`` holds the calls.
    ``objects`` is a directory in which objects compiled from the unchanged tree are kept, or None.
    """

    tree: Path
    path: str
    sandbox: Sandbox
    log: Path
    objects: Path | None = None

    def with_tree(self, tree: Path) -> Sandbox:
        """The sandbox with ``tree`` (this one or a variant of it) where the build was."""
        return self.sandbox.with_binds((tree, self.path))

    def on_machine(self, inside: str) -> Path:
        """A path as the build saw it -> the file on this machine."""
        if inside == self.path or inside.startswith(self.path + "/"):
            return self.tree / inside[len(self.path) :].lstrip("/")
        return (self.sandbox.root or Path("/")) / inside.lstrip("/")

    def inside(self, file: Path) -> str:
        """A file of the tree on this machine -> its path as the build saw it."""
        return f"{self.path}/{file.relative_to(self.tree)}"

    def _read_inside(self, path: str) -> str | None:
        try:
            return self.on_machine(path).read_text(errors="surrogateescape")
        except OSError:
            return None

    @functools.cached_property
    def calls(self) -> list[CompilerCall]:
        return read_log(self.log, self._read_inside)
