# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a patch: what stands in manifest.yml, and as canonical JSON in bundle.json.

The fields are those of schemas/manifest.schema.json, against which every manifest is checked.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from wfpatch_build.canonical_json import canonical
from wfpatch_build.errors import Refusal

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "manifest.schema.json"
ARTIFACT = "patch.elf"
_LAST_UPDATE = re.compile(rb"(?m)^(?:Last-Update|Date): *(.+)$")


@dataclass(frozen=True)
class Description:
    """What people say about a patch; everything else of a manifest is computed."""

    id: str
    summary: str
    cves: tuple[dict[str, Any], ...] = ()
    released: str | None = None
    policy: str = "auto"
    transition_timeout: int = 60
    stragglers: str = "leave"
    requires: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    supersedes: tuple[str, ...] = ()
    health_check: dict[str, Any] | None = None
    stack_switching: str = "unknown"


@dataclass(frozen=True)
class Target:
    object: str
    build_ids: tuple[str, ...]
    package: str
    versions: tuple[str, ...] = field(default=())


def release_day(patches: Sequence[Path]) -> str:
    """The day the patch's header names, or $SOURCE_DATE_EPOCH's, or today: YYYY-MM-DD."""
    for patch in patches:
        match = _LAST_UPDATE.search(patch.read_bytes()[:20000])
        if match:
            day = re.search(r"\d{4}-\d{2}-\d{2}", match[1].decode("utf-8", "replace"))
            if day:
                return day[0]
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).date().isoformat()
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def manifest(description: Description, target: Target, elf: bytes) -> dict[str, Any]:
    """The manifest as a dictionary, valid by the schema. Raises Refusal("manifest_invalid")."""
    value: dict[str, Any] = {
        "schema": 1,
        "id": description.id,
        "summary": description.summary,
        "cves": [dict(cve) for cve in description.cves],
        "released": description.released,
        "target": {
            "object": target.object,
            "build_ids": list(target.build_ids),
            "package": target.package,
            "versions": list(target.versions),
            "architecture": "amd64",
        },
        "artifact": {
            "file": ARTIFACT,
            "sha256": hashlib.sha256(elf).hexdigest(),
            "size": len(elf),
        },
        "policy": description.policy,
        "timeouts": {"transition": description.transition_timeout},
        "stragglers": description.stragglers,
        "requires": list(description.requires),
        "conflicts": list(description.conflicts),
        "supersedes": list(description.supersedes),
        "health_check": description.health_check,
        "stack_switching": description.stack_switching,
    }
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(value), key=lambda e: list(map(str, e.path)))
    if errors:
        lines = [f"{'.'.join(map(str, e.path)) or 'manifest'}: {e.message}" for e in errors]
        raise Refusal("manifest_invalid", "; ".join(lines), errors=lines)
    return value


class _Dumper(yaml.SafeDumper):
    """Block style with indented lists, as the rest of the repository's YAML."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def write_bundle(directory: Path, value: dict[str, Any], elf: bytes) -> None:
    """Write manifest.yml, bundle.json and patch.elf; an older signature goes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bundle.json.sig").unlink(missing_ok=True)
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    (directory / "manifest.yml").write_text(f"---\n{text}")
    (directory / "bundle.json").write_bytes(canonical(value))
    (directory / ARTIFACT).write_bytes(elf)
