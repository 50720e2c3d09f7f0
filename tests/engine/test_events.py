# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command does is told while it happens, and telling it is no condition for anything."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time

import pytest
from proof import call_trees
from proof.call_trees import Trees
from proof.patching import Patching
from wfpatch import events
from wfpatch.errors import Usage

APPLIER = (sys.executable, "-m", "wfpatch")


@pytest.fixture
def world(start, tmp_path):
    """Threads that run trees all the time, and one that waits for a script in old code."""
    running = start(call_trees.program(), 3, 1, "fgk")
    trees, patching = Trees(running), Patching(tmp_path, running.pid)
    trees.run(0, "fpg.k")
    trees.until_blocked(0)
    patching.add("fix-2", call_trees.patch(2, "fgk"))
    trees.set("expect", 2)
    return trees, patching


@pytest.fixture
def name():
    """A name for events, whose file goes with the test."""
    made = secrets.token_hex(16)
    yield made
    (events.EVENTS / made).unlink(missing_ok=True)


def begin(patching, name, *options):
    """The applier at work, telling under that name."""
    store = patching.signed.store()
    return subprocess.Popen(
        [
            *(*APPLIER, "--json", "--store", store.path, "--allowed-signers", store.signers),
            *("apply", "fix-2", "--pid", str(patching.pid), "--events", name, *options),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def follow(name):
    """Somebody who looks on."""
    return subprocess.Popen([*APPLIER, "follow", name], stdout=subprocess.PIPE, text=True)


def heard(follower):
    """All events up to the end."""
    lines = follower.communicate(timeout=60)[0].splitlines()
    assert follower.returncode == 0
    return [json.loads(line) for line in lines]


def until_told(name, kind):
    """Waits until an event of that kind stands in the file."""
    limit = time.monotonic() + 60
    path = events.EVENTS / name
    while not (path.exists() and f'"event": "{kind}"' in path.read_text()):
        assert time.monotonic() < limit, f"nobody tells of {kind}"
        time.sleep(0.01)


def test_the_steps_and_who_is_in_the_way(world, name):
    """Told before the end: the thread in old code is named, and let go only then."""
    trees, patching = world
    follower = follow(name)
    applier = begin(patching, name, "--timeout", "60")
    until_told(name, "threads")
    assert applier.poll() is None
    trees.go(0)
    result = json.loads(applier.communicate(timeout=60)[0])
    assert (applier.returncode, result["state"]) == (0, "patched")
    told = heard(follower)
    kinds = [event["event"] for event in told]
    assert kinds[:4] == ["follow", "plan", "load", "arm"]
    assert kinds[-1] == "end"
    assert set(kinds[4:-1]) == {"threads"}
    own = told[1:]
    assert {(event["pid"], event["patch"]) for event in own} == {(patching.pid, "fix-2")}
    (process,) = result["processes"]
    assert told[1]["functions"] == len(process["functions"])
    assert sum(told[1]["ways"].values()) == len(process["functions"])
    waiting = told[4]
    # On a busy machine another one may not have come to the new code yet.
    assert waiting["waiting"] >= 1
    assert waiting["done"] == waiting["total"] - waiting["waiting"]
    named = {(each["tid"], each["function"]) for each in waiting["stragglers"]}
    assert (trees.tid(0), "f") in named
    end = told[-1]
    assert (end["state"], end["changed"], end["waiting"]) == ("patched", True, 0)
    assert end["longest_stop_us"] == process["timings_us"]["longest_stop"]
    trees.assert_consistent()


def test_a_reader_sees_the_end_of_a_writer_that_was_killed(world, name):
    trees, patching = world
    follower = follow(name)
    applier = begin(patching, name, "--timeout", "60")
    until_told(name, "arm")
    applier.send_signal(signal.SIGKILL)
    applier.communicate()
    assert [event["event"] for event in heard(follower)][-1] != "end"
    # Who comes late reads all of it.
    assert [event["event"] for event in heard(follow(name))][:2] == ["follow", "plan"]
    trees.go(0)
    patching.patched("fix-2")
    trees.assert_consistent()


def test_nothing_depends_on_being_told(world, name, monkeypatch, tmp_path):
    """Where no file can be made, and where it is full, the patch comes into force all the same."""
    trees, patching = world
    trees.go(0)
    monkeypatch.setattr(events, "EVENTS", tmp_path / "file" / "events")
    (tmp_path / "file").write_text("no folder\n")
    patching._host.events = events.Events(name)
    patching.patched("fix-2")
    full = events.Events()
    full._file = os.open("/dev/full", os.O_WRONLY)
    patching._host.events = full
    trees.set("expect", 1)
    patching.reverted("fix-2")
    assert full._file is None


def test_an_old_file_is_forgotten(name):
    events.Events(name)
    path = events.EVENTS / name
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.parent.stat().st_mode & 0o7777 == 0o700
    os.utime(path, (0, 0))
    other = secrets.token_hex(16)
    events.Events(other)
    assert not path.exists()
    (events.EVENTS / other).unlink()


@pytest.mark.parametrize(
    "bad", ["", "../../../etc/shadow", "a" * 15, "A" * 16, "f" * 65, "0" * 16 + "\n"]
)
def test_a_name_is_no_path(bad):
    with pytest.raises(Usage):
        events.path_of(bad)
