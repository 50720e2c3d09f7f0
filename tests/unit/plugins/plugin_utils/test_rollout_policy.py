# SPDX-License-Identifier: GPL-3.0-or-later
"""A rollout policy says everything that is wrong with it at once, with lines."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_policy import (
    PolicyInvalid,
    read_policy,
)

FULL = """\
---
schema: 1
name: monthly fixes
patches:
  severity: high
  released_before: 2026-02-01
waves:
  - name: canary
    hosts: [web1]
    soak: 600
  - name: tenth
    percent: 10
    gates: []
  - name: rest
soak: 60
gates:
  - name: answers
    url: http://{host}/health
    from: controller
    retries: 3
  - name: errors
    error_rate:
      command: [measure, "{wave}"]
      at_most: "0.01"
max_failures: 5%
on_failure: revert_wave
window:
  timezone: UTC
  open:
    - days: [sat]
      from: "22:00"
      to: "04:00"
stragglers_timeout: 120
accept: [partial]
opt_out:
  hosts: [db]
  services: [redis-server, "user@*"]
  users: ["1000"]
  paths: [/opt/*]
"""
LEAST = {"schema": 1, "name": "x", "patches": {"all_applicable": True}, "waves": [{"name": "all"}]}


def wrong(given):
    with pytest.raises(PolicyInvalid) as caught:
        read_policy(given)
    assert str(caught.value).startswith("rollout_policy_invalid: ")
    return caught.value.violations


def test_a_policy(tmp_path):
    path = tmp_path / "rollout.yml"
    path.write_text(FULL)
    policy = read_policy(str(path))
    assert [(wave.name, wave.hosts, wave.percent, wave.soak) for wave in policy.waves] == [
        ("canary", ("web1",), 0, 600),
        ("tenth", (), 10, 60),
        ("rest", (), 0, 60),
    ]
    assert [len(wave.gates) for wave in policy.waves] == [2, 0, 2]
    url, errors = policy.waves[0].gates
    assert (url["kind"], url["controller"], url["each_host"]) == ("url", True, True)
    assert (url["retries"], url["delay"], url["timeout"], url["statuses"]) == (3, 5, 30, [200])
    assert (errors["controller"], errors["each_host"], errors["at_most"]) == (True, False, "0.01")
    assert [policy.failures_allowed(hosts) for hosts in (10, 19, 20, 100)] == [0, 0, 1, 5]
    assert policy.accept == ("partial",)
    assert policy.opt_out_hosts == ("db",)
    assert policy.opt_outs == (
        {"kind": "service", "pattern": "redis-server.service"},
        {"kind": "service", "pattern": "user@*"},
        {"kind": "user", "pattern": "1000"},
        {"kind": "path", "pattern": "/opt/*"},
    )


def test_the_least_that_a_policy_says():
    policy = read_policy(LEAST)
    assert (policy.max_failures, policy.on_failure, policy.window) == (0, "stop", None)
    assert policy.accept == ("not_affected",)
    assert policy.opt_outs is None
    assert read_policy({**LEAST, "opt_out": {}}).opt_outs == ()


@pytest.mark.parametrize(
    ("changes", "violations"),
    [
        ({"nmae": 1}, ["nmae: is not a field of a rollout policy"]),
        ({"patches": {}}, ["patches: at least one of ids, cves, severity, all_applicable"]),
        ({"patches": {"severity": "hihg"}}, ["patches.severity: 'hihg' is not one of low,"]),
        (
            {"patches": {"ids": ["a"], "released_before": "2026-02-30"}},
            ["patches.released_before: there is no such day as 2026-02-30"],
        ),
        ({"waves": []}, ["waves: [] should be non-empty"]),
        (
            {"waves": [{"name": "a", "count": 1, "percent": 1}]},
            ["waves[0]: count and percent exclude each other"],
        ),
        (
            {"waves": [{"name": "a", "count": 1}, {"name": "a"}]},
            ["waves[1].name: a is the name of an earlier wave, too"],
        ),
        (
            {"gates": [{"name": "g", "service": "x", "url": "http://x"}]},
            ["gates[0]: exactly one of service, url, command, error_rate has to be here"],
        ),
        (
            {
                "waves": [
                    {"name": "a", "gates": [{"name": "g", "service": "x", "from": "controller"}]}
                ]
            },
            ["waves[0].gates[0].from: a service is asked for on the hosts themselves"],
        ),
        (
            {"gates": [{"name": "g", "error_rate": {"command": ["x"], "at_most": "1%"}}]},
            ["gates[0].error_rate.at_most: '1%' does not match"],
        ),
        ({"max_failures": "five"}, ["max_failures: "]),
        ({"on_failure": "panic"}, ["on_failure: 'panic' is not one of stop, revert_host"]),
        (
            {"window": {"timezone": "Mars/Olympus", "open": [{"from": "22:00", "to": "22:00"}]}},
            ["window.open[0]: from and to are the same", "window.timezone: Mars/Olympus is not"],
        ),
        ({"opt_out": {"paths": ["opt"]}}, ["opt_out.paths[0]: 'opt' does not match"]),
    ],
)
def test_what_is_wrong_is_named(changes, violations):
    found = wrong({**LEAST, **changes})
    assert len(found) == len(violations)
    for message, begin in zip(found, violations, strict=True):
        assert message.startswith(f"the variable: {begin}")


def test_lines_and_words_of_two_meanings(tmp_path):
    path = tmp_path / "rollout.yml"
    path.write_text(FULL.replace('from: "22:00"', "from: 22:00"))
    (violation,) = wrong(str(path))
    assert violation.startswith(f"{path}:31: window.open[0].from: 22:00 can be read in more than")


def test_a_policy_that_is_not_there(tmp_path):
    assert wrong(str(tmp_path / "nosuch.yml"))[0].endswith(
        "cannot be read: No such file or directory"
    )
