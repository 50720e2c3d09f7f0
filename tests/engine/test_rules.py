# SPDX-License-Identifier: GPL-3.0-or-later
"""Each rule of the mechanism: a scenario that stays consistent, and mixes without the rule.

A scenario puts a thread into the one situation for which the rule was made; it runs once as the
engine is and once for each fault, which switches the rule off in this process (proof/faults.py).

rule (docs/mechanism.md)                              scenario             fault
----------------------------------------------------  -------------------  -------------------------
no frame of old code on the stack                     frame                no_old_code
row 0 changes only after observation                  frame                no_observation
the old function's .cold part counts                  cold                 no_cold_pieces
the end of a body that ends in a call counts          ends_in_call         no_end_after_call
the old continuation counts                           continuation         no_continuation
a tail jump from old code holds the thread            tail_jump            no_tail_rule
rsp is on the thread's own stack: heap, mmap          heap_stack           any_stack_up_to_tcb
... the main thread's stack does not end at %fs:0     main_thread          any_stack_up_to_tcb
... an alternate stack within the thread's            stack_within_stack   alternate_stack_ignored
... one that sigaltstack(2) does not tell of          disarming_stack      handlers_migrate
the scan's cap declines                               deep_stack           scan_up_to_cap_only
"behind a call" clears nothing in the scan            signal_frame         only_words_behind_calls
stub text and jumped-to entries count                 test_signal_at_...   no_pending_text
tail edges of all patches and of new code count       test_tail_edge_...   (tail_jump's)
only a complete unwinding clears a word               beyond_unwinding     incomplete_unwinding_...
tasks are seen after the last slot is a self-check    entered_after_seen   seen_before_open
who declines goes to the held row                     declined_after_seen  no_held_row
the held row changes only when nobody is in it        declined_after_seen  held_row_unseen
... and who enters it is counted                      declined_after_seen  held_row_uncounted
... also after the others were looked at              entered_late         cleared_for_good
tasks are all that share the memory: vfork            vfork                listed_threads_only
... CLONE_VM                                          clone_vm             listed_threads_only
tasks born meanwhile are observed                     born_meanwhile       nobody_is_born
the slots open when every function is armed           armed_in_part        only_first_function_armed
the order of the stores                               test_every_store     target_row_last
who is held and has no frame is moved                 test_who_is_held...  (fault: nobody moved)
a forked child is a process of its own                test_forked_...      (fault: no rounds)
a hold moves who is inside of the bytes               test_a_hold_moves... (fault: nobody moved)
a hold waits for words inside of the bytes            test_a_hold_waits... (fault: no scan)
a row is reused after every GS base was read          reused_row           rows_reused_unseen
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from proof import backends, call_trees, faults
from proof.backends import ptrace_only
from proof.call_trees import Trees
from proof.patching import Patching, between_sweeps, only_way, told
from proof.stepping import Stepper, send_signal
from wfpatch.backend.stops import Tracee
from wfpatch.discovery import find_targets
from wfpatch.live_process import open_process
from wfpatch.live_region import LiveRegion
from wfpatch.observe import HeldRow
from wfpatch.region import ROWS


@dataclass
class World:
    """A program with scripted threads only, and the patches for it."""

    trees: Trees
    patching: Patching
    monkeypatch: Any

    def begin(self, functions: str, version: int = 2, timeout: int = 1, **definitions: str) -> None:
        """Apply a version; threads in old code may keep it open."""
        name = f"fix-{version}"
        self.patching.add(name, call_trees.patch(version, functions, **definitions))
        self.trees.set("expect", version)
        self.patching.apply(name, timeout=timeout)

    def wake(self, thread: int = 0) -> None:
        """Let the thread go on to the end of its script, if it still can."""
        self.trees.go(thread)
        self.trees.until_idle(thread)

    def verdict(self) -> str:
        """consistent, mixed, or died."""
        deadline = time.monotonic() + 0.2
        while self.trees.running.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not self.trees.running.alive():
            return "died"
        report = self.trees.report()
        return "mixed" if report["mixed"] or report["backward"] else "consistent"


def frame(world: World) -> list[str]:
    world.trees.run(0, "fpg.k")
    world.trees.until_blocked(0)
    world.begin("fgk")
    world.wake()
    return world.trees.trace(0)


def cold(world: World) -> list[str]:
    world.trees.run(0, "fq")
    world.trees.until_blocked(0)
    world.begin("fgk")
    world.wake()
    return world.trees.trace(0)


def ends_in_call(world: World) -> list[str]:
    world.trees.run(0, "epg")
    world.trees.until_blocked(0)
    world.begin("ge")
    world.wake()
    return world.trees.trace(0)


def continuation(world: World) -> list[str]:
    """d as shipped begins with a call: once armed, that call is made from the continuation."""
    world.begin("gd")
    world.trees.set("expect", 1)
    world.patching.reverted("fix-2")
    world.trees.run(0, "dpg")
    world.trees.until_blocked(0)
    world.begin("gd", 3)
    world.wake()
    return world.trees.trace(0)


def tail_jump(world: World) -> list[str]:
    world.trees.run(0, "fpt")
    world.trees.until_blocked(0)
    world.begin("fgk")
    world.wake()
    return world.trees.trace(0)


def heap_stack(world: World) -> list[str]:
    """Thread 0's alternate stack is in the heap."""
    world.trees.run(0, "fpag")
    world.trees.until_blocked(0)
    world.begin("fgk")
    world.wake()
    return world.trees.trace(0)


def main_thread(world: World) -> list[str]:
    trees = world.trees
    trees.running.say("main fpg")  # its pipe is the standard input
    deadline = time.monotonic() + 30
    while not _reads_input(trees.pid):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    world.patching.add("fix-2", call_trees.patch(2, "fgk"))
    world.patching.apply("fix-2", timeout=1)
    trees.running.process.stdin.write(b"x")
    trees.running.process.stdin.flush()
    return trees.running.line().split()


def _reads_input(pid: int) -> bool:
    """Whether the main thread sleeps in read(0, byte, 1)."""
    with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
        fields = file.read().split()
    return fields[0] == "0" and fields[1] == "0x0" and fields[3] == "0x1"


def stack_within_stack(world: World) -> list[str]:
    """Thread 1's alternate stack is in its own stack, above its frames."""
    world.trees.run(1, "fpag")
    world.trees.until_blocked(1)
    world.begin("fgk")
    world.wake(1)
    return world.trees.trace(1)


def disarming_stack(world: World) -> list[str]:
    """Thread 2's alternate stack is there too, and sigaltstack(2) does not tell of it."""
    world.trees.run(2, "fpag")
    world.trees.until_blocked(2)
    world.begin("fgk")
    world.wake(2)
    return world.trees.trace(2)


def deep_stack(world: World) -> list[str]:
    world.trees.run(0, "fbpg")
    world.trees.until_blocked(0)
    world.begin("fgk")
    world.wake()
    return world.trees.trace(0)


def signal_frame(world: World) -> list[str]:
    """The only word of old code is the rip that a signal interrupted."""
    trees = world.trees
    trees.run(0, "fjP")
    trees.until_blocked(0)
    world.begin("fgk")
    trees.signal(0, "g")
    world.wake()
    return trees.trace(0)


def declined_after_seen(world: World) -> list[str]:
    """Thread 0 is seen quiescent, then declines, and is in old code when row 0 is finished."""
    trees = world.trees

    def decline() -> None:
        trees.run(0, "zfpg.k")
        trees.until_blocked(0)
        trees.go(1)
        trees.until_idle(1)

    trees.run(1, "fp")
    trees.until_blocked(1)
    between_sweeps(world.monkeypatch, [decline])
    world.begin("fgk")
    world.wake()
    return trees.trace(0)


def beyond_unwinding(world: World) -> list[str]:
    """Old f is beyond a frame without unwind information."""
    world.trees.run(0, "fupg")
    world.trees.until_blocked(0)
    world.begin("fgk")
    world.wake()
    return world.trees.trace(0)


def entered_after_seen(world: World) -> list[str]:
    """Thread 0 enters the set when it was seen quiescent; by then that leads to the self-check."""
    trees = world.trees

    def enter() -> None:
        trees.run(0, "fpg")
        trees.until_blocked(0)
        trees.go(1)
        trees.until_idle(1)

    trees.run(1, "fp")
    trees.until_blocked(1)
    between_sweeps(world.monkeypatch, [enter])
    world.begin("fgk", timeout=10)
    world.wake()
    return trees.trace(0)


def entered_late(world: World) -> list[str]:
    """Thread 0 is in the check routine when the source rows are finished, and then declines: by
    then the sweep has begun that believes the held row to be empty."""
    trees = world.trees
    steppers = []
    sweep = HeldRow.sweep

    def enter() -> None:
        trees.run(0, "pzfpg")
        trees.until_blocked(0)
        stepper = Stepper(trees.tid(0))
        stepper.__enter__()
        trees.go(0)
        stepper.run_to(_entries(trees.pid)["f"])
        for _ in range(40):
            stepper.step()
        steppers.append(stepper)
        trees.go(1)
        trees.until_idle(1)

    def late(self: HeldRow, exact: bool) -> bool:
        if steppers:
            assert not exact
            steppers.pop().__exit__()
            trees.until_blocked(0, 2)
        return sweep(self, exact)

    world.monkeypatch.setattr(HeldRow, "sweep", late)
    trees.run(1, "fp")
    trees.until_blocked(1)
    between_sweeps(world.monkeypatch, [enter])
    world.begin("fgk", timeout=3)
    world.wake()
    return trees.trace(0)


def vfork(world: World) -> list[str]:
    """Only vfork's child is in old code, on its parent's stack beneath the parent's frames."""
    world.patching.add("fix-2", call_trees.patch(2, "fgk"))
    world.patching.apply("fix-2", until="arm")  # vfork's parent cannot be stopped for that
    world.trees.run(0, "2fpg.")
    world.trees.until_child_blocked()
    world.begin("fgk")
    world.wake()
    return world.trees.trace(0)


def clone_vm(world: World) -> list[str]:
    trees = world.trees
    trees.child(0, "pg")
    trees.run(0, "f3.")
    trees.until_idle(0)
    trees.until_child_blocked()
    world.begin("fgk")
    trees.go(0)
    trees.until_children_ended(1)
    return trees.trace(0)


def born_meanwhile(world: World) -> list[str]:
    """The thread that was in old code makes another there before it leaves."""
    trees = world.trees

    def bear() -> None:
        trees.go(0)
        trees.until_idle(0)
        trees.until_child_blocked()

    trees.child(0, "pg")
    trees.run(0, "fp5.")
    trees.until_blocked(0)
    between_sweeps(world.monkeypatch, [bear])
    world.begin("fgk")
    trees.go(0)
    trees.until_children_ended(1)
    return trees.trace(0)


def armed_in_part(world: World) -> list[str]:
    world.begin("fgk")
    world.trees.run(0, "fg.k")
    world.trees.until_idle(0)
    return world.trees.trace(0)


def reused_row(world: World) -> list[str]:
    """Thread 0 is in new code, in the row of a generation, when that generation is left."""
    trees = world.trees
    world.monkeypatch.setattr("wfpatch.rows.ROWS_NEEDED", ROWS - 1)
    trees.run(1, "fp")
    trees.until_blocked(1)
    world.begin("fgk")
    trees.run(0, "fpg")
    trees.until_blocked(0)
    trees.go(1)
    trees.until_idle(1)
    world.patching.patched("fix-2")
    trees.set("expect", 1)
    world.patching.revert("fix-2", timeout=1)
    world.wake()
    return trees.trace(0)


Scenario = Callable[[World], list[str]]
#: scenario, what must be seen, the faults that it must notice
SCENARIOS: tuple[tuple[Scenario, str, tuple[faults.Fault, ...]], ...] = (
    (frame, "f1 g1 k1", (faults.no_old_code, faults.no_observation)),
    (cold, "f1 g1", (faults.no_cold_pieces,)),
    (ends_in_call, "e1 g1", (faults.no_end_after_call,)),
    (continuation, "d1 g1", (faults.no_continuation,)),
    (tail_jump, "f1 g1", (faults.no_tail_rule,)),
    (heap_stack, "f1 g1", (faults.any_stack_up_to_tcb,)),
    (main_thread, "f1 g1", (faults.any_stack_up_to_tcb,)),
    (stack_within_stack, "f1 g1", (faults.alternate_stack_ignored,)),
    (disarming_stack, "f1 g1", (faults.handlers_migrate,)),
    (deep_stack, "f1 g1", (faults.scan_up_to_cap_only,)),
    (signal_frame, "f1 g1", (faults.only_words_behind_calls,)),
    (beyond_unwinding, "f1 g1", (faults.incomplete_unwinding_clears,)),
    (entered_after_seen, "f2 g2", (faults.seen_before_open,)),
    (
        declined_after_seen,
        "f1 g1 k1",
        (faults.no_held_row, faults.held_row_unseen, faults.held_row_uncounted),
    ),
    (entered_late, "f1 g1", (faults.cleared_for_good,)),
    (vfork, "f1 g1", (faults.listed_threads_only,)),
    (clone_vm, "f1 g1", (faults.listed_threads_only,)),
    (born_meanwhile, "f1 g1", (faults.nobody_is_born,)),
    (armed_in_part, "f2 g2 k2", (faults.only_first_function_armed,)),
    (reused_row, "f2 g2", (faults.rows_reused_unseen,)),
)
WITH_FAULT = [(scenario, fault) for scenario, _, known in SCENARIOS for fault in known]


@pytest.fixture
def world(start, tmp_path, monkeypatch):
    running = start(call_trees.program(), 0, 4, "fgk")
    return World(Trees(running), Patching(tmp_path, running.pid), monkeypatch)


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [(scenario, expected) for scenario, expected, _ in SCENARIOS],
    ids=[scenario.__name__ for scenario, _, _ in SCENARIOS],
)
def test_rule_holds(world, scenario, expected):
    trace = scenario(world)
    assert world.verdict() == "consistent", (trace, world.trees.report())
    assert trace == expected.split()


@pytest.mark.parametrize(
    ("scenario", "fault"),
    WITH_FAULT,
    ids=[f"{scenario.__name__}-{fault.__name__}" for scenario, fault in WITH_FAULT],
)
def test_mixed_without_rule(world, scenario, fault):
    fault(world.monkeypatch)
    # the program may be dead, or no longer where the scenario wants it: the verdict tells
    with contextlib.suppress(AssertionError, BrokenPipeError, ValueError):
        scenario(world)
    world.monkeypatch.undo()
    assert world.verdict() in ("mixed", "died")


# Rules with tests of another shape


def test_tail_edge_found_by_a_later_patch(start, tmp_path):
    """A first patch replaces g alone; the second one f as well, which as shipped jumps to g.

    f is version 1 and g version 2 until then, so only g's version tells; f has to stay with g 2.
    """
    running = start(call_trees.program(), 0, 1, "g")
    trees, patching = Trees(running), Patching(tmp_path, running.pid)
    patching.add("fix-2", call_trees.patch(2, "g"))
    patching.add("fix-3", call_trees.patch(3, "fg"))
    patching.patched("fix-2")
    trees.run(0, "fpt")
    trees.until_blocked(0)
    report = patching.apply("fix-3", timeout=1)
    assert report.state == "partial", told(report)
    trees.go(0)
    trees.until_idle(0)
    assert trees.trace(0) == ["f1", "g2"]
    patching.patched("fix-3")


def test_tail_edge_of_new_code(world):
    """k as shipped leaves by no jump, its next version does: that counts on the way back."""
    trees, patching = world.trees, world.patching
    patching.add("fix-2", call_trees.patch(2, "gk", k="k_WITH_TAIL"))
    trees.set("expect", 2)
    patching.patched("fix-2")
    trees.run(0, "kpt")
    trees.until_blocked(0)
    trees.set("expect", 1)
    assert patching.revert("fix-2", timeout=1).state != "vulnerable"
    trees.go(0)
    trees.until_idle(0)
    assert trees.trace(0) == ["k2", "g2"]
    trees.assert_consistent()
    patching.reverted("fix-2")


def test_unwinding_stops_where_no_table_is(world):
    """Frames beyond code without unwind information may be old: the thread stays a straggler."""
    trees = world.trees
    trees.run(0, "fupg")
    trees.until_blocked(0)
    world.patching.add("fix-2", call_trees.patch(2, "fgk"))
    trees.set("expect", 2)
    report = world.patching.apply("fix-2", timeout=2)
    assert report.state == "partial", told(report)
    assert [(s.tid, s.function) for s in report.threads.stragglers] == [(trees.tid(0), "f")]
    world.wake()
    assert trees.trace(0) == ["f1", "g1"]
    world.patching.patched("fix-2")


def test_stale_words_are_cleared_by_unwinding(world):
    """A thread asleep with words of old code on its stack, but no frame, is no straggler."""
    trees = world.trees
    trees.run(0, "zpfg")
    trees.until_blocked(0)
    world.patching.add("fix-2", call_trees.patch(2, "fgk"))
    trees.set("expect", 2)
    report = world.patching.patched("fix-2", timeout=10)
    assert report.threads.stragglers == ()
    world.wake()
    assert trees.trace(0) == ["f2", "g2"]
    trees.assert_consistent()


@pytest.mark.parametrize("cleared", [True, False], ids=["moved", "nobody moved"])
def test_who_is_held_is_cleared_by_unwinding(world, cleared):
    """Asleep in the held row with words of old code on its stack, but no frame: it is moved."""
    trees = world.trees

    def decline() -> None:
        trees.run(0, "zf.p")
        trees.until_blocked(0)
        trees.go(1)
        trees.until_idle(1)

    if not cleared:
        world.monkeypatch.setattr("wfpatch.thread_stack.Threads.unwind", lambda *_: None)
    trees.run(1, "fp")
    trees.until_blocked(1)
    between_sweeps(world.monkeypatch, [decline])
    world.begin("fgk", timeout=10 if cleared else 1)
    report = world.patching.status()
    assert report.state == ("patched" if cleared else "partial"), told(report)
    world.wake()
    trees.run(0, "fg")
    trees.until_idle(0)
    assert trees.trace(0) == ["f1", "f2", "g2"]
    trees.assert_consistent()


def _overwrite_stale_words(trees: Trees, word: int) -> None:
    """Let all words in z's frame of thread 0 be that one."""
    with open(f"/proc/{trees.tid(0)}/syscall", encoding="ascii") as file:
        stack = int(file.read().split()[7], 16)
    entries = _entries(trees.pid)
    stale = {entries["f" if i & 1 else "g"] + (i & ~1) * 2 for i in range(16)}
    written = 0
    with open(f"/proc/{trees.pid}/mem", "r+b", buffering=0) as memory:
        data = os.pread(memory.fileno(), 4096, stack)
        for at in range(0, len(data), 8):
            if int.from_bytes(data[at : at + 8], "little") in stale:
                written += os.pwrite(memory.fileno(), word.to_bytes(8, "little"), stack + at)
    assert written >= 16 * 8


@pytest.mark.parametrize("cleared", [True, False], ids=["unwound", "nobody unwound"])
def test_stale_words_of_stub_text_are_cleared_by_unwinding(world, cleared):
    """A frame that never wrote all of itself may hold what the check routine's call left there."""
    trees, patching = world.trees, world.patching
    trees.run(0, "zp.p.fg")
    trees.until_blocked(0)
    patching.add("fix-2", call_trees.patch(2, "fgk"))
    patching.apply("fix-2", until="arm")
    bundle = patching.signed.store().bundle("fix-2")
    (target,) = find_targets(bundle.patch.object, [trees.pid])
    with open_process(backends.selected(), target) as process:
        _overwrite_stale_words(trees, process.region.region.stub_text[0] + 64)
    if not cleared:
        world.monkeypatch.setattr("wfpatch.thread_stack.Threads.unwind", lambda *_: None)
    trees.set("expect", 2)
    report = patching.apply("fix-2", timeout=10 if cleared else 1)
    assert report.state == ("patched" if cleared else "partial"), told(report)
    # Rows become free in spite of it, too.
    world.monkeypatch.setattr("wfpatch.rows.ROWS_NEEDED", ROWS)
    if cleared:
        trees.set("expect", 1)
        patching.reverted("fix-2")
        trees.set("expect", 2)
        patching.patched("fix-2")
        world.monkeypatch.setattr("wfpatch.rows.TIMEOUT", 1.0)
        world.monkeypatch.setattr("wfpatch.thread_stack.Threads.unwind", lambda *_: None)
        assert patching.revert("fix-2").reason == "generation_exhausted"
    trees.go(0)
    trees.until_blocked(0, 2)
    trees.assert_consistent()


@pytest.mark.parametrize("known", [True, False], ids=["unwound", "unknown"])
def test_a_displaced_call_is_unwound_through(world, known):
    """The caller of the frames within is the old continuation: a real call, outside of d."""
    trees = world.trees
    if not known:
        world.monkeypatch.setattr("wfpatch.thread_stack.copies_of", lambda _: [])
    world.patching.add("fix-2", call_trees.patch(2, "d"))
    world.patching.patched("fix-2")
    world.patching.reverted("fix-2")
    trees.run(0, "zdp.")
    trees.until_blocked(0)
    trees.set("expect", 3)
    world.patching.add("fix-3", call_trees.patch(3, "fgk"))
    report = world.patching.apply("fix-3", timeout=10 if known else 1)
    assert report.state == ("patched" if known else "partial"), told(report)
    world.wake()
    world.patching.patched("fix-3")
    trees.assert_consistent()


def _forked_in_the_middle(start: Any, directory: Path, monkeypatch: Any) -> tuple[Trees, Any, int]:
    """Thread 0 forks while thread 1, which is in old code, keeps the transition open.

    The build is one of its own: all processes that map it are patched.
    """
    built = call_trees.program("-Wl,--build-id=0x666f726b65646368696c64")
    trees = Trees(start(built, 0, 2, "fgk"))
    patching = Patching(directory, trees.pid)
    patching.add("fix-2", call_trees.patch_of(built, 2, "fgk"))

    def fork() -> None:
        trees.run(0, "1pfg.k")
        trees.until_child_blocked()

    trees.run(1, "fp")
    trees.until_blocked(1)
    between_sweeps(monkeypatch, [fork])
    trees.set("expect", 2)
    result = patching.everywhere("fix-2", timeout=3)
    return trees, result, trees.report()["last_child"]


def test_forked_in_the_middle(start, tmp_path, monkeypatch):
    """A child inherits row and stack, and is a process of its own: listed, finished, reported."""
    trees, result, child = _forked_in_the_middle(start, tmp_path, monkeypatch)
    assert {(p.pid, p.state) for p in result.processes} == {
        (trees.pid, "partial"),
        (child, "patched"),
    }, [told(p) for p in result.processes]
    for thread in (0, 0, 1):  # thread 0 and its only copy share a pipe
        trees.go(thread)
    trees.until_children_ended(1)
    for thread in (0, 1):
        trees.until_idle(thread)
    assert trees.trace(0) == ["f2", "g2", "k2"]
    assert trees.assert_consistent()["forks_mixed"] == 0


def test_forked_in_the_middle_without_looking_again(start, tmp_path, monkeypatch):
    faults.children_of_the_process_ignored(monkeypatch)
    trees, result, child = _forked_in_the_middle(start, tmp_path, monkeypatch)
    assert child not in {process.pid for process in result.processes}


def _inside_the_bytes(world: World, then: Callable[[], None]) -> tuple[int, int]:
    """Load a patch whose entries go by a hold; stop thread 0 behind f's first instruction.

    Returns f's entry and where the thread is. ``then`` is done while it is halted there.
    """
    trees = world.trees
    only_way(world.monkeypatch, "hold")
    world.patching.add("fix-2", call_trees.patch(2, "fgk"))
    world.patching.apply("fix-2", until="load")
    trees.run(0, "pf")
    trees.until_blocked(0)
    entry = _entries(trees.pid)["f"]
    with Stepper(trees.tid(0)) as stepper:
        trees.go(0)
        stepper.run_to(entry)
        at = stepper.step()
        then()
    assert entry < at < entry + 5
    return entry, at


def _place(tid: int) -> int:
    """Where a stopped thread is."""
    deadline = time.monotonic() + 10
    while True:
        with open(f"/proc/{tid}/stat", encoding="ascii") as file:
            state = file.read().rpartition(")")[2].split()[0]
        with open(f"/proc/{tid}/syscall", encoding="ascii") as file:
            fields = file.read().split()
        if state == "T" and len(fields) == 3:
            return int(fields[2], 16)
        assert time.monotonic() < deadline, (state, fields)
        time.sleep(0.002)


@ptrace_only
@pytest.mark.parametrize("fault", [False, True], ids=["moved", "nobody moved"])
def test_a_hold_moves_who_is_inside_of_the_bytes(world, fault):
    """A thread that SIGSTOP halted between the instructions to be displaced goes on behind them."""
    trees = world.trees
    tid = trees.tid(0)
    entry, at = _inside_the_bytes(world, lambda: send_signal(trees.pid, tid, signal.SIGSTOP))
    assert _place(tid) == at
    if fault:
        world.monkeypatch.setattr(Tracee, "set_registers", lambda _: None)
    report = world.patching.apply("fix-2", until="arm")
    assert report.reason is None, told(report)
    where = _place(tid)
    if fault:
        assert where == at, "it would resume within the jump"
        return
    assert not entry <= where < entry + 5
    trees.running.kill(signal.SIGCONT)
    trees.until_idle(0)
    assert trees.trace(0) == ["f1"]
    trees.set("expect", 2)
    world.patching.patched("fix-2")
    trees.run(0, "fg")
    trees.until_idle(0)
    assert trees.trace(0) == ["f2", "g2"]
    trees.assert_consistent()


@ptrace_only
def test_a_hold_waits_for_words_inside_of_the_bytes(world):
    """A handler interrupted the thread there: it will return there, so the hold is put off."""
    trees = world.trees
    trees.handler(0, "p")
    tid = trees.tid(0)
    entry, at = _inside_the_bytes(world, lambda: send_signal(trees.pid, tid, signal.SIGUSR1))
    trees.until_blocked(0, 2)
    report = world.patching.apply("fix-2", until="arm")
    assert report.reason == "hold_timeout"
    assert f"thread {tid} will return into the bytes" in report.message
    trees.go(0)
    trees.until_idle(0)
    assert trees.trace(0) == ["f1"]
    trees.set("expect", 2)
    world.patching.patched("fix-2")
    trees.assert_consistent()


@ptrace_only
def test_a_hold_without_a_look_at_the_stacks(world):
    trees = world.trees
    trees.handler(0, "p")
    tid = trees.tid(0)
    _inside_the_bytes(world, lambda: send_signal(trees.pid, tid, signal.SIGUSR1))
    trees.until_blocked(0, 2)
    world.monkeypatch.setattr("wfpatch.arm.words_inside", lambda *_: False)
    report = world.patching.apply("fix-2", until="arm")
    assert report.reason is None, "the thread returns into the jump that lies there now"


def _stub_journey(world: World, scripts: list[str], handler: str) -> None:
    """Open a transition with all threads waiting in their scripts; then let each go on, and
    interrupt the n-th by a signal before the n-th instruction from the armed entry on.

    A script ends in what leads to the entry: t, a jump to g, or k, a call of k.
    """
    trees, pid = world.trees, world.trees.pid
    for thread, script in enumerate(scripts):
        trees.run(thread, script)
        trees.until_blocked(thread)
        trees.handler(thread, handler)
    world.begin("fgk")
    entries = _entries(pid)
    for thread, script in enumerate(scripts):
        with Stepper(trees.tid(thread)) as stepper:
            entry = entries["g" if "t" in script else "k"]
            trees.go(thread)
            stepper.run_to(entry)
            for _ in range(thread):
                stepper.step()
            send_signal(pid, trees.tid(thread), signal.SIGUSR1)
        trees.until_idle(thread)


def _entries(pid: int) -> dict[str, int]:
    """Run-time addresses of the functions."""
    from elftools.elf.elffile import ELFFile

    with open(call_trees.program(), "rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab").iter_symbols()
        offsets = {symbol.name: symbol["st_value"] for symbol in symbols}
    with open(f"/proc/{pid}/maps", encoding="ascii") as file:
        own = next(line for line in file if str(call_trees.program()) in line)
    base = int(own.split("-")[0], 16)
    return {name: base + offsets[name] for name in "fgk"}


#: More than the instructions from an armed entry through the stub to the code behind it.
JOURNEY = 150


@pytest.fixture
def crowd(start, tmp_path, monkeypatch):
    running = start(call_trees.program(), 0, JOURNEY + 1, "fgk")
    return World(Trees(running), Patching(tmp_path, running.pid), monkeypatch)


def test_signal_at_every_instruction_of_a_jump(crowd):
    """Old f has jumped to g; wherever on the way the handler comes, it must not move the thread."""
    _stub_journey(crowd, ["fpjt"] * JOURNEY, "k")
    assert crowd.verdict() == "consistent", crowd.trees.report()
    for thread in range(JOURNEY):
        # a handler that came while g noted its step down may have lost its own note
        trace = crowd.trees.trace(thread)
        assert trace[0] == "f1" and "g1" in trace and {"f2", "g2"}.isdisjoint(trace), trace


def test_signal_at_every_instruction_of_a_jump_without_rule(crowd):
    faults.handlers_migrate(crowd.monkeypatch)
    faults.no_pending_text(crowd.monkeypatch)
    _stub_journey(crowd, ["fpjt"] * 60, "k")
    assert crowd.verdict() == "mixed"


def test_signal_at_every_instruction_of_a_call(crowd):
    """A thread without old frames calls k; the handler calls it too."""
    keeps_open = JOURNEY
    crowd.trees.run(keeps_open, "fp")
    crowd.trees.until_blocked(keeps_open)
    _stub_journey(crowd, ["pk"] * JOURNEY, "k.g")
    assert crowd.verdict() == "consistent", crowd.trees.report()
    for thread in range(JOURNEY):
        # the handler may have come before k's own decision, or after: all of one version
        trace = crowd.trees.trace(thread)
        assert trace and {step[0] for step in trace} <= {"k", "g"}, (thread, trace)


def _between_stores(world: World, script: str) -> None:
    """Have thread 0 run a script after every single store that the engine makes in its tables."""
    original = LiveRegion.carry_out

    def carry_out(self: LiveRegion, steps: Any) -> None:
        def watched() -> Any:
            for step in steps:
                yield step
                world.trees.run(0, script)
                world.trees.until_idle(0)

        original(self, watched())

    world.monkeypatch.setattr(LiveRegion, "carry_out", carry_out)


def _there_and_back(world: World) -> None:
    world.patching.add("fix-2", call_trees.patch(2, "fgk"))
    for _ in range(2):
        world.trees.set("expect", 2)
        world.patching.apply("fix-2", timeout=2)
        world.trees.set("expect", 1)
        world.patching.revert("fix-2", timeout=2)


def test_every_store(world):
    """Whatever has been stored so far, a thread that comes by finds one version."""
    _between_stores(world, "fg.k.hg.Ft")
    _there_and_back(world)
    assert world.verdict() == "consistent", world.trees.report()


def test_every_store_in_the_wrong_order(world):
    _between_stores(world, "fg.k.hg.Ft")
    faults.target_row_last(world.monkeypatch)
    with contextlib.suppress(AssertionError, BrokenPipeError):
        _there_and_back(world)
    assert world.verdict() in ("mixed", "died")
