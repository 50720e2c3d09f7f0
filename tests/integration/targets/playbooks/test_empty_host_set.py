# SPDX-License-Identifier: GPL-3.0-or-later
"""However a host set comes to be empty: the exit code is not 0, and nothing was done.

Run by full name and with no configuration, so that only the playbooks themselves guard against it.
"""

from __future__ import annotations

import pytest
from conftest import FLEET

NAMES = ["install", "patch", "revert", "status", "uninstall"]
PATCH = "wfpatch.fleet.patch"


def refused(run, guarded=True):
    assert run.code != 0
    assert run.changed == {}
    if guarded:
        assert "empty_host_set" in run.output
    assert "no hosts matched" not in run.output


@pytest.mark.parametrize("name", NAMES)
def test_empty_inventory(playbooks, name, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("")
    refused(playbooks.run(f"wfpatch.fleet.{name}", inventory=empty))


@pytest.mark.parametrize("name", NAMES)
def test_limit_that_matches_other_hosts(playbooks, name):
    options = ("--limit", "others")
    run = playbooks.run(f"wfpatch.fleet.{name}", *options, wfpatch_hosts="patched")
    refused(run)
    assert "with --limit others" in run.output


def test_limit_that_excludes_all(playbooks):
    refused(playbooks.run(PATCH, "--limit", "!patched", wfpatch_hosts=["patched"]))


def test_limit_that_matches_nothing(playbooks):
    # Ansible itself refuses this one.
    refused(playbooks.run(PATCH, "--limit", "nosuch"), guarded=False)


def test_inventory_that_is_not_there(playbooks, tmp_path):
    refused(playbooks.run(PATCH, inventory=tmp_path / "nosuch"))


@pytest.mark.parametrize("pattern", ["nosuch", "none", "", "patched:!here"])
def test_patterns(playbooks, pattern):
    refused(playbooks.run(PATCH, wfpatch_hosts=pattern))


def test_by_path(playbooks):
    refused(playbooks.run(str(FLEET / "playbooks" / "patch.yml"), wfpatch_hosts="nosuch"))


def test_listing_and_syntax_check(playbooks):
    assert playbooks.run(PATCH, "--syntax-check").code == 0
    assert "here" in playbooks.succeed(PATCH, "--list-hosts", "--limit", "patched").output
