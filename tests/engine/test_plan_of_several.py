# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan for several patches of one process is one report that has the functions of all."""

from __future__ import annotations

from proof import call_trees
from proof.bundles import SignedStore
from wfpatch.host import Host, Options


def test_functions_of_all_patches_are_planned(start, tmp_path):
    running = start(call_trees.program(), 1, 0, "fgk")
    store = SignedStore(tmp_path)
    store.add("fix-f", call_trees.patch(2, "f"))
    store.add("fix-gk", call_trees.patch(2, "gk"))
    result = Host(store.store()).plan(["fix-f", "fix-gk"], Options(pids=(running.pid,)))
    (process,) = result.processes
    assert result.reason is None, result.message
    assert [patch.id for patch in process.patches] == ["fix-f", "fix-gk"]
    planned = {function.name: function.arming for function in process.functions}
    assert sorted(planned) == ["f", "g", "k"]
    assert set(planned.values()) <= {"byte", "swap", "hold"}
