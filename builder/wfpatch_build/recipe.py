# SPDX-License-Identifier: GPL-3.0-or-later
"""A recipe: one YAML file that says how to make one patch (docs/patch-authors.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wfpatch_build.errors import Refusal
from wfpatch_build.manifest import Description

_MANIFEST_KEYS = (
    *("id", "summary", "cves", "released", "policy", "stragglers", "requires", "conflicts"),
    *("supersedes", "health_check", "stack_switching", "transition_timeout"),
)
_RECIPE_KEYS = ("references", "package", "source", "version", "fixed_version", "binary", "patch")
_OTHER_KEYS = ("functions", "provoke", "suite", "accept_layout")


@dataclass(frozen=True)
class Recipe:
    """``patch`` is a file, ``base_patches`` those of the required patches, first to last;
    ``functions`` the names that must come out, empty if the recipe does not say."""

    description: Description
    package: str
    version: str
    binary: str | None
    patch: Path
    base_patches: tuple[Path, ...]
    functions: tuple[str, ...]
    suite: str | None
    accept_layout: tuple[str, ...]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe and those it requires. Raises Refusal("manifest_invalid")."""
    value = _load(path)
    description = Description(
        id=str(value["id"]),
        summary=str(value["summary"]),
        cves=tuple(value.get("cves") or ()),
        released=_day(value.get("released")),
        policy=value.get("policy", "auto"),
        transition_timeout=value.get("transition_timeout", 60),
        stragglers=value.get("stragglers", "leave"),
        requires=tuple(value.get("requires") or ()),
        conflicts=tuple(value.get("conflicts") or ()),
        supersedes=tuple(value.get("supersedes") or ()),
        health_check=value.get("health_check"),
        stack_switching=value.get("stack_switching", "unknown"),
    )
    return Recipe(
        description=description,
        package=str(value["package"]),
        version=str(value["version"]),
        binary=value.get("binary"),
        patch=path.parent / value["patch"],
        base_patches=tuple(_required_patches(path, value, set())),
        functions=tuple(value.get("functions") or ()),
        suite=value.get("suite"),
        accept_layout=tuple(value.get("accept_layout") or ()),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Refusal("manifest_invalid", f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise Refusal("manifest_invalid", f"{path}: a mapping is expected")
    unknown = sorted(set(value) - {*_MANIFEST_KEYS, *_RECIPE_KEYS, *_OTHER_KEYS})
    missing = [k for k in ("id", "summary", "package", "version", "patch") if k not in value]
    if unknown or missing:
        raise Refusal(
            "manifest_invalid",
            f"{path}: unknown keys {unknown}, missing keys {missing}",
        )
    return value


def _day(value: Any) -> str | None:
    return None if value is None else str(value)


def _required_patches(path: Path, value: dict[str, Any], seen: set[str]) -> list[Path]:
    """Patches of the required recipes for the same version, each after what it requires itself.

    They lie beside this one: ``../<id>/recipe.yml``.
    """
    found: list[Path] = []
    for identity in value.get("requires") or ():
        if identity in seen:
            continue
        seen.add(identity)
        other = path.parent.parent / identity / "recipe.yml"
        required = _load(other)
        if required["version"] != value["version"]:
            raise Refusal(
                "manifest_invalid",
                f"{path}: requires {identity}, which is for version {required['version']}",
            )
        for patch in [*_required_patches(other, required, seen), other.parent / required["patch"]]:
            if patch not in found:
                found.append(patch)
    return found
