# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things lie in the checkout, and the plan and recipes that were read from it."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tomllib
from typing import Any

import yaml

TOP = pathlib.Path(__file__).resolve().parents[2]
CATALOGUE = TOP / "catalogue"
#: What a run makes and keeps.
OUTPUT = TOP / ".work" / "demo"
#: The interpreter's own folder is that of the virtual environment's commands.
COMMANDS = pathlib.Path(sys.executable).parent

sys.path[:0] = [str(TOP / "tests" / "fleet"), str(TOP / "tests" / "load")]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One patch of the catalogue."""

    id: str
    data: dict[str, Any]

    @property
    def folder(self) -> pathlib.Path:
        return CATALOGUE / self.id

    @property
    def patch(self) -> pathlib.Path:
        return self.folder / str(self.data["patch"])

    @property
    def source(self) -> str:
        """The source package, which is also the name of the service in the fleet."""
        return str(self.data["source"])

    @property
    def fatal_before(self) -> bool:
        """Whether the provoke script ends or damages an unpatched server."""
        return bool(self.data["provoke"]["fatal_before"])

    @property
    def harmless_tells(self) -> bool:
        """Whether the provoke script can tell without harming an unpatched server."""
        return bool(self.data["provoke"]["harmless_tells"])

    @property
    def requires(self) -> list[str]:
        return list(self.data["requires"])


@dataclasses.dataclass(frozen=True)
class Plan:
    """demo/plan.toml with the recipes it names."""

    hosts: int
    services: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    rate: int
    connections: int
    quiet_seconds: float


def recipe(name: str) -> Recipe:
    """The recipe of that name."""
    return Recipe(name, yaml.safe_load((CATALOGUE / name / "recipe.yml").read_text()))


def read_plan(path: pathlib.Path) -> Plan:
    """The plan; KeyError or OSError for one that is not complete."""
    data = tomllib.loads(path.read_text())
    load = data["load"]
    return Plan(
        data["hosts"],
        tuple(data["services"]),
        tuple(recipe(name) for name in data["patches"]),
        load["rate"],
        load["connections"],
        load["quiet_seconds"],
    )
