# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook build: bundles of recipes, made on a build host and brought to the controller."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from live_patching import COMMANDS, RECAP, TOP

RECIPE = "memcached-incr-large-number"
FILES = {"manifest.yml", "bundle.json", "patch.elf"}


class BuildHost:
    """This machine, as the one host of the group wfpatch_build."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.bundles = folder / "bundles"
        self.inventory = folder / "inventory.json"
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "ansible_become": False,
        }
        hosts = {"builder": variables}
        self.inventory.write_text(json.dumps({"wfpatch_build": {"hosts": hosts}}))

    def play(self, *options: str, **variables: Any) -> tuple[int, str]:
        """Exit code and output."""
        given = {
            "wfpatch_build_recipes": [str(TOP / "catalogue" / RECIPE)],
            "wfpatch_build_dest": str(self.bundles),
            "wfpatch_build_program": str(COMMANDS / "wfpatch-build"),
            "wfpatch_program": str(self.folder / "nosuch"),
            **variables,
        }
        done = subprocess.run(
            [
                *(COMMANDS / "ansible-playbook", TOP / "playbooks" / "build.yml"),
                *("-i", self.inventory, "-e", json.dumps(given), *options),
            ],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(TOP / ".work" / "collections"),
                "ANSIBLE_FORCE_COLOR": "0",
            },
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def build_host(tmp_path: pathlib.Path) -> BuildHost:
    return BuildHost(tmp_path)


def test_a_bundle_is_built_and_brought(build_host: BuildHost) -> None:
    code, output = build_host.play()
    assert code == 0, output
    (bundle,) = build_host.bundles.iterdir()
    assert bundle.name == RECIPE
    assert {path.name for path in bundle.iterdir()} == FILES
    assert json.loads((bundle / "bundle.json").read_text())["id"] == RECIPE
    code, output = build_host.play()
    changed = {match[1]: int(match[3]) for match in RECAP.finditer(output)}
    assert (code, changed) == (0, {"builder": 0}), output


def test_where_it_does_not_build(build_host: BuildHost) -> None:
    """Beside patched services, nothing at all, and nowhere."""
    for wrong, message in (
        ({"wfpatch_program": sys.executable}, "builder has the applier"),
        ({"wfpatch_build_recipes": []}, "names no recipe"),
        ({"wfpatch_build_hosts": "nosuch"}, "empty_host_set"),
    ):
        code, output = build_host.play(**wrong)
        assert code != 0
        assert message in output
    assert not build_host.bundles.exists()
