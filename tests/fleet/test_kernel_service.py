# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts on which no kernel service can be had: a fleet's hosts are namespaces without headers.

tests/vm has hosts with a kernel of their own.
"""

from __future__ import annotations

import pathlib
import re
import subprocess

import live_patching
import pytest
from live_patching import Run
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

#: By what the machine that runs the tests is: without modules, a container, or neither.
REASONS = ("kernel_unsupported", "kernel_module_not_permitted", "kernel_headers_missing")
FALLBACK = re.compile(r"goes on with the backend ptrace\. ({}): ".format("|".join(REASONS)))


@pytest.fixture(scope="module")
def fleet(ssh_fleet: FleetFactory) -> Fleet:
    return ssh_fleet(2)


@pytest.fixture
def play(fleet: Fleet, tmp_path: pathlib.Path):
    def run(name: str, *options: str, **variables: object) -> Run:
        return live_patching.play(name, fleet.inventory, tmp_path, *options, **variables)

    return run


def installed(fleet: Fleet, host: str) -> bool:
    return (fleet.root(host) / "usr/local/lib/wfpatch/wfpatch").exists()


def test_without_a_word_there_is_none(play, fleet):
    run = play("install")
    assert run.code == 0
    assert "See what the host has" not in run.output
    assert installed(fleet, "host01")
    # YAML's "off" is false.
    for off in (False, "off"):
        run = play("install", wfpatch_kernel_service=off)
        assert run.code == 0
        assert "See what the host has" not in run.output


def test_a_host_goes_on_without_it(play):
    for options in (("--check", "--diff"), ()):
        run = play("install", *options, wfpatch_kernel_service="auto")
        assert run.code == 0, run.output
        assert len(FALLBACK.findall(run.output)) == 2, run.output
    again = play("install", wfpatch_kernel_service="auto")
    assert set(again.changed.values()) == {0}


def test_the_oldest_ansible_core(play):
    made = subprocess.run(
        [live_patching.TOP / "setup/oldest_controller"], check=True, capture_output=True, text=True
    )
    run = play(
        "install",
        *("-vv", "--limit", "host01"),
        commands=pathlib.Path(made.stdout.strip()) / "bin",
        wfpatch_kernel_service="auto",
    )
    assert run.code == 0, run.output
    assert "ansible-playbook [core 2.18." in run.output
    assert len(FALLBACK.findall(run.output)) == 1, run.output


def test_a_host_that_needs_it_fails(play):
    run = play("install", wfpatch_kernel_service="required")
    assert run.code == 2
    assert "failed=1" in run.output
    assert any(reason in run.output for reason in REASONS)


def test_a_word_that_means_nothing(play):
    run = play("install", wfpatch_kernel_service="on")
    assert run.code == 2
    assert "it has to be off, auto or required" in run.output


def test_status_tells_of_it_and_uninstall_has_nothing_to_remove(play, fleet):
    play("install")
    run = play("status", wfpatch_kernel_service="auto")
    assert len(re.findall(r"kernel service not loaded, none installed for \d", run.output)) == 2
    gone = play("uninstall")
    assert gone.code == 0, gone.output
    assert not installed(fleet, "host01")
