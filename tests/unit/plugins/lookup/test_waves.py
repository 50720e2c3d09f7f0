# SPDX-License-Identifier: GPL-3.0-or-later
"""A play's hosts and serial out of a policy, or as they were without one."""

from __future__ import annotations

import pytest
from ansible import context
from ansible.errors import AnsibleError
from ansible.module_utils.common.collections import ImmutableDict
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader

GROUPS = {"all": ["h1", "h2", "h3", "h4"], "web": ["h3", "h4"]}
POLICY = {
    "schema": 1,
    "name": "x",
    "patches": {"all_applicable": True},
    "waves": [{"name": "canary", "hosts": ["h4"]}, {"name": "rest"}],
}


@pytest.fixture
def waves(monkeypatch):
    def run(*terms, subset=None, **options):
        arguments = ImmutableDict(subset=subset, syntax=False)
        monkeypatch.setattr(context, "CLIARGS", arguments)
        lookup = lookup_loader.get("wfpatch.fleet.waves", loader=DataLoader(), templar=None)
        return lookup.run(list(terms), variables={"groups": GROUPS}, **options)

    return run


@pytest.mark.parametrize(
    ("subset", "hosts", "sizes"),
    [(None, ["h4", "h1", "h2", "h3"], [1, 3]), ("h1,h2", ["h1", "h2"], [2])],
)
def test_with_a_policy(waves, subset, hosts, sizes):
    assert waves("all", policy=POLICY, subset=subset) == hosts
    assert waves("all", policy=POLICY, subset=subset, want="sizes") == sizes


def test_without_a_policy(waves):
    assert waves("web", "!h3", policy="") == ["web", "!h3"]
    assert waves("web", policy="", want="sizes") == [1, "25%", "100%"]
    assert waves("web", policy="", want="sizes", default="50%") == ["50%"]
    with pytest.raises(AnsibleError, match="empty_host_set"):
        waves("nosuch", policy="")
