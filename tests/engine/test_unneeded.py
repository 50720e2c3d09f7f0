# SPDX-License-Identifier: GPL-3.0-or-later
"""The store loses what nobody needs, and nothing that a process needs for its revert."""

from __future__ import annotations

import json
import os

import pytest
import sample_patch
from watched.world import FIXED, Watched, answer
from wfpatch.audit import log_of
from wfpatch.host import Options
from wfpatch.unneeded import GRACE, collect


@pytest.fixture
def world(tmp_path):
    return Watched(tmp_path)


def gc(world, *words):
    """Run the command; what it removed, and what it kept with why."""
    run = world.signed.run("gc", "--grace", 0, *words)
    assert run.code == 0, run.stderr
    kept = {each["id"]: each["why"] for each in run.result["kept"]}
    return [each["id"] for each in run.result["removed"]], kept, run.result


def test_what_is_new_stays(world):
    run = world.signed.run("gc")
    assert run.result["removed"] == [] and run.result["changed"] is False
    assert f"less than {GRACE} seconds" in run.result["kept"][0]["why"]


def test_the_life_of_a_bundle(world, start):
    running = start(world.program)
    world.want("fix-answer")
    assert gc(world)[1]["fix-answer"] == "it is wanted"
    # In force in a process that somebody patched, though the store does not want it.
    world.host().apply(["fix-answer"], Options(pids=(running.pid,)))
    world.want()
    assert "has it in memory" in gc(world)[1]["fix-answer"]
    # Reverted: its code is still there, and verify compares it with the bundle.
    world.host().revert(["fix-answer"], Options(pids=(running.pid,)))
    assert answer(running)[1] == 1
    assert "has it in memory" in gc(world)[1]["fix-answer"]
    running.kill()
    running.process.wait(10)
    planned = gc(world, "--dry-run")
    assert planned[0] == ["fix-answer"] and planned[2]["changed"]
    size = sum(path.stat().st_size for path in world.signed.folder("fix-answer").iterdir())
    assert planned[2]["removed"][0]["bytes"] == size
    assert world.signed.folder("fix-answer").is_dir()
    assert gc(world)[0] == ["fix-answer"]
    assert os.listdir(world.signed.path / "bundles") == []
    assert gc(world)[2]["changed"] is False
    last = json.loads(log_of(world.signed.path).read_text().splitlines()[-1])
    assert (last["what"], last["patch"]) == ("remove", "fix-answer")


def test_what_a_wanted_one_requires_stays(world):
    elf = world.signed.folder("fix-answer").joinpath("patch.elf").read_bytes()
    world.signed.add("middle", elf, requires=["fix-answer"])
    world.signed.add("top", elf, requires=["middle"])
    world.signed.add("alone", elf)
    world.want("top")
    removed, kept, _ = gc(world)
    assert removed == ["alone"]
    assert kept["fix-answer"] == kept["middle"] == "top is wanted and requires it"


def test_what_cannot_be_told_stays(world, start, monkeypatch):
    (world.signed.folder("fix-answer") / "bundle.json").write_text("{}")
    assert "nobody can tell" in gc(world)[1]["fix-answer"]
    other = world.signed.add("other", sample_patch.build(world.program, FIXED, ["answer"]))
    running = start(world.program)
    world.host().apply([other], Options(pids=(running.pid,)))
    world.want()
    process = world.host().status([other], Options(pids=(running.pid,))).processes[0]
    assert process.generation == 1

    def refuse(*_arguments):
        from wfpatch.errors import Refused

        raise Refused("no_permission", "not for you")

    monkeypatch.setattr("wfpatch.unneeded.open_process", refuse)
    found = collect(world.signed.store(), 0, 0)
    assert not found.removed
    assert {each.id: each.why for each in found.kept}[other].endswith(
        "cannot be read: no_permission"
    )


def test_interrupted_pushes_are_cleared_away(world):
    folder = world.signed.path / "bundles" / ".new-abc"
    folder.mkdir()
    (folder / "bundle.json").write_text("{")
    world.want("fix-answer")
    assert collect(world.signed.store(), 0, GRACE).leftovers == ()
    assert gc(world, "--dry-run")[2]["leftovers"] == [".new-abc"] and folder.exists()
    assert gc(world)[2]["leftovers"] == [".new-abc"] and not folder.exists()
