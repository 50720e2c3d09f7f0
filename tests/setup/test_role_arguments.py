# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role says of its arguments is what it uses: argument specs, defaults and tasks agree."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import yaml

TOP = pathlib.Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (TOP / "roles").iterdir())


def specs(role: str) -> dict[str, dict[str, Any]]:
    """The options of all entry points, by name."""
    text = (TOP / "roles" / role / "meta" / "argument_specs.yml").read_text()
    found: dict[str, dict[str, Any]] = {}
    for entry_point in yaml.safe_load(text)["argument_specs"].values():
        found.update(entry_point.get("options", {}))
    return found


def defaults(role: str) -> dict[str, Any]:
    path = TOP / "roles" / role / "defaults" / "main.yml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def text_of(role: str) -> str:
    place = TOP / "roles" / role
    files = [*place.glob("tasks/*.yml"), *place.glob("vars/*.yml"), *place.glob("templates/*")]
    assert files
    return "\n".join(path.read_text() for path in files)


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_a_documented_argument_and_the_same(role: str) -> None:
    documented = specs(role)
    for name, value in defaults(role).items():
        assert name in documented, f"{role}: {name} is not in the argument specs"
        # What is made out of other variables is described in words.
        if "{{" not in str(value):
            assert documented[name].get("default") == value, f"{role}: {name}"


@pytest.mark.parametrize("role", ROLES)
def test_every_argument_is_used_and_has_a_value(role: str) -> None:
    text = text_of(role)
    given = defaults(role)
    for name, option in specs(role).items():
        assert name.startswith(f"{role}_"), f"{role}: {name}"
        assert re.search(rf"\b{name}\b", text), f"{role}: no task uses {name}"
        assert name in given or option.get("required"), f"{role}: {name} has no value"
        assert option.get("description") and option.get("type"), f"{role}: {name}"


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_of_a_role_is_an_argument_or_its_own(role: str) -> None:
    text = text_of(role)
    made = set(re.findall(r"(?m)^\s*(?:register|loop_var): (\w+)", text))
    made |= set(re.findall(rf"(?m)^\s*({role}_\w+):", text))
    for name in set(re.findall(rf"\b{role}_\w+\b", text)) - made - set(specs(role)):
        # A folder, a module or a part of a longer name is no variable.
        used = re.search(rf"{{{{[^}}]*\b{name}\b|when: .*\b{name}\b", text)
        assert not used, f"{role}: {name} comes from nowhere"
