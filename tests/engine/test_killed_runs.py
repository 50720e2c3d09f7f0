# SPDX-License-Identifier: GPL-3.0-or-later
"""The applier is killed anywhere in a whole run; the process goes on, the next run completes.

A run here is apply (plan, load, arm, observe, finish) and revert, under each way of arming and the
global policy. backend/steps.py counts the ptrace requests and writes of a run, all of which pass
it (test_steps.py), so the kills are at every one of them. The process checks the registers, vector
state, signal mask and alternate stack of its threads all the time (programs/register_check.c).

WFPATCH_KILL_STRIDE takes every n-th step only, from a random one on (20; the slow test 1),
WFPATCH_RANDOM_KILLS sets the number of randomly timed kills (40; the slow test 2,000). Both print
their figures.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import time
import traceback

import pytest
import sample_patch
import wfpatch.backend.kernel
from proof import backends
from proof.patching import Patching, only_way, told
from wfpatch.backend import steps
from wfpatch.discovery import find_targets
from wfpatch.live_process import open_process
from wfpatch.maps import MemoryMap
from wfpatch.tasks import list_tasks, read_status

STRIDE = int(os.environ.get("WFPATCH_KILL_STRIDE", "20"))
RANDOM_KILLS = int(os.environ.get("WFPATCH_RANDOM_KILLS", "40"))
SEED = int(os.environ.get("WFPATCH_SEED", random.SystemRandom().randrange(1 << 32)))
OLD, NEW = 41000, 42000
NEW_VERSION = "int version(void);\n__attribute__((noipa)) int version(void) { return 42000; }\n"
_STOPS = {"write memory", "ptrace SEIZE", "ptrace INTERRUPT", "ptrace DETACH"}
#: What must be among the steps: by policy where the kernel service works, which holds nobody.
REQUESTS = {
    "ptrace": _STOPS,
    "auto": {"write memory", "kernel load", "kernel arm", "kernel visit"},
    "global": {"write memory", "kernel load", "kernel arm", *_STOPS},
}
NAMED = {"vulnerable", "pending", "partial", "patched"}
#: Runs in a row that end by themselves and so say that there is no further step. Where the stride
#: is longer than what runs differ by, one says it.
PAST = 3 if STRIDE < 60 else 1
WAYS = [("byte", "auto"), ("swap", "auto"), ("hold", "auto"), ("byte", "global")]


class Killed:
    """A checked process, its patch, and runs over it that are killed."""

    def __init__(self, running, directory, path, policy):
        self.running, self.pid = running, running.pid
        self.patching = Patching(directory, running.pid)
        elf = sample_patch.build(path, NEW_VERSION, ["version"])
        self.patching.add("fix", elf, policy=policy)
        self.kills = 0
        self.states: dict[str, int] = {}

    def begin(self, what, record=None, kill_at=None):
        """A child that applies or reverts; returns its pid."""
        child = os.fork()
        if child == 0:
            try:
                steps.configure(record, kill_at)
                report = getattr(self.patching, what)("fix", timeout=60, wait=10.0)
                wanted = "patched" if what == "apply" else "vulnerable"
                os._exit(0 if (report.state, report.reason) == (wanted, None) else 3)
            except BaseException:  # noqa: BLE001 - the child must not come back into pytest
                traceback.print_exc()
            finally:
                os._exit(1)
        return child

    def end(self, child):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.kills += code == -9
        return code

    def steps_of(self, what, record):
        """The names of the steps of one run that nobody kills."""
        record.unlink(missing_ok=True)
        assert self.end(self.begin(what, record=str(record))) == 0
        return [line.split(" ", 1)[1] for line in record.read_text().splitlines()]

    def look(self):
        """What there is after a kill: healthy threads, right registers, a state with a name."""
        assert self.running.alive()
        for task in list_tasks(self.pid):
            status = read_status(task.tgid, task.tid)
            assert status["TracerPid"] == "0"
            assert status["State"][0] in "SRD", status["State"]
        rounds, interrupted, version = self.checked()
        report = self.patching.status()
        assert report.reason is None, told(report)
        assert report.state in NAMED, told(report)
        if report.state in ("patched", "vulnerable"):
            assert version == (NEW if report.state == "patched" else OLD), told(report)
        self.states[report.state] = self.states.get(report.state, 0) + 1
        return report

    def checked(self):
        words = self.running.ask("report").split()
        assert words[3] == "0", "registers, vector state, mask or stack of a thread were changed"
        return int(words[1]), int(words[5]), int(words[7])

    def complete(self, what, kill="killed run"):
        """A run that nobody kills ends as it should, whatever is there."""
        done = self.patching.patched if what == "apply" else self.patching.reverted
        # An ssh-keygen that the killed run was about to start holds its lock until it executes.
        done("fix", timeout=60, wait=10.0)
        assert self.checked()[2] == (NEW if what == "apply" else OLD), kill


@pytest.fixture
def world(program, start, tmp_path, monkeypatch):
    """world(way, policy): a process whose function can only be armed that way."""

    def begin(way, policy):
        only_way(monkeypatch, way)
        path = program("register_check")
        killed = Killed(start(path, 1, 2), tmp_path, path, policy)
        report = killed.patching.patched("fix", timeout=60)
        assert {function.arming for function in report.functions} == {way}
        killed.patching.reverted("fix", timeout=60)
        return killed

    return begin


def fresh(start, program, tmp_path, killed, policy):
    """The same with a process that no applier ever saw: loading and arming are done once only."""
    running = start(program("register_check"), 1, 2)
    return Killed(running, tmp_path / str(running.pid), program("register_check"), policy)


def at_each_step(kill, stride, steps):
    """Have kill(number) done at every ``stride``-th step; (kills, runs that ended before theirs).

    ``steps`` is about how many a run takes: the first kill is in the first half of them.

    How many steps a run takes depends on how busy the machine is (a thread that runs is visited
    again and again), so it is not counted before: PAST runs in a row that end by themselves are
    past the last step.
    """
    kills = ended = past = 0
    number = 1 + SEED % min(stride, max(1, steps // 2))
    while past < PAST:
        if kill(number):
            kills, past = kills + 1, 0
        else:
            ended, past = ended + 1, past + 1
        number += stride
    return kills, ended


def kill_at_steps(world, program, start, tmp_path, way, policy, stride):
    model = world(way, policy)
    record = tmp_path / "steps"
    first = fresh(start, program, tmp_path, model, policy)
    # On a process as shipped there are all steps; each kill of the loading needs a new process.
    taken = {"loading": first.steps_of("apply", record)}
    # Later transitions write into the region that there is.
    taken["apply"] = model.steps_of("apply", record)
    taken["revert"] = model.steps_of("revert", record)
    first.running.kill()

    def named(what, number):
        names = taken[what]
        return f"{what} {number} {names[number - 1] if number <= len(names) else ''}"

    def loading(number):
        killed = fresh(start, program, tmp_path, model, policy)
        code = killed.end(killed.begin("apply", kill_at=str(number)))
        killed.look()
        if number % 2:
            killed.complete("apply", named("loading", number))
        killed.complete("revert", named("loading", number))
        killed.complete("apply")
        for state, count in killed.states.items():
            model.states[state] = model.states.get(state, 0) + count
        killed.running.kill()
        return code == -9

    def later(what):
        other = "revert" if what == "apply" else "apply"

        def kill(number):
            code = model.end(model.begin(what, kill_at=str(number)))
            model.look()
            model.complete(what, named(what, number))
            model.complete(other)
            return code == -9

        return kill

    figures = {"loading": at_each_step(loading, stride, len(taken["loading"]))}
    figures["apply"] = at_each_step(later("apply"), stride, len(taken["apply"]))
    model.complete("apply")
    figures["revert"] = at_each_step(later("revert"), stride, len(taken["revert"]))
    kills = sum(killed for killed, _ in figures.values())
    print(
        f"seed {SEED}, {way} {policy}: {kills} kills at steps (stride {stride}; "
        + ", ".join(f"{what} {killed}" for what, (killed, _) in figures.items())
        + f"; {sum(map(len, taken.values()))} steps in runs that nobody killed), found "
        f"{model.states}; eintr {model.checked()[1]}, deaths 0, wrong registers 0"
    )
    names = {name for steps_taken in taken.values() for name in steps_taken}
    assert REQUESTS[policy if backends.NAME == "kernel" else "ptrace"] <= names
    # Every run but those at the end was killed, save a few that took fewer steps than others.
    for what, (killed, ended) in figures.items():
        assert killed > 0, what
        assert ended - PAST <= 1 + killed // 10, (what, killed, ended)


@pytest.mark.parametrize(("way", "policy"), WAYS)
def test_killed_at_steps(world, program, start, tmp_path, way, policy):
    kill_at_steps(world, program, start, tmp_path, way, policy, STRIDE)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "policy"), WAYS)
def test_killed_at_every_step(world, program, start, tmp_path, way, policy):
    kill_at_steps(world, program, start, tmp_path, way, policy, 1)


@pytest.mark.parametrize("policy", ["auto", "global"])
def test_what_an_earlier_use_left_in_a_row_is_no_tampering(world, policy):
    """Killed before a row of the transition is filled, it may lead anywhere."""
    killed = world("byte", policy)
    bundle = killed.patching.signed.store().bundle("fix")
    (target,) = find_targets(bundle.patch.object, [killed.pid])

    def leave_something():
        with open_process(backends.selected(), target) as process:
            live = process.region
            for row in live.header.free_rows:
                for cell in (live.region.plain_cell, live.region.dispatch_cell):
                    process.session.memory.write(cell(row, 0), bytes(range(8)))

    def kill(number):
        leave_something()
        code = killed.end(killed.begin("apply", kill_at=str(number)))
        killed.look()
        killed.complete("apply")
        killed.complete("revert")
        return code == -9

    kills, _ = at_each_step(kill, 2, steps=20)
    assert kills > 10
    assert len(killed.states) >= 2, killed.states


def kill_at_random(killed, number):
    choose = random.Random(SEED)
    durations = {}
    for what in ("apply", "revert"):
        begun = time.monotonic()
        assert killed.end(killed.begin(what)) == 0
        durations[what] = time.monotonic() - begun
    runs = 0
    what = "apply"
    while killed.kills < number:
        runs += 1
        child = killed.begin(what)
        time.sleep(choose.random() * durations[what])
        os.kill(child, 9)
        killed.end(child)
        killed.look()
        # An apply is completed or undone; a revert can only be completed (transition_open).
        what = choose.choice((what, "revert"))
        killed.complete(what)
        what = "revert" if what == "apply" else "apply"
        if killed.kills and (killed.kills % 50 == 0 or killed.kills >= number):
            rounds, interrupted, _ = killed.checked()
            print(
                f"seed {SEED}: {killed.kills} kills in {runs} runs, found {killed.states}; {rounds}"
                f" checked rounds, eintr {interrupted}, deaths 0, wrong registers 0",
                flush=True,
            )
    interrupted = killed.checked()[1]
    # read(2) of a pipe restarts: the EINTR that MECHANISM.md names is not one of these.
    assert interrupted == 0
    assert len(killed.states) >= 3, killed.states


@pytest.mark.parametrize(("way", "policy"), [("byte", "auto")])
def test_killed_at_random_times(world, way, policy):
    kill_at_random(world(way, policy), RANDOM_KILLS)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "policy"), WAYS)
def test_two_thousand_kills(world, way, policy):
    kill_at_random(world(way, policy), 2000 // len(WAYS))


@backends.kernel_only
def test_where_procfs_forces_nothing(world, program, start, tmp_path, monkeypatch):
    """As kernels with PROC_MEM_FORCE_PTRACE are: only what a program may write to is written."""
    killed = fresh(start, program, tmp_path, world("byte", "auto"), "auto")
    pid = killed.running.pid
    true_write = os.pwrite
    refused = []

    def pwrite(fd, data, address):
        of_memory = os.readlink(f"/proc/self/fd/{fd}").endswith("/mem")
        mapping = MemoryMap.read(pid).containing(address) if of_memory else None
        if mapping is not None and not mapping.writable:
            refused.append(address)
            raise OSError(errno.EIO, "as if by the kernel")
        return true_write(fd, data, address)

    monkeypatch.setattr(os, "pwrite", pwrite)
    killed.patching.patched("fix", timeout=60)
    killed.look()
    killed.patching.reverted("fix", timeout=60)
    killed.look()
    assert len(refused) > 3


@backends.kernel_only
def test_the_module_cannot_go_while_it_works(world, monkeypatch):
    """rmmod is tried after every request and every write of whole runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    refused = []

    class Removing:
        def run(self, name, function, arguments):
            result = function(*arguments)
            assert libc.delete_module(b"wfpatch", os.O_NONBLOCK) == -1
            refused.append((name, ctypes.get_errno()))
            return result

    killed = world("byte", "auto")
    # Before its first request a run has no session, and the module may go.
    for done in (killed.patching.patched, killed.patching.reverted):
        session = wfpatch.backend.kernel.KernelSession
        true_check = session.check

        def check(self, *arguments, true_check=true_check, **options):
            true_check(self, *arguments, **options)
            steps._counter = Removing()

        with monkeypatch.context() as patched:
            patched.setattr(session, "check", check)
            try:
                done("fix", timeout=60)
            finally:
                steps.configure(None, None)
    assert len(refused) > 20
    assert {number for _, number in refused} <= {errno.EWOULDBLOCK, errno.EBUSY}
    assert {"kernel visit", "write memory"} <= {name for name, _ in refused}
    killed.look()
