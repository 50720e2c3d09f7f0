# SPDX-License-Identifier: GPL-3.0-or-later
"""The self-check stub, run natively on stacks of every kind."""

from __future__ import annotations

import struct

import pytest
from self_check_rig import FLAGS, HELD_ROW, NO_SUCH_WORD, TARGET_ROW, Rig
from wfpatch.errors import Refused
from wfpatch.self_check_stub import (
    CHECK_ROUTINE,
    Descriptor,
    StackBounds,
    normalise,
)

OWN_STACKS = ("main", "pthread", "setstack")
ALL_FLAGS = 0x240CD5  # CF PF AF ZF SF DF OF AC ID
CAP = 1 << 16


@pytest.fixture
def rig(program, start):
    path = program("self_check", *FLAGS)
    rig = Rig(path, start(path))
    yield rig
    rig.close()


def assert_preserved(outcome):
    assert outcome.registers == 0, f"registers changed: {outcome.registers:#x}"
    assert outcome.flags == 0, f"flags changed: {outcome.flags:#x}"
    assert outcome.vectors == 1, "vector state changed"


@pytest.mark.parametrize("fsgsbase", [True, False])
@pytest.mark.parametrize("where", OWN_STACKS)
@pytest.mark.parametrize("entry", [0, 3])
def test_a_quiescent_thread_migrates(rig, where, fsgsbase, entry):
    if fsgsbase and not rig.fsgsbase:
        pytest.skip("this processor or kernel has no FSGSBASE")
    rig.open(rig.descriptor(fsgsbase=fsgsbase))
    outcome = rig.probe(where, entry=entry)
    assert (outcome.ran, outcome.row) == ("n", TARGET_ROW)
    assert_preserved(outcome)
    counters = rig.counters()
    assert (counters.migrated, counters.held_in, counters.held_out) == (1, 0, 0)


@pytest.mark.parametrize("fsgsbase", [True, False])
@pytest.mark.parametrize("flags", [0, ALL_FLAGS, 0x400, 0x8D5, 0x40000])
@pytest.mark.parametrize("held", [False, True])
def test_registers_flags_and_vectors_survive(rig, flags, held, fsgsbase):
    if fsgsbase and not rig.fsgsbase:
        pytest.skip("this processor or kernel has no FSGSBASE")
    changes = {"ranges": ((rig.symbols["sites"], rig.symbols["old_body"]),)} if held else {}
    rig.open(rig.descriptor(fsgsbase=fsgsbase, **changes))
    outcome = rig.probe(flags=flags)
    assert outcome.ran == ("o" if held else "n")
    assert_preserved(outcome)
    assert outcome.residue == 0, "the thunk's return address is left on the stack"


@pytest.mark.parametrize("where", OWN_STACKS)
def test_a_frame_of_old_code_holds(rig, where):
    # The caller itself counts as old: its return address is the first word scanned.
    after = rig.symbols["after_direct_0"]
    rig.open(rig.descriptor(ranges=((after, after),)))
    outcome = rig.probe(where)
    assert (outcome.ran, outcome.row) == ("o", HELD_ROW)
    assert_preserved(outcome)
    counters = rig.counters()
    assert (counters.old_frame, counters.held_in, counters.migrated) == (1, 1, 0)
    assert counters.last_word == after
    assert counters.last_word_at == outcome.rsp - 8 or where != "main"


def test_a_held_thread_stays_and_then_migrates(rig):
    after = rig.symbols["after_direct_0"]
    rig.open(rig.descriptor(ranges=((after, after),)))
    assert rig.probe(row=HELD_ROW).row == HELD_ROW
    assert rig.counters().held_in == 0, "a thread that is held already did not enter"
    outcome = rig.probe(how="indirect", row=HELD_ROW)
    assert (outcome.ran, outcome.row) == ("n", TARGET_ROW)
    counters = rig.counters()
    assert (counters.held_out, counters.migrated) == (1, 0)


def test_a_thread_in_the_target_row_is_not_checked(rig):
    after = rig.symbols["after_direct_0"]
    rig.open(rig.descriptor(ranges=((after, after),)))
    outcome = rig.probe(row=TARGET_ROW)
    assert (outcome.ran, outcome.row) == ("n", TARGET_ROW)
    assert rig.counters().old_frame == 0


def test_a_row_without_descriptor_runs_its_plain_code(rig):
    rig.open(rig.descriptor())
    rig.write(rig.region.descriptor_cell(0), bytes(8))
    outcome = rig.probe()
    assert (outcome.ran, outcome.row) == ("o", 0)
    assert_preserved(outcome)


def test_nothing_to_leave_migrates_from_anywhere(rig):
    rig.open(rig.descriptor(ranges=(), stackblock=0, main_tcb=0, main_low=0, main_high=0))
    assert rig.probe("context").row == TARGET_ROW


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("heapalt", "not_own_stack"),
        ("stackalt", "alternate_stack"),
        ("context", "not_own_stack"),
    ],
)
def test_a_foreign_stack_holds(rig, where, reason):
    rig.open(rig.descriptor())
    outcome = rig.probe(where)
    assert (outcome.ran, outcome.row) == ("o", HELD_ROW)
    assert_preserved(outcome)
    assert getattr(rig.counters(), reason) == 1


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"stackblock": 0}, "pthread"),
        ({"main_tcb": 0, "main_low": 0, "main_high": 0}, "main"),
    ],
)
def test_without_its_proof_a_thread_is_held(rig, changes, where):
    rig.open(rig.descriptor(**changes))
    outcome = rig.probe(where)
    assert (outcome.ran, outcome.row) == ("o", HELD_ROW)
    assert rig.counters().not_own_stack == 1


def test_a_wrong_stackblock_offset_proves_nothing(rig):
    rig.open(rig.descriptor(stackblock=rig.stackblock + 8))
    assert rig.probe("pthread").row == HELD_ROW


class RawStack:
    """A stack of the test's own making, known to the stub by the applier's list."""

    def __init__(self, rig, size=0x2000):
        self.rig = rig
        self.low = rig.region.data
        self.high = self.low + size
        rig.write(self.low, bytes(size))

    def bounds(self, **changes):
        values = {"tcb": self.rig.main_tcb, "low": self.low, "high": self.high, **changes}
        return StackBounds(**values)

    def open(self, **changes):
        stacks = changes.pop("stacks", (self.bounds(),))
        self.rig.open(
            self.rig.descriptor(
                main_tcb=0, main_low=0, main_high=0, stackblock=0, stacks=stacks, **changes
            )
        )

    def word(self, address, value):
        self.rig.write(address, struct.pack("<Q", value))


def test_bounds_from_the_applier_are_a_proof(rig):
    stack = RawStack(rig)
    others = tuple(StackBounds(0x1000 * number, 0, 1 << 46) for number in range(1, 6))
    stack.open(stacks=(*others, stack.bounds()))
    outcome = rig.probe("raw", rsp=stack.high - 0x400)
    assert (outcome.ran, outcome.row) == ("n", TARGET_ROW)
    assert_preserved(outcome)


@pytest.mark.parametrize(
    "changes",
    [
        {"tcb": 0x1000},
        {"low": 0x7FFF_0000_0000, "high": 0x7FFF_0001_0000},
        {"high": 1},
    ],
)
def test_bounds_of_another_stack_are_none(rig, changes):
    stack = RawStack(rig)
    stack.open(stacks=(stack.bounds(**changes),))
    assert rig.probe("raw", rsp=stack.high - 0x400).row == HELD_ROW
    assert rig.counters().not_own_stack == 1


def test_the_bounds_are_half_open(rig):
    stack = RawStack(rig)
    rsp = stack.high - 0x400
    # The word that is proved to be in bounds is the caller's return address, at rsp - 8.
    stack.open(stacks=(stack.bounds(low=rsp - 8),))
    assert rig.probe("raw", rsp=rsp).row == TARGET_ROW
    stack.open(stacks=(stack.bounds(low=rsp),))
    assert rig.probe("raw", rsp=rsp).row == HELD_ROW
    stack.open(stacks=(stack.bounds(high=rsp - 8),))
    assert rig.probe("raw", rsp=rsp).row == HELD_ROW
    stack.open(stacks=(stack.bounds(high=rsp),))
    assert rig.probe("raw", rsp=rsp).row == TARGET_ROW


OLD = (0x5555_0000_1000, 0x5555_0000_1FFF)


@pytest.mark.parametrize(
    ("value", "hit"),
    [(OLD[0] - 1, False), (OLD[0], True), (OLD[0] + 7, True), (OLD[1], True), (OLD[1] + 1, False)],
)
def test_the_ends_of_a_range(rig, value, hit):
    stack = RawStack(rig)
    ranges = (OLD, (0x5555_0000_3000, 0x5555_0000_3000), (0x1000, 0x1001))
    stack.open(ranges=ranges)
    rsp = stack.high - 0x400
    stack.word(rsp + 0x80, value)
    assert rig.probe("raw", rsp=rsp).row == (HELD_ROW if hit else TARGET_ROW)
    if hit:
        assert rig.counters().last_word_at == rsp + 0x80


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 13])
def test_every_range_is_found(rig, count):
    stack = RawStack(rig)
    ranges = tuple(
        (0x5555_0000_0000 + 0x100 * n, 0x5555_0000_000F + 0x100 * n) for n in range(count)
    )
    rsp = stack.high - 0x400
    for low, high in ranges:
        for value, hit in ((low - 1, False), (low, True), (high, True), (high + 1, False)):
            stack.open(ranges=ranges)
            stack.word(rsp + 0x10, value)
            assert rig.probe("raw", rsp=rsp).row == (HELD_ROW if hit else TARGET_ROW), hex(value)


def test_the_scan_reaches_exactly_to_the_stacks_end(rig):
    stack = RawStack(rig)
    rsp = stack.high - 0x400
    for address, hit in (
        (rsp - 0x10, False),  # below the return address: not in use
        (rsp, True),
        (stack.high - 8, True),
        (stack.high, False),
    ):
        rig.write(stack.low, bytes(0x2010))
        stack.word(address, OLD[0])
        stack.open(ranges=(OLD,))
        assert rig.probe("raw", rsp=rsp).row == (HELD_ROW if hit else TARGET_ROW), hex(address)


def test_an_end_that_is_not_aligned_is_not_overrun(rig):
    stack = RawStack(rig)
    rsp = stack.high - 0x400
    stack.word(stack.high - 8, OLD[0])
    stack.open(ranges=(OLD,), stacks=(stack.bounds(high=stack.high - 1),))
    assert rig.probe("raw", rsp=rsp).row == TARGET_ROW


def test_the_cap(rig):
    stack = RawStack(rig)
    rsp = stack.high - 0x400
    stack.open(scan_cap=0x408)
    assert rig.probe("raw", rsp=rsp).row == TARGET_ROW
    stack.open(scan_cap=0x407)
    assert rig.probe("raw", rsp=rsp).row == HELD_ROW
    assert rig.counters().scan_cap_exceeded == 1


def test_a_misaligned_stack_pointer_proves_nothing(rig):
    stack = RawStack(rig)
    stack.open()
    assert rig.probe("raw", rsp=stack.high - 0x404).row == HELD_ROW
    assert rig.counters().not_own_stack == 1


@pytest.mark.parametrize(
    ("how", "entry", "row"),
    [
        ("direct", 1, TARGET_ROW),
        ("indirect", 1, HELD_ROW),
        ("tail", 1, HELD_ROW),
        ("direct", 2, HELD_ROW),
        ("indirect", 2, HELD_ROW),
        ("tail", 0, TARGET_ROW),
    ],
)
def test_the_tail_rule(rig, how, entry, row):
    rig.open(rig.descriptor())
    outcome = rig.probe(how=how, entry=entry)
    assert outcome.row == row
    assert_preserved(outcome)
    counters = rig.counters()
    assert counters.tail_call == (1 if entry == 1 and row == HELD_ROW else 0)
    assert counters.never == (1 if entry == 2 else 0)


def test_a_direct_call_of_another_function_is_no_proof(rig):
    rig.open(rig.descriptor())
    rig.write(rig.region.entry_cell(1), struct.pack("<Q", rig.symbols["entry_0"]))
    assert rig.probe(entry=1).row == HELD_ROW


def test_a_return_address_outside_the_text_is_not_looked_at(rig):
    after = rig.symbols["after_direct_1"]
    for text, row in (
        (((after - 5, after),), TARGET_ROW),
        (((after - 4, after),), HELD_ROW),
        (((after - 5, after - 1),), HELD_ROW),
        (((0x1000, 0x2000), (after - 5, after), (after + 64, after + 128)), TARGET_ROW),
        ((), HELD_ROW),
    ):
        rig.open(rig.descriptor(text=text))
        assert rig.probe(entry=1).row == row, text


def nest_everywhere(rig, how, entry, **changes):
    """Outcomes of calls that a signal handler interrupts, one for each instruction in turn."""
    low, high = rig.region.stub_text
    stack = RawStack(rig, 0x10000)
    outcomes = []
    for steps in range(400):
        stack.open(**changes)
        outcome = rig.nest(steps, stack.high - 0x40, how, entry)
        if not outcome.nested_rip:
            return outcomes
        if low <= outcome.nested_rip <= high:
            outcomes.append(outcome)
    raise AssertionError("the stub has no end")


@pytest.mark.parametrize("fsgsbase", [True, False])
@pytest.mark.parametrize(("how", "entry"), [("direct", 0), ("tail", 1)])
def test_a_signal_handler_inside_the_stub_migrates_nobody(rig, fsgsbase, how, entry):
    """The handler enters a replaced function itself, at every instruction of the stub."""
    if fsgsbase and not rig.fsgsbase:
        pytest.skip("this processor or kernel has no FSGSBASE")
    outcomes = nest_everywhere(rig, how, entry, fsgsbase=fsgsbase)
    assert len(outcomes) > 60
    assert {outcome.nested_before for outcome in outcomes} > {0}
    for outcome in outcomes:
        assert_preserved(outcome)
        if outcome.nested_before == TARGET_ROW:
            assert outcome.nested_after == TARGET_ROW
        else:
            assert (outcome.nested_ran, outcome.nested_after) == ("o", HELD_ROW)
        # The interrupted call decides for itself, as it would have alone.
        assert (outcome.ran, outcome.row) == (
            ("n", TARGET_ROW) if how == "direct" else ("o", HELD_ROW)
        )


def test_without_the_stubs_text_a_handler_would_migrate(rig):
    """The rule switched off: old f jumped to g, whose stub must hold; a handler on top of it moves
    the thread, which then runs new g with an old caller's arguments."""
    outcomes = nest_everywhere(rig, "tail", 1, ranges=((NO_SUCH_WORD, NO_SUCH_WORD),))
    assert [outcome for outcome in outcomes if outcome.ran == "n"]


def test_a_thread_without_thread_area_is_held(rig):
    if not rig.fsgsbase:
        pytest.skip("the test sets the FS base by instruction")
    for fsgsbase in (True, False):
        rig.open(rig.descriptor(fsgsbase=fsgsbase))
        outcome = rig.probe("notls")
        assert (outcome.ran, outcome.row) == ("o", HELD_ROW)
        assert_preserved(outcome)
        assert rig.counters().not_own_stack == 1


def test_a_forbidden_sigaltstack_proves_nothing(rig):
    rig.ask("forbid 131")
    rig.open(rig.descriptor())
    outcome = rig.probe()
    assert (outcome.ran, outcome.row) == ("o", HELD_ROW)
    assert rig.counters().not_own_stack == 1
    assert_preserved(outcome)


@pytest.mark.parametrize("row", [0, HELD_ROW])
def test_a_thread_that_may_not_set_its_gs_base_keeps_its_code(rig, row):
    if not rig.fsgsbase:
        pytest.skip("the test sets the GS base by instruction")
    rig.ask("forbid 158")
    rig.open(rig.descriptor(fsgsbase=False))
    outcome = rig.probe(row=row)
    # Not even the FS base can be read: no proof, and no held row.
    assert (outcome.ran, outcome.row) == ("o", row)
    assert_preserved(outcome)
    counters = rig.counters()
    assert counters.not_own_stack == 1
    assert counters.gs_refused == (1 if row == 0 else 0)


def test_intervals_are_normalised():
    assert normalise([(5, 9), (1, 2), (3, 4), (20, 19), (30, 31)]) == ((1, 9), (30, 31))


def test_a_descriptor_that_does_not_fit_is_refused():
    ranges = tuple((0x1000 * n, 0x1000 * n + 1) for n in range(1, 400))
    with pytest.raises(Refused) as caught:
        Descriptor(1, 2, True, CAP, ranges).encode(0x10000, 512, 4096)
    assert caught.value.reason == "region_too_small"


def cut_out(rig, matches) -> int:
    """Turn the check routine's conditional jumps that match into no-operations: a rule less."""
    cut = 0
    for address, line in CHECK_ROUTINE.placed(rig.region.check):
        if line.assembly.startswith("j") and matches(line.assembly):
            rig.write(address, b"\x66\x0f\x1f\x44\x00\x00"[: len(line.code)])
            cut += 1
    return cut


@pytest.mark.parametrize(
    ("jump", "where", "how", "entry", "changes"),
    [
        ("jne <alternate_stack>", "stackalt", "direct", 0, {}),
        ("ja <cap_exceeded>", "main", "direct", 0, {"scan_cap": 0}),
        ("jne <tail_call>", "main", "tail", 1, {}),
        ("jne <never>", "main", "tail", 2, {}),
    ],
)
def test_each_rule_is_what_holds(rig, jump, where, how, entry, changes):
    """With a rule cut out of the code, the thread that it held migrates: the tests above see it."""
    rig.open(rig.descriptor(**changes))
    assert rig.probe(where, how, entry).row == HELD_ROW
    assert cut_out(rig, lambda assembly: assembly == jump)
    if jump == "jne <never>":
        # Not never: what is left is the rule of direct calls.
        cut_out(rig, lambda assembly: assembly == "jne <tail_call>")
    assert rig.probe(where, how, entry).row == TARGET_ROW


def test_the_main_threads_stackblock_would_pass_for_a_proof(rig):
    """glibc's struct pthread of the main thread claims [0, end of [stack])."""
    rig.open(rig.descriptor())
    assert rig.probe("context").row == HELD_ROW
    at = next(
        index
        for index, line in enumerate(CHECK_ROUTINE.lines)
        if line.assembly == "mov (%rdi,%rcx,1),%rax"
    )
    address, line = CHECK_ROUTINE.placed(rig.region.check)[at + 2]
    assert line.assembly == "je <listed>"
    rig.write(address, b"\x66\x0f\x1f\x44\x00\x00")
    # The cap keeps the scan from running into a hole between the foreign stack and the TCB.
    rig.open(rig.descriptor(scan_cap=0))
    rig.probe("context")
    assert rig.counters().scan_cap_exceeded == 1, "the foreign stack passed for the thread's own"
