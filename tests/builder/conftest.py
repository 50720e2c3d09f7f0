# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the builder's tests: small C trees, built by the real compiler, and patches."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for _directory in (ROOT / "builder", ROOT / "applier", Path(__file__).resolve().parent):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

from wfpatch_build.debian import BuildResult  # noqa: E402
from wfpatch_build.errors import Refusal  # noqa: E402
from wfpatch_build.pipeline import Change  # noqa: E402
from wfpatch_build.plain_tree import build_plain  # noqa: E402

Files = Mapping[str, str]


class SourceTree:
    """A C program in a directory of its own, with the stock binary it was built into.

    ``flags`` are those of every compile; sources are compiled one by one and linked into ``name``.
    """

    def __init__(
        self,
        place: Path,
        files: Files,
        flags: str = "-O2",
        link: str = "",
        name: str = "program",
        command: str | None = None,
    ) -> None:
        self.place = place
        self.files = dict(files)
        self.source = place / "source"
        write_files(self.source, self.files)
        sources = [f for f in sorted(files) if f.endswith((".c", ".S"))]
        self.command = command or " && ".join(
            [
                *(f"gcc {flags} -g -c {s} -o {Path(s).stem}.o" for s in sources),
                f"gcc {flags} -Wl,--build-id {link} "
                f"{' '.join(Path(s).stem + '.o' for s in sources)} -o {name}",
            ]
        )
        subprocess.run(["sh", "-c", self.command], cwd=self.source, check=True)
        self.unstripped = place / f"{name}.unstripped"
        os.rename(self.source / name, self.unstripped)
        self.stock = place / name
        subprocess.run(["strip", "-o", self.stock, self.unstripped], check=True)

    def diff(self, new: Files, old: Files | None = None) -> str:
        """A unified diff from ``old`` (default: the stock source) to it with ``new`` put in."""
        old = self.files if old is None else old
        text = ""
        for name in sorted({*old, *new}):
            before = old.get(name, "").splitlines(keepends=True)
            after = new.get(name, old.get(name, "")).splitlines(keepends=True)
            text += "".join(difflib.unified_diff(before, after, f"a/{name}", f"b/{name}"))
        return text

    def build(
        self, new: Files, base: Sequence[Files] = (), method: str = "auto", **options
    ) -> BuildResult:
        """Patch the stock binary to the source with ``new`` put in, as `wfpatch-build tree` does.

        ``base``: file sets of patches that are in force before, each on top of the last.
        """
        old, patches = self.files, []
        for number, files in enumerate((*base, new)):
            patch = self.place / f"{number}.patch"
            patch.write_text(self.diff(files, old))
            old = {**old, **files}
            patches.append(patch)
        change = Change((patches[-1],), tuple(patches[:-1]), **options)
        return build_plain(self.source, self.command, self.stock, change, method=method)

    def resource(self, new: Files) -> None:
        """Change the source behind the stock binary's back: what it builds is another one."""
        self.files.update(new)
        write_files(self.source, new)

    def refused(self, new: Files, **options) -> Refusal:
        """The refusal that building ``new`` must end in."""
        with pytest.raises(Refusal) as caught:
            self.build(new, **options)
        return caught.value


def write_files(directory: Path, files: Files) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch, request):
    """Nothing that these tests make lands in the machine's cache, but for rebuilt packages."""
    if request.node.get_closest_marker("packages") is None:
        monkeypatch.setenv("WFPATCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def source_tree(tmp_path):
    """source_tree(files, flags=..., link=...) -> SourceTree"""

    def make(files: Files, **options) -> SourceTree:
        return SourceTree(tmp_path, files, **options)

    return make
