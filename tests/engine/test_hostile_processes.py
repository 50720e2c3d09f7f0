# SPDX-License-Identifier: GPL-3.0-or-later
"""A compromised process next to a healthy one: it spoils no report but its own.

Its region's header, name and memory are hostile. The reader's own mutations are in
test_region_header.py; here what status and verify make of it, through the command line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess

import pytest
import sample_patch
import wfpatch.verify
from proof import backends
from proof.bundles import SignedStore
from wfpatch import cli
from wfpatch.discovery import find_targets
from wfpatch.live_process import open_process
from wfpatch.maps import MemoryMap

NEW_STEP = """
int step(int number);
__attribute__((noinline)) int step(int number)
{ __asm__ volatile("" : "+r"(number)); return number + 2; }
"""
MUTATIONS = 150
SEED = int(os.environ.get("WFPATCH_SEED", random.SystemRandom().randrange(1 << 32)))
STATES = {"patched", "pending", "partial", "vulnerable", "unknown"}


class Pair:
    """Two patched processes of one program: one that will be hostile, one that is healthy."""

    def __init__(self, hostile, healthy, store):
        self.hostile, self.healthy, self.store = hostile, healthy, store

    def run(self, command="status", *words):
        pids = ("--pid", self.hostile.pid, "--pid", self.healthy.pid)
        return self.store.run(command, "fix", *pids, *words)

    def reports(self, run):
        by_pid = {process["pid"]: process for process in run.result["processes"]}
        assert sorted(by_pid) == sorted((self.hostile.pid, self.healthy.pid)), run
        return by_pid[self.hostile.pid], by_pid[self.healthy.pid]

    def write(self, address, data):
        with open(f"/proc/{self.hostile.pid}/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), data, address)

    def read(self, address, size):
        with open(f"/proc/{self.hostile.pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, address)

    def rewrite(self, change):
        """A header with a checksum that fits, changed by ``change(header)``."""
        bundle = self.store.store().bundle("fix")
        (target,) = find_targets(bundle.patch.object, [self.hostile.pid])
        with open_process(backends.selected(), target) as process:
            # Both copies: one that is not sound would only bring the older one into force.
            changed = change(process.region.header)
            process.region.write_header(changed)
            process.region.write_header(changed)


@pytest.fixture
def pair(program, start, tmp_path):
    path = program("refused")
    store = SignedStore(tmp_path)
    store.add("fix", sample_patch.build(path, NEW_STEP, ["step"]))
    made = Pair(start(path), start(path), store)
    run = made.run("apply")
    assert (run.code, run.result["state"]) == (0, "patched"), run
    return made


def facts(report):
    """What must not change; threads are counted anew each time, times are measured."""
    return {name: report[name] for name in report if name not in ("timings_us", "stops")}


def slots(header, **changes):
    return dataclasses.replace(
        header, slots=tuple(dataclasses.replace(slot, **changes) for slot in header.slots)
    )


CHANGES = {
    "entry elsewhere": lambda h: slots(h, address=0x10000),
    "entry in the kernel's half": lambda h: slots(h, address=(1 << 47) - 1),
    "landing elsewhere": lambda h: slots(h, landing=(0x20000, 14)),
    "a name of control characters": lambda h: slots(h, name="\x1b[2J\nroot[1] patched"),
    "continuation elsewhere": lambda h: slots(
        h, continuation=dataclasses.replace(h.slots[0].continuation, low=0x1000, high=0x1010)
    ),
    "a generation that is not there": lambda h: dataclasses.replace(h, generation=77),
    "text of all memory": lambda h: dataclasses.replace(
        h, loaded=tuple(dataclasses.replace(p, text=(0, (1 << 47) - 1)) for p in h.loaded)
    ),
    "another patch's name": lambda h: dataclasses.replace(
        h, loaded=tuple(dataclasses.replace(p, id="\x1b]0;x\x07") for p in h.loaded)
    ),
    "cursors at the end": lambda h: dataclasses.replace(h, text_cursor=(1 << 32), data_cursor=0),
}
ONLY_NAMES = ("a name of control characters", "another patch's name")


@pytest.mark.parametrize("name", CHANGES)
def test_a_lying_header(pair, name):
    before = facts(pair.reports(pair.run("verify"))[1])
    try:
        pair.rewrite(CHANGES[name])
    except (ValueError, OverflowError) as error:
        raise AssertionError(f"{name} cannot be written: {error}") from error
    for command in ("status", "verify"):
        run = pair.run(command)
        hostile, healthy = pair.reports(run)
        assert facts(healthy) == before
        if name in ONLY_NAMES:
            # Memory is as it must be, whatever it is called.
            assert (hostile["reason"], hostile["state"]) == (None, "patched"), hostile
            continue
        assert hostile["reason"] in ("header_corrupt", "tampered", "memory_unreadable"), hostile
        assert hostile["state"] == "unknown", hostile
        assert run.code in (1, 3, 5), run
    # By itself the healthy one verifies.
    assert pair.store.run("verify", "fix", "--pid", pair.healthy.pid).code == 0
    text = _human(pair)
    assert "\x1b" not in text and "\x07" not in text
    assert "\nroot[1]" not in text


def _human(pair):
    command = [word for word in pair.store.command("status", "fix") if word != "--json"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    return (done.stdout + done.stderr).decode()


def test_mutated_headers(pair, monkeypatch):
    """Bytes of the header changed at random: one named outcome, and the other one is unmoved."""
    before = facts(pair.reports(pair.run())[1])
    base, size = _header(pair)
    saved = pair.read(base, size)
    choose = random.Random(SEED)
    bundle = pair.store.store().bundle("fix")
    targets = {
        pid: find_targets(bundle.patch.object, [pid])[0]
        for pid in (pair.hostile.pid, pair.healthy.pid)
    }
    used = max(at for at in range(0, size, 64) if any(saved[at : at + 64])) + 64
    # No fault may hide behind the code for those that were not foreseen.
    monkeypatch.setattr(wfpatch.verify, "Crashed", None)
    for number in range(MUTATIONS):
        data = bytearray(saved[:used])
        for _ in range(choose.choice((1, 2, 40))):
            data[choose.randrange(used)] = choose.randrange(256)
        pair.write(base, bytes(data))
        report = wfpatch.verify.inspect_process(
            backends.selected(), targets[pair.hostile.pid], (bundle,)
        )
        assert report.state in STATES, f"seed {SEED}, mutation {number}"
        other = wfpatch.verify.inspect_process(
            backends.selected(), targets[pair.healthy.pid], (bundle,)
        )
        assert other.state == "patched" and other.reason is None
    pair.write(base, saved)
    assert facts(pair.reports(pair.run())[1]) == before


def _header(pair):
    for mapping in MemoryMap.read(pair.hostile.pid):
        if mapping.perms == "rw-p" and not mapping.path:
            if pair.read(mapping.start, 8) == b"WFPATCHR":
                return mapping.start, mapping.size
    raise AssertionError("no region")


def test_a_name_that_is_not_text(pair):
    """Escape sequences, a line's end and bytes that are not UTF-8 as the name of a process."""
    before = facts(pair.reports(pair.run())[1])
    assert pair.hostile.ask("name " + b"\x1b[2J\nok\xff) S 1".hex()) == "0"
    run = pair.run()
    hostile, healthy = pair.reports(run)
    assert facts(healthy) == before
    assert (hostile["state"], hostile["reason"], run.code) == ("patched", None, 0), run
    assert hostile["comm"].isprintable()
    assert hostile["comm"].startswith("\\x1b[2J\\nok"), hostile["comm"]
    text = _human(pair)
    assert all(line.isprintable() for line in text.splitlines()), text
    assert "\\x1b[2J" in text


def test_code_behind_the_back(pair):
    """New code changed in memory: told of the one, and only of it."""
    before = facts(pair.reports(pair.run())[1])
    function = pair.reports(pair.run())[0]["functions"][0]
    pair.write(function["address"], b"\xcc")
    run = pair.run("verify")
    hostile, healthy = pair.reports(run)
    assert (run.code, hostile["reason"], hostile["state"]) == (5, "tampered", "unknown")
    assert facts(healthy) == before


def test_a_fault_of_the_applier_has_a_code(pair, monkeypatch, capsys):
    """What nobody foresaw is the outcome of one process, and JSON, never a bare traceback."""
    original = wfpatch.verify.inspect

    def inspect(process, *arguments, **more):
        if process.target.pid == pair.hostile.pid:
            raise RecursionError("planted")
        return original(process, *arguments, **more)

    monkeypatch.setattr(wfpatch.verify, "inspect", inspect)
    pids = [f"--pid={p.pid}" for p in (pair.hostile, pair.healthy)]
    words = pair.store.command("status", "fix", *pids)[3:]
    assert cli.main(words) == 1
    result = json.loads(capsys.readouterr().out)
    by_pid = {process["pid"]: process for process in result["processes"]}
    assert by_pid[pair.hostile.pid]["reason"] == "applier_failed"
    assert "planted" in by_pid[pair.hostile.pid]["message"]
    assert by_pid[pair.healthy.pid]["state"] == "patched"
    monkeypatch.setattr(cli, "Host", None)
    assert cli.main(words) == 1
    assert json.loads(capsys.readouterr().out)["reason"] == "applier_failed"
