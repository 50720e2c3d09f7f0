# SPDX-License-Identifier: GPL-3.0-or-later
"""A store that cannot be written or read: nothing begins that could not be noted, what was done is
reported all the same, and going back needs no room.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess

import pytest
from watched.world import Watched, answer
from wfpatch.errors import Failed, Refused
from wfpatch.host import Options


@pytest.fixture
def world(tmp_path, start):
    """The service with its store on a small file system of its own."""
    store = tmp_path / "store"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "store", store], check=True)
    try:
        made = Watched(tmp_path)
        made.running = start(made.program)
        # What is there needs no room: the applier's lock, and the log, which is no condition.
        (store / ".lock").touch()
        yield made
    finally:
        subprocess.run(["umount", "--lazy", store], check=True)


def fill(world):
    """Leave no room; the file that takes it."""
    filler = world.signed.path / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    with (
        pytest.raises(OSError, match="No space left") as full,
        open(world.signed.path / "probe", "wb", buffering=0) as file,
    ):
        file.write(b"\0")
    assert full.value.errno == errno.ENOSPC
    (world.signed.path / "probe").unlink()
    return filler


def left(world):
    return sorted(os.listdir(world.signed.path))


def test_no_room_to_note_what_shall_be_in_force(world):
    """Nothing is begun; with room again the same command does it."""
    filler = fill(world)
    before = left(world)
    run = world.signed.run("apply", "fix-answer")
    assert (run.code, run.result["reason"], run.result["changed"]) == (1, "disk_full", False)
    assert "wanted" in run.result["message"]
    assert answer(world.running)[1] == 1
    assert left(world) == before
    filler.unlink()
    assert world.signed.run("apply", "fix-answer").code == 0
    assert answer(world.running)[1] == 2


def test_what_is_wanted_already_needs_no_room(world):
    world.want("fix-answer")
    fill(world)
    run = world.signed.run("apply", "fix-answer")
    assert (run.code, run.result["state"]) == (0, "patched"), run
    # The log is no condition, but that it has gaps is said.
    assert any("log" in warning for warning in run.result["warnings"]), run.result["warnings"]


def test_going_back_needs_no_room(world):
    """Memory is as asked for, and that the store still wants the patch is said."""
    assert world.signed.run("apply", "fix-answer").code == 0
    filler = fill(world)
    run = world.signed.run("revert", "fix-answer")
    assert (run.code, run.result["reason"], run.result["changed"]) == (1, "disk_full", True)
    (process,) = run.result["processes"]
    assert process["state"] == "vulnerable"
    assert answer(world.running)[1] == 1
    assert world.signed.store().wanted() == ("fix-answer",)
    filler.unlink()
    assert world.signed.run("revert", "fix-answer").code == 0
    assert world.signed.store().wanted() == ()


def test_it_fills_while_work_is_done(world, monkeypatch):
    """There was room to begin: what was done is reported, and what could not be noted."""
    store = world.signed.store()
    filled = []

    def without_room(_patches):
        filled.append(fill(world))

    monkeypatch.setattr(type(store), "require_room", lambda _self, patches: without_room(patches))
    result = world.host().apply(["fix-answer"], Options())
    assert filled and (result.reason, result.changed) == ("disk_full", True)
    (process,) = result.processes
    assert process.state == "patched"
    assert answer(world.running)[1] == 2
    assert store.wanted() == ()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema": 2, "patches": []}', b"\0" * 99])
def test_the_list_of_what_is_wanted_is_damaged(world, damage):
    """Nothing is begun, what is in force can be read; put right, a run goes on."""
    path = world.signed.path / "wanted.json"
    path.write_bytes(damage)
    run = world.signed.run("apply", "fix-answer")
    assert (run.code, run.result["reason"], run.result["changed"]) == (3, "store_invalid", False)
    assert str(path) in run.result["message"]
    assert answer(world.running)[1] == 1
    assert world.signed.run("status", "fix-answer").result["state"] == "vulnerable"
    assert path.read_bytes() == damage
    path.rename(path.with_name("damaged"))
    assert world.signed.run("apply", "fix-answer").code == 0
    assert answer(world.running)[1] == 2


def test_going_back_with_a_damaged_list(world):
    assert world.signed.run("apply", "fix-answer").code == 0
    (world.signed.path / "wanted.json").write_bytes(b"{")
    run = world.signed.run("revert", "fix-answer")
    assert (run.code, run.result["reason"], run.result["changed"]) == (3, "store_invalid", True)
    assert answer(world.running)[1] == 1


def test_a_store_that_is_read_only(world):
    subprocess.run(["mount", "-o", "remount,ro", world.signed.path], check=True)
    run = world.signed.run("apply", "fix-answer")
    assert (run.code, run.result["reason"]) == (3, "store_invalid"), run
    assert answer(world.running)[1] == 1
    with pytest.raises(Failed) as failed:
        world.signed.store().set_wanted(("fix-answer",))
    assert failed.value.reason == "store_invalid"


def test_a_list_that_cannot_be_read(world):
    (world.signed.path / "wanted.json").mkdir()
    with pytest.raises(Refused) as refused:
        world.signed.store().wanted()
    assert refused.value.reason == "store_invalid"
