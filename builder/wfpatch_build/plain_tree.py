# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a patch for a binary that a plain source tree builds with one command, on this machine.

The tree itself is not touched: a copy is built, bound over the tree's own path so that the paths in
the output are the same, with logging stand-ins for the compilers first in PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from wfpatch_build.build_tree import BuildTree
from wfpatch_build.cache import cache_root
from wfpatch_build.debian import BuildResult, importable_names
from wfpatch_build.errors import Refusal
from wfpatch_build.linked_objects import units_of, unstripped_binary
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.pipeline import Change, Progress, build_patch
from wfpatch_build.sandbox import PATH, Sandbox
from wfpatch_build.section_identity import compare
from wfpatch_build.source import link_copy
from wfpatch_build.stock_symbols import symbols_by

_DRIVERS = re.compile(r"(x86_64-linux-gnu-)?(gcc|cc|g\+\+|c\+\+|clang|clang\+\+)(-[0-9]+)?")


def build_plain(
    old: Path,
    command: str,
    binary: Path,
    change: Change,
    built: str | None = None,
    progress: Progress = lambda text: None,
    method: str = "auto",
) -> BuildResult:
    """Make a patch for ``binary``, built from the tree ``old`` by the shell command ``command``.

    ``built`` is the path below ``old`` of what the command makes of it; default: the file with the
    same build-id, or else the same name; ``method`` one of stock_symbols.METHODS. Raises Refusal.
    """
    old = old.resolve()
    image = ObjectFile.load(binary)
    if image.build_id is None:
        raise Refusal("no_build_id", f"{binary} has no build-id; link it with -Wl,--build-id")
    place = cache_root() / "plain"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as directory:
        scratch = Path(directory)
        tree = scratch / "tree"
        link_copy(old, tree, links=False)
        _clean(tree, binary)
        home = scratch / "home"
        _stand_ins(home)
        build = BuildTree(tree, str(old), Sandbox(), home / "log" / "compile.log")
        sandbox = Sandbox(binds=((tree, str(old)),), environment={"PATH": f"{home / 'bin'}:{PATH}"})
        sandbox.check("build_failed", f"`{command}`", ["/bin/sh", "-c", command], str(old))
        again = _find_built(tree, image, built)
        other = ObjectFile.load(again)
        identity = compare(image, other)
        progress(f"rebuilt {again.name}: {identity.summary()}")
        if other.build_id is None:
            raise Refusal("no_build_id", f"what the tree builds as {again.name} has no build-id")
        unstripped = unstripped_binary(build, other.build_id)
        units = units_of(build, unstripped)
        stock, matched = symbols_by(
            method, image, ObjectFile.load(unstripped), identity, build, units, progress
        )
        result = build_patch(
            build,
            units,
            stock,
            change,
            "matched" if matched else "plain",
            importable_names(image, Path("/")),
            progress,
        )
    return BuildResult(image, identity, result)


def _clean(tree: Path, binary: Path) -> None:
    """Remove compiled files from the copy, so that everything is compiled again and logged."""
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                head = stream.read(8)
            if head[:4] == b"\x7fELF" or head == b"!<arch>\n":
                path.unlink()


def _stand_ins(home: Path) -> None:
    """Fill ``home``: bin/ with stand-ins, real/ with links to the installed drivers, log/."""
    for name in ("bin", "real", "log"):
        (home / name).mkdir(parents=True)
    stand_in = home / "stand-in"
    source = Path(__file__).with_name("compiler_log.c")
    try:
        subprocess.run(
            ["cc", "-O1", f'-DHOME="{home}"', "-o", str(stand_in), str(source)],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError as error:
        raise Refusal("tool_missing", "a C compiler is needed") from error
    for directory in reversed(PATH.split(":")):
        for driver in sorted(Path(directory).glob("*")):
            if _DRIVERS.fullmatch(driver.name) and os.access(driver, os.X_OK):
                link = home / "real" / driver.name
                link.unlink(missing_ok=True)
                link.symlink_to(driver.resolve())
                shutil.copy2(stand_in, home / "bin" / driver.name)


def _find_built(tree: Path, image: ObjectFile, built: str | None) -> Path:
    if built is not None:
        path = tree / built
        if not path.is_file():
            raise Refusal("build_failed", f"the build made no {built}")
        return path
    named = []
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as stream:
            head = stream.read(18)
        if head[:4] != b"\x7fELF" or head[16] not in (2, 3):
            continue
        if ObjectFile.load(path).build_id == image.build_id:
            return path
        if path.name == image.name:
            named.append(path)
    if len(named) == 1:
        return named[0]
    raise Refusal(
        "stock_mismatch",
        f"the build made no file that is {image.name}; give --built",
    )
