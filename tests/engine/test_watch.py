# SPDX-License-Identifier: GPL-3.0-or-later
"""The watch: what is wanted comes into force in processes that start later, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time

import pytest
from programs_fixture import reap
from watched.world import Watch, Watched, answer, compiled, ended
from wfpatch.audit import log_of
from wfpatch.host import Options
from wfpatch.tasks import list_tasks, read_status


@pytest.fixture
def world(tmp_path):
    """The service with a build of its own; its patch is wanted."""
    found = Watched(tmp_path)
    found.want("fix-answer")
    return found


@pytest.fixture
def watch(world):
    """watch(*words): a running watch over the world's store, ready."""
    running = []

    def begin(*words):
        running.append(Watch(world.signed, *words))
        running[-1].until("watching")
        return running[-1]

    yield begin
    for each in running:
        ended(each)


def in_first_namespaces():
    return os.stat("/proc/self/ns/pid").st_ino == 0xEFFFFFFC


WAYS = [
    pytest.param(
        "connector",
        marks=pytest.mark.skipif(
            not in_first_namespaces(), reason="the connector does not serve a pid namespace"
        ),
    ),
    "fanotify",
    "polling",
]


@pytest.mark.parametrize("way", WAYS)
def test_a_new_process_is_patched(world, watch, start, way):
    watching = watch("--starts", way, "--sweep", 1000)
    assert watching.said("starts")[0]["starts"] == way
    running = start(world.program, 3)
    event = watching.until("patched", running.pid)
    assert event["patches"] == ["fix-answer"]
    assert answer(running) == (running.pid, 2)
    process = world.status(running.pid)
    assert (process.state, process.threads.total, process.threads.migrated) == ("patched", 4, 4)


def test_what_ran_before_is_patched(world, watch, start):
    running = start(world.program)
    assert answer(running)[1] == 1
    watch("--starts", "polling").until("patched", running.pid)
    assert answer(running)[1] == 2


def test_workers_of_a_patched_process_have_it(world, watch, start):
    """They are counted as such, and nothing is done to them."""
    watching = watch()
    running = start(world.program)
    watching.until("patched", running.pid)
    running.say("fork")
    worker, said = (int(word) for word in running.line().split())
    assert worker != running.pid and said == 2
    event = watching.until("inherited", worker)
    assert event["patches"] == ["fix-answer"]
    assert watching.said("patched", worker) == []
    process = world.status(worker)
    assert (process.state, process.generation) == ("patched", 1)


def test_a_process_that_its_starter_left_behind(world, watch, start):
    """The program that was executed forks, and ends before anybody can have a look; and nobody
    looks at all processes in the time of the test."""
    watching = watch("--sweep", 1000)
    running = start(world.program, 0, "daemon", ready=None)
    child = int(running.line().split()[1])
    assert child != running.pid
    try:
        watching.until("patched", child)
        assert answer(running) == (child, 2)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_library_that_is_loaded_later(tmp_path, watch, start):
    library = Watched(tmp_path, "library", "-shared", "-fPIC")
    library.want("fix-answer")
    loader = compiled("late_loader", tmp_path, "-ldl")
    watching = Watch(library.signed, "--starts", "polling")
    try:
        running = start(loader, library.program)
        assert answer(running)[1] == 0
        assert running.ask("load").split()[1] == "1"
        watching.until("patched", running.pid)
        assert answer(running)[1] == 2
    finally:
        ended(watching)


def test_another_build_needs_nothing(world, watch, start, tmp_path):
    """The fixed package has another build-id, whatever its file is called."""
    fixed = compiled("service", tmp_path, output="new")
    kept = tmp_path / "kept"
    shutil.copy2(world.program, kept)
    watching = watch()
    os.replace(fixed, world.program)
    new = start(world.program)
    old = start(kept)
    watching.until("patched", old.pid)
    watching.rest()
    assert (answer(new)[1], answer(old)[1]) == (1, 2)
    assert new.pid not in [each.get("pid") for each in watching.events]


def test_what_was_reverted_is_not_in_force(world, watch, start):
    first, second = start(world.program), start(world.program)
    watching = watch("--starts", "polling")
    for running in (first, second):
        watching.until("patched", running.pid)
    # In one process: it stays so, although the store wants the patch.
    world.host().revert(["fix-answer"], Options(pids=(first.pid,), wait=10))
    assert world.signed.store().wanted() == ("fix-answer",)
    os.kill(watching.pid, signal.SIGHUP)
    watching.until("reverted", first.pid)
    assert (answer(first)[1], answer(second)[1]) == (1, 2)
    # Everywhere: it is no longer wanted, for new processes either.
    world.host().revert(["fix-answer"], Options(wait=10))
    watching.until("wanted")
    third = start(world.program)
    watching.rest()
    assert [answer(each)[1] for each in (first, second, third)] == [1, 1, 1]
    assert watching.said("patched", third.pid) == []


def test_a_service_that_did_not_run_when_the_patch_came(tmp_path, start):
    """A rollout finds no process; where a watch works, the one that is started later gets it."""
    world = Watched(tmp_path)
    done = world.signed.run("apply", "fix-answer")
    assert (done.code, done.result["changed"]) == (7, False)
    watching = Watch(world.signed)
    try:
        watching.until("wanted")
        done = world.signed.run("apply", "fix-answer")
        assert (done.code, done.result["reason"]) == (7, "no_matching_process")
        assert world.signed.store().wanted() == ("fix-answer",)
        watching.until("wanted")
        running = start(world.program)
        watching.until("patched", running.pid)
        assert answer(running)[1] == 2
    finally:
        ended(watching)


def test_another_applier_is_waited_for(world, watch, start):
    watching = watch()
    with world.signed.store().lock(0):
        running = start(world.program)
        assert watching.until("busy", running.pid)["reason"] == "busy"
        assert answer(running)[1] == 1
    watching.until("patched", running.pid)
    assert answer(running)[1] == 2


def test_an_opted_out_process_is_left_alone(world, watch, start):
    rules = [{"kind": "path", "pattern": str(world.program)}]
    (world.signed.path / "opt-outs.json").write_text(json.dumps({"schema": 1, "rules": rules}))
    watching = watch()
    running = start(world.program)
    assert "path /" in watching.until("opted_out", running.pid)["message"]
    assert answer(running)[1] == 1
    (world.signed.path / "opt-outs.json").unlink()
    watching.until("patched", running.pid)
    assert answer(running)[1] == 2


def test_one_watch_per_store(world, watch):
    store = world.signed.store()
    assert not store.watched()
    first = watch()
    assert store.watched()
    second = world.signed.run("watch")
    assert (second.code, second.result["reason"]) == (3, "watch_running")
    first.process.kill()
    first.process.wait(10)
    assert not store.watched()


def test_killed_and_started_again(world, watch, start):
    first = watch()
    first.until("patched", start(world.program).pid)
    first.process.kill()
    first.process.wait(10)
    running = start(world.program)
    assert answer(running)[1] == 1
    watch().until("patched", running.pid)
    assert answer(running)[1] == 2


def test_a_killed_attempt_is_taken_up(world, watch, start):
    """A run that ended between its steps: the transition that it noted is carried on."""
    running = start(world.program)
    world.host().apply(["fix-answer"], Options(pids=(running.pid,), until="arm"))
    watch().until("patched", running.pid)
    assert answer(running)[1] == 2


@pytest.mark.parametrize("stride", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_a_watch_that_is_killed_at_a_step_of_its_attempt(world, start, monkeypatch, stride):
    """Whatever it was at, the process is healthy, and the next watch completes it."""
    at = 1 + random.randrange(stride)
    kills, left = 0, set()
    while True:
        monkeypatch.setenv("WFPATCH_KILL_AT", str(at))
        watching = Watch(world.signed)
        monkeypatch.delenv("WFPATCH_KILL_AT")
        watching.until("watching")
        running = start(world.program)
        with contextlib.suppress(AssertionError):  # the watch ended
            watching.until("patched", running.pid)
            # Nothing was left to be killed at.
            ended(watching)
            break
        assert watching.process.wait(60) == -signal.SIGKILL
        ended(watching)
        kills += 1
        for task in list_tasks(running.pid):
            assert read_status(task.tgid, task.tid)["TracerPid"] == "0", f"step {at}"
        assert answer(running)[1] in (1, 2), f"step {at}"
        left.add(world.status(running.pid).state)
        watching = Watch(world.signed)
        deadline = time.monotonic() + 60
        while world.status(running.pid).state != "patched":
            assert time.monotonic() < deadline, f"step {at}: {watching.events}"
            time.sleep(0.05)
        assert answer(running)[1] == 2, f"step {at}"
        ended(watching)
        reap(running)
        at += stride
    print(f"{kills} kills, which left {sorted(left)}")
    assert kills >= 2
    assert left <= {"vulnerable", "pending", "partial", "patched"}


def test_what_is_not_sound_is_named_and_the_rest_is_done(world, watch, start):
    other = world.signed.folder("fix-other")
    other.mkdir()
    (other / "bundle.json").write_bytes(
        world.signed.folder("fix-answer").joinpath("bundle.json").read_bytes()
    )
    world.want("fix-other", "fix-answer")
    watching = watch()
    event = watching.said("refused")[0]
    assert (event["patches"], event["reason"]) == ("fix-other", "signature_missing")
    running = start(world.program)
    watching.until("patched", running.pid)


def test_a_refusal_is_named(world, watch, start):
    """The code in memory is not what the patch was made for."""
    running = start(world.program)
    target = world.host().status(["fix-answer"], Options(pids=(running.pid,))).processes[0]
    address = target.functions[0].entry
    with open(f"/proc/{running.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(b"\x90")
    watching = watch("--once")
    event = watching.until("blocked", running.pid)
    assert event["reason"] == "old_code_mismatch"
    watching.until("ended")
    assert watching.process.wait(30) == 3


def test_a_crash_loop_waits_and_is_named(world, watch, start):
    watching = watch("--burst", 1, "--refill", 8)
    first, second = start(world.program), start(world.program)
    deferred = watching.until("deferred")
    late = second if watching.said("patched", first.pid) else first
    assert deferred["pid"] == late.pid and "too many of its kind" in deferred["message"]
    assert answer(late)[1] == 1
    watching.until("patched", late.pid)
    assert [answer(each)[1] for each in (first, second)] == [2, 2]


def restarts(world, watching, start, number):
    """Restart the service so often; seconds from each start to the patch, None where there was
    none within ten."""
    taken = []
    for _ in range(number):
        begun = time.monotonic()
        running = start(world.program, 4)
        while answer(running)[1] != 2 and time.monotonic() - begun < 10:
            time.sleep(0.005)
        taken.append(time.monotonic() - begun if answer(running)[1] == 2 else None)
        running.kill()
        running.process.wait(10)
    return taken


def judge(taken, watching):
    """The median, told; every one was patched, or is named."""
    in_order = sorted(each for each in taken if each is not None)
    median = in_order[len(in_order) // 2]
    print(
        f"{len(taken)} restarts: {len(in_order)} patched, median {1000 * median:.0f} ms, "
        f"longest {1000 * in_order[-1]:.0f} ms, {watching.processor_time():.2f} s of processor"
    )
    assert len(in_order) == len(taken)
    return median


@pytest.mark.parametrize("way", WAYS)
def test_restarts(world, watch, start, way):
    watching = watch("--starts", way)
    taken = restarts(world, watching, start, 5)
    assert judge(taken, watching) < 5


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_restart_storm(world, watch, start, way):
    """Must show 4 of the fleet: a service restarted 50 times while it is watched."""
    watching = watch("--starts", way)
    taken = restarts(world, watching, start, 50)
    assert judge(taken, watching) < 1


def test_it_costs_little_when_nothing_happens(world, watch):
    for way in ("fanotify", "polling"):
        watching = watch("--starts", way)
        before = watching.processor_time()
        time.sleep(1.5)
        used = (watching.processor_time() - before) / 1.5
        print(f"{way}: {100 * used:.1f} % of a processor, {len(os.listdir('/proc'))} entries")
        assert used < 0.25
        watching.rest()


def test_an_audit_log_that_cannot_be_written_is_said_once(world, watch, start):
    """It is nothing that is wrong in the store: no process is looked at anew for it."""
    log_of(world.signed.store().path).mkdir()
    watching = watch("--starts", "polling")
    for _ in range(3):
        running = start(world.program)
        watching.until("patched", running.pid)
    watching.until("patched", start(world.program).pid)
    watching.rest()
    (warning,) = watching.said("warning")
    assert "audit log" in warning["message"]
    assert len(watching.said("wanted")) == 1
    assert watching.said("inherited") == watching.said("refused") == []
