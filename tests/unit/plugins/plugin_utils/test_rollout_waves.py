# SPDX-License-Identifier: GPL-3.0-or-later
"""Every host is in exactly one wave, in the policy's order."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._inventory_hosts import InventoryHosts
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_policy import (
    PolicyInvalid,
    read_policy,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_waves import make_waves

HOSTS = [f"h{number:02d}" for number in range(1, 21)]
GROUPS = {"all": HOSTS, "web": HOSTS[:10], "db": HOSTS[10:], "canaries": ["h04", "h15"]}


def waves(*described, limit=None, wanted=("all",), opt_out=()):
    policy = {
        "schema": 1,
        "name": "x",
        "patches": {"all_applicable": True},
        "waves": [{"name": f"wave {number}", **each} for number, each in enumerate(described, 1)],
    }
    if opt_out:
        policy["opt_out"] = {"hosts": list(opt_out)}
    inventory = InventoryHosts(DataLoader(), GROUPS)
    return make_waves(read_policy(policy), inventory, list(wanted), limit)


def test_canary_a_tenth_and_the_rest():
    found = waves({"hosts": ["canaries"]}, {"percent": 10}, {})
    assert [wave.hosts for wave in found.waves] == [
        ("h04", "h15"),
        ("h01", "h02"),
        tuple(host for host in HOSTS[2:] if host not in ("h04", "h15")),
    ]
    assert found.sizes == [2, 2, 16]
    assert sorted(found.hosts) == HOSTS


@pytest.mark.parametrize(
    ("described", "limit", "expected"),
    [
        # a percentage is of the wave's own hosts, and at least one of them
        ([{"percent": 1}, {"percent": 50}, {}], None, [1, 10, 9]),
        ([{"hosts": ["db"], "percent": 30}, {"hosts": ["web"], "count": 4}, {}], None, [3, 4, 13]),
        # what earlier waves took counts for a percentage, and is not taken twice
        ([{"hosts": ["db"]}, {"percent": 100}], None, [10, 10]),
        # a count that is larger than what is left
        ([{"count": 19}, {"count": 5}], None, [19, 1]),
        # a wave without hosts is none
        ([{"hosts": ["canaries"]}, {}], "web:!canaries", [9]),
        ([{"count": 1}, {"percent": 50}, {}], "h01,h02,h03,h04", [1, 2, 1]),
        # names, patterns and differences
        ([{"hosts": ["h1?", "!h15"]}, {}], None, [9, 11]),
    ],
)
def test_sizes(described, limit, expected):
    assert waves(*described, limit=limit).sizes == expected


def test_hosts_that_are_opted_out_are_in_no_wave():
    found = waves({"hosts": ["canaries"]}, {}, opt_out=["web", "!h04"])
    assert found.opted_out == tuple(host for host in HOSTS[:10] if host != "h04")
    assert found.sizes == [2, 9]
    # A limit leaves of them what it leaves of all.
    assert waves({}, limit="h01,h11", opt_out=["web"]).opted_out == ("h01",)


@pytest.mark.parametrize(
    ("described", "more", "message"),
    [
        ([{"hosts": ["nosuch"]}, {}], {}, "waves[0].hosts: "),
        ([{}], {"opt_out": ["nosuch"]}, "opt_out.hosts: "),
        ([{"count": 8}], {}, "waves: 12 of 20 hosts are in no wave (h09, h10, "),
        ([{"hosts": ["web"]}], {"limit": "h01,h20"}, "waves: 1 of 2 hosts are in no wave (h20)"),
    ],
)
def test_a_policy_that_does_not_fit_the_inventory(described, more, message):
    with pytest.raises(PolicyInvalid) as caught:
        waves(*described, **more)
    assert caught.value.violations[0].startswith(message)


@pytest.mark.parametrize("more", [{"limit": "!all"}, {"wanted": ["web:&db"]}, {"opt_out": ["all"]}])
def test_no_host_is_an_error(more):
    with pytest.raises(AnsibleError, match="empty_host_set"):
        waves({}, **more)
