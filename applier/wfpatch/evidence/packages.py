# SPDX-License-Identifier: GPL-3.0-or-later
"""Which installed package a file belongs to, by the host's own package database.

Only files of the host's own root are asked for: a container brings a database of its own, which may
say anything. The database tells of the file that is installed, not of the image that runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wfpatch.report import printable

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT = 60.0
#: Command lines have an end; a database is asked in portions.
_PORTION = 500
#: Top-level directories that a merged /usr has links for: a package may know a file by either name.
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")


@dataclass(frozen=True)
class Package:
    """An installed package; ``source`` and its version are empty where the database has none."""

    name: str
    version: str
    architecture: str
    source: str
    source_version: str
    purl: str


@dataclass(frozen=True)
class System:
    """What /etc/os-release says: ID, VERSION_ID, PRETTY_NAME."""

    id: str
    version: str
    name: str


def read_system() -> System:
    """The operating system by os-release(5); empty texts where it says nothing."""
    found: dict[str, str] = {}
    for path in OS_RELEASE:
        try:
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            key, equals, value = line.partition("=")
            if equals:
                found[key.strip()] = printable(value.strip().strip("'\""))[:255]
        break
    return System(found.get("ID", ""), found.get("VERSION_ID", ""), found.get("PRETTY_NAME", ""))


def purl(kind: str, system: System, name: str, version: str, architecture: str) -> str:
    """The package URL (purl-spec, types deb and rpm); without a version where none is known."""
    qualifiers = []
    if architecture:
        qualifiers.append(f"arch={quote(architecture, safe='')}")
    if kind == "rpm" and ":" in version:
        epoch, _, version = version.partition(":")
        qualifiers.append(f"epoch={quote(epoch, safe='')}")
    if system.id and system.version:
        qualifiers.append(f"distro={quote(f'{system.id}-{system.version}', safe='')}")
    namespace = quote(system.id.lower() or kind, safe="")
    at = f"@{quote(version, safe='~')}" if version else ""
    return f"pkg:{kind}/{namespace}/{quote(name, safe='')}{at}" + (
        f"?{'&'.join(qualifiers)}" if qualifiers else ""
    )


def other_name(path: str) -> str | None:
    """The name that a file has by the links of a merged /usr, None where there is none."""
    parts = path.split("/")
    if len(parts) > 2 and parts[1] in _MERGED:
        return "/usr" + path
    if len(parts) > 3 and parts[1] == "usr" and parts[2] in _MERGED:
        return "/" + "/".join(parts[2:])
    return None


def _run(command: Sequence[str]) -> str:
    """What the command prints; "" when it cannot be run. Its exit code says that *some* argument
    was not found, so it tells nothing."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=False,
            env={"LC_ALL": "C.UTF-8", "PATH": _PATH},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


class Dpkg:
    """Debian's database, by dpkg-query(1)."""

    name = "dpkg"
    _FORMAT = (
        r"${binary:Package}\t${Version}\t${Architecture}\t${source:Package}\t"
        r"${source:Version}\t${db:Status-Status}\n"
    )

    def __init__(self, program: str) -> None:
        self._program = program

    def owners(self, paths: Sequence[str], system: System) -> dict[str, Package]:
        """path -> the package that owns it; paths that nobody owns are left out."""
        asked: dict[str, list[str]] = {}
        for path in paths:
            for spelled in (path, other_name(path)):
                if spelled is not None:
                    asked.setdefault(spelled, []).append(path)
        owner: dict[str, str] = {}
        for portion in _portions(list(asked)):
            for line in _run([self._program, "--search", "--", *portion]).splitlines():
                names, _, found_path = line.partition(": ")
                if not names.startswith("diversion by "):
                    for path in asked.get(found_path, ()):
                        owner.setdefault(path, names.split(", ")[0])
        found = self._installed(sorted(set(owner.values())), system)
        return {path: found[name] for path, name in owner.items() if name in found}

    def _installed(self, names: Sequence[str], system: System) -> dict[str, Package]:
        found = {}
        for portion in _portions(names):
            for line in _run(
                [self._program, "--show", f"--showformat={self._FORMAT}", "--", *portion]
            ).splitlines():
                fields = line.split("\t")
                if len(fields) != 6 or fields[5] != "installed":
                    continue
                full, version, architecture, source, source_version, _ = map(printable, fields)
                name = full.partition(":")[0]
                package = Package(
                    name,
                    version,
                    architecture,
                    source,
                    source_version,
                    purl("deb", system, name, version, architecture),
                )
                found[full] = package
                found.setdefault(f"{name}:{architecture}", package)
                found.setdefault(name, package)
        return found


class Rpm:
    """RPM's database, by rpm(8)."""

    name = "rpm"
    _FORMAT = "%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%{ARCH}\t%{SOURCERPM}\n"

    def __init__(self, program: str) -> None:
        self._program = program

    def owners(self, paths: Sequence[str], system: System) -> dict[str, Package]:
        """path -> the package that owns it; paths that nobody owns are left out."""
        found = {}
        for path in paths:
            # One by one: rpm names no path in its answer.
            answer = _run(
                [self._program, "--query", "--file", f"--queryformat={self._FORMAT}", path]
            )
            for line in answer.splitlines():
                fields = [printable(field) for field in line.split("\t")]
                if len(fields) == 4:
                    name, version, architecture, source = fields
                    found[path] = Package(
                        name,
                        version,
                        architecture,
                        source.rsplit("-", 2)[0],
                        "",
                        purl("rpm", system, name, version, architecture),
                    )
                    break
        return found


def _portions(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[at : at + _PORTION] for at in range(0, len(items), _PORTION))


def database() -> Dpkg | Rpm | None:
    """The host's package database; None where it has neither."""
    program = shutil.which("dpkg-query", path=_PATH)
    if program is not None and os.path.exists("/var/lib/dpkg/status"):
        return Dpkg(program)
    program = shutil.which("rpm", path=_PATH)
    return Rpm(program) if program is not None else None


def find_owners(
    database: Dpkg | Rpm | None, paths: Iterable[str], system: System
) -> Mapping[str, Package]:
    """The packages of some files of the host's own root; {} without a database."""
    wanted = sorted({path for path in paths if path.startswith("/") and "\n" not in path})
    return database.owners(wanted, system) if database is not None and wanted else {}
