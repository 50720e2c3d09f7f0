# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a patch for a binary of a Debian package: fetch, rebuild exactly, patch, compile, write."""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wfpatch_build import archive
from wfpatch_build.archive import BinaryPackage
from wfpatch_build.build_tree import BuildTree
from wfpatch_build.cache import cache_root
from wfpatch_build.errors import Refusal
from wfpatch_build.exact_rebuild import rebuild
from wfpatch_build.linked_objects import Unit, units_of, unstripped_binary
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.pipeline import Change, Progress, Result, build_patch
from wfpatch_build.section_identity import Identity, compare
from wfpatch_build.stock_symbols import symbols_by

_LIBRARY_DIRECTORIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib", "usr/lib")


@dataclass(frozen=True)
class StockFile:
    """A file of a package: ``path`` as installed, links resolved; ``package`` is its owner."""

    package: BinaryPackage
    path: str
    file: Path


@dataclass(frozen=True)
class BuildResult:
    """A patch for ``image``; ``stock`` says which package it is of, None for a plain tree's."""

    image: ObjectFile
    identity: Identity
    patch: Result
    stock: StockFile | None = None


def host_suite() -> str:
    """The codename of this machine's Debian release."""
    match = re.search(r"(?m)^VERSION_CODENAME=\"?([a-z]+)", Path("/etc/os-release").read_text())
    if match is None:
        raise Refusal("usage", "/etc/os-release names no suite; give --suite")
    return match[1]


def fetch_package(name: str, version: str, directory: Path) -> BinaryPackage:
    deb = archive.binary_package(name, version, directory)
    return archive.unpack(deb, directory / f"{name}.root")


def find_stock_file(name: str, version: str, binary: str | None, directory: Path) -> StockFile:
    """The ELF file meant by ``binary`` of package ``name``, wherever links lead.

    Without ``binary`` it is the program in a bin directory that is called like the package, or the
    package's only one, or its only shared library. A link into another package is followed when
    that package is a dependency built from the same source.
    """
    package = fetch_package(name, version, directory)
    path = binary or _main_binary(package)
    seen: list[BinaryPackage] = [package]
    for _ in range(16):
        for owner in seen:
            found = _resolve(owner.root, path)
            if found is not None:
                if found[1].is_file():
                    return StockFile(owner, found[0], found[1])
                path = found[0]
        known = {other.package for other in seen}
        further = [n for other in seen for n in other.same_version if n not in known]
        if not further:
            break
        seen.append(fetch_package(further[0], version, directory))
    raise Refusal("archive_missing", f"{path} is in neither {name} {version} nor its siblings")


def _resolve(root: Path, path: str) -> tuple[str, Path] | None:
    """Follow links inside ``root``; (installed path, file), the file perhaps missing; or None."""
    moved = False
    for _ in range(40):
        file = root / path.lstrip("/")
        if file.is_symlink():
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), os.readlink(file)))
            moved = True
            continue
        return (path, file) if moved or file.is_file() else None
    return None


def _main_binary(package: BinaryPackage) -> str:
    programs, libraries = [], []
    for path in sorted(package.root.rglob("*")):
        installed = "/" + str(path.relative_to(package.root))
        if re.fullmatch(r"/(usr/)?s?bin/[^/]+", installed):
            if path.is_symlink() or _is_elf(path):
                programs.append(installed)
        elif re.search(r"\.so(\.[0-9.]+)?$", installed) and not path.is_symlink() and _is_elf(path):
            libraries.append(installed)
    named = [p for p in programs if posixpath.basename(p) == package.package]
    for candidates in (named, programs, libraries):
        if len(candidates) == 1:
            return candidates[0]
    raise Refusal(
        "usage",
        f"{package.package} has several binaries, give --binary: "
        + ", ".join([*programs, *libraries]),
    )


def _is_elf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def importable_names(image: ObjectFile, root: Path) -> Callable[[str], bool] | None:
    """A test for names that the libraries which ``image`` needs export; None if one is missing."""
    names: set[str] = set()
    for library in image.needed:
        for directory in _LIBRARY_DIRECTORIES:
            file = root / directory / library
            if file.is_file():
                exported = ObjectFile.load(file).dynsym
                names |= {s.name for s in exported if s.section is not None}
                break
        else:
            return None
    return names.__contains__


@dataclass(frozen=True)
class RebuiltBinary:
    """A stock binary, what the rebuild of its package made of it, and the units it has."""

    stock_file: StockFile
    image: ObjectFile
    identity: Identity
    build: BuildTree
    unstripped: ObjectFile
    units: tuple[Unit, ...]


def rebuilt_binary(
    name: str,
    version: str,
    binary: str | None,
    suite: str | None = None,
    progress: Progress = lambda text: None,
) -> RebuiltBinary:
    """Fetch a binary of package ``name`` at ``version`` and rebuild it. Raises Refusal."""
    place = cache_root() / "download"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as directory:
        scratch = Path(directory)
        stock_file = find_stock_file(name, version, binary, scratch)
        image = ObjectFile.load(stock_file.file)
        package = stock_file.package
        progress(f"{stock_file.path} of {package.package} {package.version}: {image.build_id}")
        sources = archive.source_package(package.source, package.source_version, scratch / "source")
        rebuilt = rebuild(suite or host_suite(), sources)
        again = rebuilt.staged_file(stock_file.path)
        if again is None:
            raise Refusal("stock_mismatch", f"the rebuild installs no {stock_file.path}")
        other = ObjectFile.load(again)
        identity = compare(image, other)
        progress(f"rebuilt {package.source} {package.source_version}: {identity.summary()}")
        if other.build_id is None:
            raise Refusal("no_build_id", f"the rebuilt {stock_file.path} has no build-id")
        unstripped = unstripped_binary(rebuilt.build, other.build_id)
        units = tuple(units_of(rebuilt.build, unstripped))
    linked = ObjectFile.load(unstripped)
    return RebuiltBinary(stock_file, image, identity, rebuilt.build, linked, units)


def build_debian(
    name: str,
    version: str,
    binary: str | None,
    change: Change,
    suite: str | None = None,
    progress: Progress = lambda text: None,
    method: str = "auto",
) -> BuildResult:
    """Make a patch for a binary of package ``name`` at ``version``; ``method`` is one of
    stock_symbols.METHODS. Raises Refusal."""
    found = rebuilt_binary(name, version, binary, suite, progress)
    stock, matched = symbols_by(
        method, found.image, found.unstripped, found.identity, found.build, found.units, progress
    )
    result = build_patch(
        found.build,
        found.units,
        stock,
        change,
        "matched" if matched else "exact_rebuild",
        importable_names(found.image, found.build.sandbox.root or Path("/")),
        progress,
    )
    return BuildResult(found.image, found.identity, result, found.stock_file)
