# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a patch, as the host reads it: the canonical JSON that was signed.

The same fields stand in schemas/manifest.schema.json, which the controller checks with a JSON
Schema library; the host parses strictly with the dataclasses below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import Refused
from .strict_json import Fields, Invalid, parse_canonical

MAX_MANIFEST = 1 << 20
ID = re.compile(r"[a-z0-9][A-Za-z0-9._-]{0,127}\Z")
HEX = re.compile(r"[0-9a-f]+\Z")
POLICIES = ("auto", "points", "global")
SEVERITIES = ("low", "medium", "high", "critical")


@dataclass(frozen=True)
class Cve:
    """A vulnerability that the patch closes."""

    id: str
    severity: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """What the patch is for: the object by build-id; package and versions for people."""

    object: str
    build_ids: tuple[str, ...]
    package: str
    versions: tuple[str, ...]
    architecture: str


@dataclass(frozen=True)
class Artifact:
    """The patch ELF: file name in the bundle, SHA-256 in hex, size in bytes."""

    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class HealthCheck:
    """A command that must exit 0 within ``timeout`` seconds after the patch was applied."""

    command: tuple[str, ...]
    timeout: int


@dataclass(frozen=True)
class Manifest:
    """One patch's manifest; times in seconds."""

    id: str
    summary: str
    cves: tuple[Cve, ...]
    released: str
    target: Target
    artifact: Artifact
    policy: str
    transition_timeout: int
    stragglers: str
    requires: tuple[str, ...]
    conflicts: tuple[str, ...]
    supersedes: tuple[str, ...]
    health_check: HealthCheck | None
    stack_switching: str


def check_id(value: str, path: str) -> str:
    """A patch id is also a directory's name in the store."""
    if not ID.match(value):
        raise Invalid(path, f"{value[:64]!r} is not a patch id")
    return value


def _ids(fields: Fields, name: str) -> tuple[str, ...]:
    return tuple(check_id(value, name) for value in fields.texts(name, 64))


def _cve(fields: Fields) -> Cve:
    return Cve(
        fields.text("id", 64),
        fields.text("severity", 16, SEVERITIES),
        fields.texts("references", 64),
    )


def _target(fields: Fields) -> Target:
    build_ids = fields.texts("build_ids", 64, 128)
    if not build_ids or not all(HEX.match(value) for value in build_ids):
        raise Invalid("target.build_ids", "at least one build-id in lower-case hex is expected")
    target = Target(
        fields.text("object", 255),
        build_ids,
        fields.text("package", 255),
        fields.texts("versions", 64, 255),
        fields.text("architecture", 32, ("amd64",)),
    )
    fields.done()
    return target


def _artifact(fields: Fields) -> Artifact:
    artifact = Artifact(
        fields.text("file", 64, ("patch.elf",)),
        fields.text("sha256", 64),
        fields.number("size", 1, 64 << 20),
    )
    if len(artifact.sha256) != 64 or not HEX.match(artifact.sha256):
        raise Invalid("artifact.sha256", "64 lower-case hex digits are expected")
    fields.done()
    return artifact


def _health_check(fields: Fields | None) -> HealthCheck | None:
    if fields is None:
        return None
    check = HealthCheck(fields.texts("command", 64), fields.number("timeout", 1, 3600))
    if not check.command:
        raise Invalid("health_check.command", "is empty")
    fields.done()
    return check


def parse_manifest(data: bytes) -> Manifest:
    """Parse the signed bytes of bundle.json; raises Refused("manifest_invalid")."""
    try:
        fields = Fields(parse_canonical(data, MAX_MANIFEST))
        fields.number("schema", 1, 1)
        timeouts = fields.nested("timeouts")
        manifest = Manifest(
            id=check_id(fields.text("id", 128), "id"),
            summary=fields.text("summary"),
            cves=fields.each("cves", _cve, 256),
            released=fields.text("released", 32),
            target=_target(fields.nested("target")),
            artifact=_artifact(fields.nested("artifact")),
            policy=fields.text("policy", 16, POLICIES),
            transition_timeout=timeouts.number("transition", 1, 86400),
            stragglers=fields.text("stragglers", 16, ("leave", "revert")),
            requires=_ids(fields, "requires"),
            conflicts=_ids(fields, "conflicts"),
            supersedes=_ids(fields, "supersedes"),
            health_check=_health_check(fields.optional_nested("health_check")),
            stack_switching=fields.text("stack_switching", 16, ("none", "present", "unknown")),
        )
        timeouts.done()
        fields.done()
    except Invalid as error:
        raise Refused("manifest_invalid", f"manifest: {error}", path=error.path) from None
    return manifest
