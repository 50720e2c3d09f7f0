# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a running image counts as a fixed build: the ground is always named, never only the verdict.

Two of the grounds speak of an installed package. They hold for a running image only where its
build-id is that of the installed file, which the caller has seen to.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .advisories import Advisory
from .debian_version import compare
from .packages import Package

BUILD_ID, VERSION, CHANGELOG = "build_id", "version", "changelog"
DOCUMENTS = Path("/usr/share/doc")
_MAX_CHANGELOG = 4 << 20
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,254}\Z")
# deb-changelog(5): "package (version) distributions; metadata"
_HEADING = re.compile(r"^[^\s(]+ \(([^()\s]+)\)[^;\n]*;", re.MULTILINE)


def named_build(build_id: str, advisories: Sequence[Advisory]) -> bool:
    """Whether an advisory names this build as fixed."""
    return any(build_id in advisory.fixed_build_ids for advisory in advisories)


def fixed_version(package: Package, advisories: Sequence[Advisory], debian: bool) -> bool:
    """Whether the installed version is a fixed one; only Debian's order of versions is known."""
    return any(
        package.version == version or (debian and compare(package.version, version) >= 0)
        for advisory in advisories
        if package.name == advisory.package
        for version in advisory.fixed_versions
    )


def _changelog(package: str) -> str:
    if not _PACKAGE_NAME.match(package):
        return ""
    for name in ("changelog.Debian.gz", "changelog.gz"):
        try:
            with gzip.open(DOCUMENTS / package / name) as file:
                return file.read(_MAX_CHANGELOG).decode("utf-8", "replace")
        except (OSError, EOFError):
            continue
    return ""


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(version, text) of each entry, the newest first."""
    headings = list(_HEADING.finditer(text))
    for heading, following in zip(headings, [*headings[1:], None]):
        yield heading[1], text[heading.end() : following.start() if following else len(text)]


def changelog_names(package: Package, cve: str, affected: Sequence[str]) -> bool:
    """Whether Debian's changelog of the installed package names the CVE in an entry that is newer
    than every version known to be affected."""
    if not affected or not all(compare(package.version, each) > 0 for each in affected):
        return False
    named = re.compile(re.escape(cve) + r"(?!\d)")
    for version, text in _entries(_changelog(package.name)):
        if any(compare(version, each) <= 0 for each in affected):
            return False
        if named.search(text):
            return True
    return False
