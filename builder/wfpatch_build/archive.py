# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary and source packages of Debian's archive, through the checkout's `setup/archive`."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from wfpatch_build.errors import Refusal

_PROGRAM = Path(__file__).resolve().parents[2] / "setup" / "archive"


def _archive(*arguments: str) -> str:
    try:
        done = subprocess.run(
            [str(_PROGRAM), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise Refusal("tool_missing", f"{_PROGRAM} is needed to reach the archive") from error
    if done.returncode:
        raise Refusal("archive_missing", done.stderr.strip() or f"{_PROGRAM} failed")
    return done.stdout


def mirror() -> str:
    """The mirror's address, as debootstrap wants it."""
    return _archive("mirror").strip()


def configure(root: Path, suite: str) -> None:
    """Let apt inside ``root`` reach the archive as this machine does."""
    _archive("configure", str(root), suite)


def binary_package(package: str, version: str, directory: Path) -> Path:
    """Fetch one binary package into ``directory``; returns the .deb's path."""
    directory.mkdir(parents=True, exist_ok=True)
    return Path(_archive("download", f"{package}={version}", str(directory)).split("\n")[0])


def source_package(package: str, version: str, directory: Path) -> list[Path]:
    """Fetch a source package's files into ``directory``; the .dsc is the first."""
    directory.mkdir(parents=True, exist_ok=True)
    printed = _archive("source", f"{package}={version}", str(directory))
    return [Path(line) for line in printed.splitlines() if line]


@dataclass(frozen=True)
class BinaryPackage:
    """Fields of an unpacked .deb's control file.

    ``same_version`` are the dependencies on exactly this version: packages of the same source.
    """

    package: str
    version: str
    source: str
    source_version: str
    architecture: str
    same_version: tuple[str, ...]
    root: Path


def unpack(deb: Path, root: Path) -> BinaryPackage:
    """Unpack a .deb's files below ``root`` and read its control fields."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True, capture_output=True)
        text = subprocess.run(
            ["dpkg-deb", "-f", str(deb)], check=True, capture_output=True, text=True
        ).stdout
    except FileNotFoundError as error:
        raise Refusal("tool_missing", "dpkg-deb is needed to unpack packages") from error
    except subprocess.CalledProcessError as error:
        raise Refusal("archive_missing", f"{deb} is no Debian package") from error
    fields: dict[str, str] = dict(re.findall(r"(?m)^([A-Za-z-]+): (.*(?:\n .*)*)", text))
    version = str(fields["Version"])
    source = fields.get("Source", fields["Package"])
    match = re.fullmatch(r"(\S+) \((\S+)\)", source)
    name, source_version = (str(match[1]), str(match[2])) if match else (source, version)
    # A binary-only rebuild (+b1) has the version of its source in the Source field.
    depends = ", ".join(fields.get(f, "") for f in ("Pre-Depends", "Depends"))
    exact = re.findall(r"(?:^|[,|]\s*)([a-z0-9][a-z0-9+.-]+)(?::\w+)?\s*\(=\s*([^)\s]+)\)", depends)
    names = tuple(name for name, wanted in exact if wanted == version)
    return BinaryPackage(
        fields["Package"], version, name, source_version, fields["Architecture"], names, root
    )
