# SPDX-License-Identifier: GPL-3.0-or-later
"""Every provoke script of the catalogue tells a stock service from one with the packaged fix."""

from __future__ import annotations

import functools
import json
import pathlib
import socket
import subprocess
from typing import Any

import pytest
import yaml
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

CATALOGUE = pathlib.Path(__file__).resolve().parents[2] / "catalogue"
RECIPES = {
    path.parent.name: yaml.safe_load(path.read_text()) for path in CATALOGUE.glob("*/recipe.yml")
}
PROVOKABLE = sorted(name for name, recipe in RECIPES.items() if recipe["provoke"])


def service(name: str) -> str:
    """The fleet's service to provoke; with `-fixed` behind it: the one with the packaged fix."""
    source, server = RECIPES[name]["source"], RECIPES[name]["provoke"].get("server")
    return f"{source}-{server}" if server else source


def provoke(fleet: Fleet, host: str, name: str, *options: str) -> tuple[int, dict[str, str]]:
    """Exit code, and the behaviour by provocation."""
    script = CATALOGUE / name / RECIPES[name]["provoke"]["script"]
    done = subprocess.run(
        fleet.in_network(host, str(script), *options), capture_output=True, text=True
    )
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return done.returncode, {line["provocation"]: line["behaviour"] for line in lines[:-1]}


@pytest.fixture(scope="module")
def stock(ssh_fleet: FleetFactory) -> dict[str, tuple[Fleet, str]]:
    """A host of its own for each recipe: some provocations end the server."""
    hosts = {}
    for wanted in sorted({service(name) for name in PROVOKABLE}):
        names = [name for name in PROVOKABLE if service(name) == wanted]
        fleet = ssh_fleet(len(names), wanted)
        hosts.update({n: (fleet, f"host{number:02d}") for number, n in enumerate(names, 1)})
    return hosts


@pytest.fixture(scope="module")
def fixed(ssh_fleet: FleetFactory) -> functools.cache:  # type: ignore[type-arg]
    """One host for each service."""
    return functools.cache(lambda wanted: ssh_fleet(1, f"{wanted}-fixed"))


@pytest.mark.parametrize("name", PROVOKABLE)
def test_a_stock_service_is_vulnerable(name: str, stock: dict[str, tuple[Fleet, str]]) -> None:
    code, seen = provoke(*stock[name], name)
    assert code == 1, seen
    # The well-formed counterparts work already before the fix: a script that only ever sees
    # failures would prove nothing.
    assert "fixed" in seen.values()


@pytest.mark.parametrize("name", PROVOKABLE)
def test_the_packaged_fix_is_fixed(name: str, fixed: functools.cache) -> None:  # type: ignore[type-arg]
    code, seen = provoke(fixed(service(name)), "host01", name)
    assert code == 0, seen
    assert set(seen.values()) == {"fixed"}


@pytest.mark.parametrize("name", PROVOKABLE)
def test_no_service_is_neither(name: str, stock: dict[str, tuple[Fleet, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, seen = provoke(*stock[name], name, f"--port={port}")
    assert code == 2, seen


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_complete(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe["id"] == name
    assert recipe["functions"]
    header, _, body = (CATALOGUE / name / recipe["patch"]).read_text().partition("\n---\n")
    fields = {line.partition(":")[0] for line in header.splitlines() if line[0] != " "}
    assert {"Description", "Origin", "Author", "SPDX-License-Identifier", "Copyright"} <= fields
    assert body.startswith("diff --git ")
    for required in recipe["requires"]:
        assert required in RECIPES
    if recipe["provoke"]:
        assert (CATALOGUE / name / recipe["provoke"]["script"]).stat().st_mode & 0o111
