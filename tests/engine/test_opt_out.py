# SPDX-License-Identifier: GPL-3.0-or-later
"""What is opted out is left as it is, and said; with a damaged list, nothing is patched."""

from __future__ import annotations

import json
import os

import pytest
from proof import call_trees
from proof.bundles import SignedStore
from wfpatch.errors import Refused
from wfpatch.host import Host, Options
from wfpatch.opt_out import OptOut, opted_out, unit_of


@pytest.mark.parametrize(
    ("rule", "out"),
    [
        (OptOut("host", ""), True),
        (OptOut("process", "red*"), True),
        (OptOut("process", "Red*"), False),
        (OptOut("path", "/opt/*/bin/redis"), True),
        (OptOut("path", "redis"), True),
        (OptOut("path", "/opt/redis"), False),
        (OptOut("user", str(os.geteuid())), True),
        (OptOut("user", "nobody*"), False),
        (OptOut("service", "no-such-unit-*.service"), False),
    ],
)
def test_rules(rule, out):
    found = opted_out([rule], os.getpid(), "redis-server", "/opt/x/bin/redis")
    assert (found == str(rule)) if out else found is None


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        (b"0::/system.slice/redis.service\n", "redis.service"),
        (b"0::/system.slice/redis.service/init.scope/x\n", "init.scope"),
        (
            b"12:pids:/a\n1:name=systemd:/user.slice/user-1.slice/session-2.scope\n",
            "session-2.scope",
        ),
        (b"0::/\n", ""),
    ],
)
def test_the_unit_is_the_innermost(cgroup, unit, monkeypatch):
    monkeypatch.setattr("wfpatch.opt_out.read_proc", lambda _path: cgroup)
    assert unit_of(1) == unit


def test_an_opted_out_process_is_left_as_it_is(start, tmp_path):
    running = start(call_trees.program(), 1, 0, "fgk")
    signed = SignedStore(tmp_path)
    signed.add("fix-f", call_trees.patch(2, "f"))
    host, options = Host(signed.store()), Options(pids=(running.pid,))
    comm = os.readlink(f"/proc/{running.pid}/exe").rpartition("/")[2][:15]
    file = signed.path / "opt-outs.json"
    file.write_text(json.dumps({"schema": 1, "rules": [{"kind": "process", "pattern": comm}]}))
    for run in (host.plan, host.apply, host.status):
        result = run(["fix-f"], options)
        (process,) = result.processes
        assert (process.state, process.opted_out) == ("vulnerable", f"process {comm}")
        assert (result.changed, process.generation, result.reason) == (False, 0, None)
    file.write_text('{"schema": 1, "rules": [{"kind": "moon", "pattern": "x"}]}')
    assert any("opt_outs_invalid" in text for text in host.status(["fix-f"], options).warnings)
    for run in (host.plan, host.apply):
        with pytest.raises(Refused) as refused:
            run(["fix-f"], options)
        assert refused.value.reason == "opt_outs_invalid"
    file.unlink()
    (process,) = host.apply(["fix-f"], options).processes
    assert (process.state, process.opted_out) == ("patched", None)
