# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup for a play's hosts fails for every empty set."""

from __future__ import annotations

import pytest
from ansible import context
from ansible.errors import AnsibleError
from ansible.module_utils.common.collections import ImmutableDict
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader

GROUPS = {
    "all": ["h1", "h2", "h3"],
    "ungrouped": [],
    "web": ["h1", "h2"],
    "db": ["h3"],
    "empty": [],
}


@pytest.fixture
def targets(monkeypatch):
    def run(*terms, groups=None, subset=None, syntax=False):
        arguments = ImmutableDict(subset=subset, syntax=syntax)
        monkeypatch.setattr(context, "CLIARGS", arguments)
        lookup = lookup_loader.get("wfpatch.fleet.targets", loader=DataLoader(), templar=None)
        return lookup.run(list(terms), variables={"groups": GROUPS if groups is None else groups})

    return run


@pytest.mark.parametrize(
    ("terms", "subset"),
    [
        (["all"], None),
        (["web", "!h1"], None),
        (["web:&all:!h1"], None),
        ([["web", "db"]], "db"),
        (["h*"], "web"),
        (["~h[12]"], "h1,h3"),
        (["all"], "!web"),
    ],
)
def test_hosts_that_there_are(targets, terms, subset):
    flat = terms[0] if isinstance(terms[0], list) else terms
    assert targets(*terms, subset=subset) == flat


@pytest.mark.parametrize(
    ("terms", "subset", "groups"),
    [
        (["all"], None, {"all": [], "ungrouped": []}),
        (["all"], None, {}),
        (["nosuch"], None, None),
        (["empty"], None, None),
        ([""], None, None),
        ([], None, None),
        ([[]], None, None),
        (["web", "!web"], None, None),
        (["web"], "db", None),
        (["web"], "h3", None),
        (["all"], "nosuch", None),
        (["web"], "!h1,!h2", None),
    ],
)
def test_empty_sets(targets, terms, subset, groups):
    with pytest.raises(AnsibleError, match="empty_host_set"):
        targets(*terms, subset=subset, groups=groups)


def test_localhost_needs_no_inventory(targets):
    assert targets("localhost", groups={"all": [], "ungrouped": []}) == ["localhost"]


def test_limit_from_a_file(targets, tmp_path):
    retry = tmp_path / "retry"
    retry.write_text("h3\n")
    assert targets("all", subset=f"@{retry}") == ["all"]
    with pytest.raises(AnsibleError, match="empty_host_set"):
        targets("web", subset=f"@{retry}")


def test_a_syntax_check_has_no_inventory(targets):
    assert targets("all", groups={}, syntax=True) == ["all"]


def test_what_is_no_pattern(targets):
    with pytest.raises(AnsibleError, match="not a host pattern"):
        targets({"a": 1})
