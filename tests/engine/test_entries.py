# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of every kind, armed every way, under callers with live values in every register.

proof/entries.py has the kinds; programs/proof_entries.c the callers, which compare each call with
one of an unpatched twin: all general registers, flags, x87, xmm to zmm, mask registers, controls.
"""

from __future__ import annotations

import json
import os

import pytest
import wfpatch.arming
import wfpatch.self_check_stub as stub
from programs_fixture import reap
from proof import backends, entries
from proof.patching import Patching, only_way, told
from wfpatch.discovery import find_targets
from wfpatch.live_process import open_process
from wfpatch.machine_code import Listing

ROUNDS = int(os.environ.get("WFPATCH_ENTRY_ROUNDS", "5"))
OLD, NEW = 1 << 1, 1 << 2
#: Kinds that a single way cannot arm, by the way (one byte always finds a place here or there).
SWAPPABLE = [kind.name for kind in entries.KINDS if kind.length >= 5]
HOLDABLE = [
    kind.name
    for kind in entries.KINDS
    if kind.name.startswith(("push", "nop", "move", "endbr", "sub_rsp", "rip_", "page_end"))
    and "return" not in kind.name
]
ALL = [kind.name for kind in entries.KINDS]
#: A lone ``ret`` can go by one byte only, and where that lands a random layout may put the heap.
LONE = {entries.symbol(kind.name) for kind in entries.KINDS if kind.length == 1 and kind.silent}
LAYOUTS = 30
NOTICED_WITHIN = 50


class Callers:
    """A running proof_entries."""

    def __init__(self, running):
        self.running = running

    def allow(self, versions):
        """The versions that may be seen from now on."""
        assert self.running.ask(f"allow {versions}") == "ok"

    def report(self):
        return json.loads(self.running.ask("report"))

    def assert_right(self):
        report = self.report()
        assert report["wrong"] == 0, report["first"]
        return report


@pytest.fixture
def callers(start, tmp_path):
    """A program whose random layout lets every kind be armed."""
    for number in range(LAYOUTS):
        running = start(entries.program(), 3)
        probe = Patching(tmp_path / f"layout{number}", running.pid)
        probe.add("probe", entries.patch(2, ALL))
        plan = probe.plan("probe")
        if plan.reason is None:
            return Callers(running), Patching(tmp_path, running.pid)
        assert plan.reason == "arming_impossible", told(plan)
        named = {name for name in map(entries.symbol, ALL) if f"{name} at " in plan.message}
        assert named and named <= LONE, told(plan)
        reap(running)
    raise AssertionError(f"none of {LAYOUTS} layouts has room where a lone ret leads to")


def _assert_version(callers, names, version):
    """From now on all threads see that version of these functions, and nothing wrong."""
    callers.allow(OLD | NEW)  # answered when every thread is past what it was doing
    before = callers.assert_right()["seen"]
    callers.allow(OLD | NEW)
    after = callers.assert_right()["seen"]
    for name in names:
        more = [after[name][v] - before[name][v] for v in (1, 2)]
        assert more[2 - version] == 0 < more[version - 1], (name, more)


def _there_and_back(callers, patching, names, rounds):
    """Patch and revert in a loop while all threads call; the last report."""
    callers.allow(OLD | NEW)
    for _ in range(rounds):
        report = patching.patched("fix")
        _assert_version(callers, names, 2)
        patching.reverted("fix")
        _assert_version(callers, names, 1)
    return report


# The judge is judged


def _clobber(monkeypatch, code, assembly):
    """Have the thunk do one instruction more, right before it leaves."""
    lines = list(stub.THUNK.lines)
    at = next(i for i, line in enumerate(lines) if line.assembly.startswith("jmp *%gs:"))
    lines[at:at] = Listing(f"  {code}   ; {assembly}").lines
    edited = object.__new__(Listing)
    edited.lines = tuple(lines)
    edited.size = sum(len(line.code) for line in lines)
    monkeypatch.setattr(stub, "THUNK", edited)


@pytest.mark.parametrize(
    ("code", "assembly", "told_as"),
    [
        ("45 31 db", "xor %r11d,%r11d", "r11"),
        ("f9", "stc", "flags"),
        ("66 48 0f 6e fc", "movq %rsp,%xmm7", "xmm"),
        ("db e3", "fninit", "x87"),
    ],
)
def test_callers_notice_a_clobber(callers, monkeypatch, code, assembly, told_as):
    program, patching = callers
    _clobber(monkeypatch, code, assembly)
    patching.add("fix", entries.patch(2, ["push", "nop3"]))
    program.allow(OLD | NEW)
    # A thread passes the thunk once in a transition, with a flag that may be set already.
    for _ in range(NOTICED_WITHIN):
        patching.patched("fix")
        patching.reverted("fix")
        report = program.report()
        if report["wrong"]:
            break
    assert report["wrong"] > 0
    assert told_as in report["first"]


def test_callers_notice_a_wrong_version(callers):
    program, patching = callers
    patching.add("fix", entries.patch(2, ["push"]))
    patching.patched("fix")
    assert "version" in program.report()["first"]


# Every kind


@pytest.mark.parametrize("policy", ["auto", "global"])
def test_all_kinds_together(callers, policy):
    program, patching = callers
    patching.add("fix", entries.patch(2, ALL), policy=policy)
    report = _there_and_back(program, patching, ALL, ROUNDS)
    assert {function.name for function in report.functions} == {entries.symbol(n) for n in ALL}
    assert {function.leads_to for function in report.functions} == {"new"}
    seen = program.report()["seen"]
    assert all(seen[name][1] and seen[name][2] for name in ALL)


@pytest.mark.parametrize(
    ("way", "names", "policy"),
    [("swap", SWAPPABLE, "auto"), ("swap", SWAPPABLE, "global"), ("hold", HOLDABLE, "auto")],
    ids=["swap-auto", "swap-global", "hold-auto"],
)
def test_one_way_only(callers, monkeypatch, way, names, policy):
    """Kinds that could go another way go this one when it is the only one allowed."""
    program, patching = callers
    only_way(monkeypatch, way)
    patching.add("fix", entries.patch(2, names), policy=policy)
    plan = patching.plan("fix")
    assert plan.reason is None, told(plan)
    report = _there_and_back(program, patching, names, ROUNDS)
    assert {function.arming for function in report.functions} == {way}


@pytest.mark.parametrize("policy", ["auto", "global"])
def test_second_instruction_evicted(callers, monkeypatch, policy):
    """Where neither padding nor the bytes behind help, the second instruction is moved away."""
    program, patching = callers
    only_way(monkeypatch, "swap")
    for way in ("_by_whole_jump", "_by_short_jump", "_by_punned_jump"):
        monkeypatch.setattr(wfpatch.arming, way, lambda *_: iter(()))
    names = []
    for name in HOLDABLE:
        patching.add(f"only-{name}", entries.patch(2, [name]))
        if patching.plan(f"only-{name}").reason is None:
            names.append(name)
    assert len(names) >= 3, names
    patching.add("fix", entries.patch(2, names), policy=policy)
    report = _there_and_back(program, patching, names, ROUNDS)
    assert {function.arming for function in report.functions} == {"swap"}
    slots = _slots(program.running.pid, patching)
    assert {slot.name for slot in slots if slot.evicted[0]} == set(map(entries.symbol, names))
    # What was evicted is read from memory too.
    patching.patched("fix")
    at, code = slots[0].evicted
    with open(f"/proc/{program.running.pid}/mem", "r+b", buffering=0) as memory:
        os.pwrite(memory.fileno(), code[:-1] + bytes([code[-1] ^ 1]), at)
        report = patching.status()
        os.pwrite(memory.fileno(), code, at)
    assert report.reason == "tampered"
    assert "landing code" in report.message
    assert patching.status().reason is None


def _slots(pid, patching):
    """What the region's header says of the functions."""
    bundle = patching.signed.store().bundle("fix")
    (target,) = find_targets(bundle.patch.object, [pid])
    with open_process(backends.selected(), target) as process:
        return process.region.header.slots


@pytest.mark.parametrize("name", ALL)
def test_kind_alone(callers, name):
    """Each kind as the only function of its patch; a short one without anything to help."""
    program, patching = callers
    patching.add("fix", entries.patch(2, [name]))
    _there_and_back(program, patching, [name], 1)


def test_signals_interrupt_the_stub(callers):
    """The callers' values survive handlers that come at any instruction."""
    program, patching = callers
    patching.add("fix", entries.patch(2, ALL))
    program.running.ask("storm 100")
    _there_and_back(program, patching, ALL, ROUNDS)
