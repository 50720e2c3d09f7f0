# SPDX-License-Identifier: GPL-3.0-or-later
"""However a host set comes to be empty: the exit code is not 0, and nothing was done.

Run by full name and with no configuration, so that only the playbooks themselves guard against it.
"""

from __future__ import annotations

import pytest
from conftest import FLEET

NAMES = ["install", "patch", "revert", "status", "uninstall"]


@pytest.fixture(params=NAMES)
def playbook(request):
    return f"wfpatch.fleet.{request.param}"


def refused(run, guarded=True):
    assert run.code != 0
    assert run.changed == {}
    if guarded:
        assert "empty_host_set" in run.output
    assert "no hosts matched" not in run.output


def test_empty_inventory(playbooks, playbook, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("")
    refused(playbooks.run(playbook, inventory=empty))


def test_inventory_that_is_not_there(playbooks, playbook, tmp_path):
    refused(playbooks.run(playbook, inventory=tmp_path / "nosuch"))


def test_unknown_pattern(playbooks, playbook):
    refused(playbooks.run(playbook, wfpatch_hosts="nosuch"))


def test_empty_group(playbooks, playbook):
    refused(playbooks.run(playbook, wfpatch_hosts="none"))


def test_empty_pattern(playbooks, playbook):
    refused(playbooks.run(playbook, wfpatch_hosts=""))


def test_limit_that_matches_other_hosts(playbooks, playbook):
    run = playbooks.run(playbook, "--limit", "others", wfpatch_hosts="patched")
    refused(run)
    assert "with --limit others" in run.output


def test_limit_that_matches_nothing(playbooks, playbook):
    # Ansible itself refuses this one.
    refused(playbooks.run(playbook, "--limit", "nosuch"), guarded=False)


def test_limit_that_excludes_all(playbooks, playbook):
    refused(playbooks.run(playbook, "--limit", "!patched", wfpatch_hosts=["patched"]))


@pytest.mark.parametrize("name", NAMES)
def test_by_path(playbooks, name):
    refused(playbooks.run(str(FLEET / "playbooks" / f"{name}.yml"), wfpatch_hosts="nosuch"))


@pytest.mark.parametrize("name", NAMES)
def test_listing_and_syntax_check(playbooks, name):
    playbook = f"wfpatch.fleet.{name}"
    assert playbooks.run(playbook, "--syntax-check").code == 0
    assert "here" in playbooks.succeed(playbook, "--list-hosts", "--limit", "patched").output
