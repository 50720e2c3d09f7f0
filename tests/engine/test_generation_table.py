# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of stores of a transition: after each one, what a thread may read is right."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from wfpatch import generation_table
from wfpatch.errors import Failed, Refused
from wfpatch.generation_table import (
    Block,
    RegionMove,
    Source,
    Store,
    Transition,
    allocate,
    differing,
    finish_held,
    finish_rows,
    initialise,
    open_slot,
    recycle,
    start,
    switch_all,
)
from wfpatch.region import Region, RegionLayout
from wfpatch.self_check_stub import Descriptor

LAYOUT = RegionLayout(table_pages=2)
REGIONS = (Region(0x5555_0000_0000, LAYOUT), Region(0x7F00_0000_0000, LAYOUT))
SLOTS = (0, 7, 503, 504, 700)


def old_code(region):
    return {slot: region.code + 0x100 * slot for slot in SLOTS}


def new_code(region, mark, slots=SLOTS):
    code = old_code(region)
    code.update({slot: region.code + 0x100_000 * mark + 0x100 * slot for slot in slots})
    return code


class Model:
    """The regions' memory, and what a thread that reads it would do."""

    def __init__(self):
        self.words = {}
        self.blocks = {}
        for region in REGIONS:
            self.apply(initialise(region))
            for slot in SLOTS:
                self.apply(open_slot(region, slot, 0x400000 + slot, old_code(region)[slot]))

    def apply(self, steps, watch=lambda: None):
        for step in steps:
            if isinstance(step, Block):
                self.blocks[step.address] = step.data
            else:
                self.words[step.address] = step.value
            watch()

    def enter(self, region, row, slot):
        """(kind, address): what a thread in ``row`` runs when it enters ``slot``."""
        target = self.words[region.dispatch_cell(row, slot)]
        return ("thunk", target) if target == region.thunk(slot) else ("code", target)

    def check(self, region, row, slot):
        """The rows that a thread in the thunk may end in, with the code it runs there."""
        at = self.words.get(region.descriptor_cell(row), 0)
        assert self.words[region.row_cell(row)] == row
        if at == 0:
            return {row: self.words[region.plain_cell(row, slot)]}
        target, held = (gs >> 12 for gs in struct.unpack_from("<QQ", self.blocks[at]))
        assert self.words[region.row_cell(target)] == target
        assert self.words[region.row_cell(held)] == held
        return {
            target: self.words[region.dispatch_cell(target, slot)],
            held: self.words[region.plain_cell(held, slot)],
        }


def transition(sources, codes, target_row=1, mark=1, slots=SLOTS):
    moves = []
    for region in REGIONS:
        descriptors = tuple(
            None
            if source.held_row is None
            else Descriptor(target_row, source.held_row, True, 1 << 20, ((1, 2),)).encode(
                region.descriptor(source.held_row), LAYOUT.cells, LAYOUT.descriptor_size
            )
            for source in sources
        )
        moves.append(
            RegionMove(
                region,
                new_code(region, mark, slots) if mark else old_code(region),
                tuple(code(region) for code in codes),
                descriptors,
            )
        )
    return Transition(tuple(sources), target_row, tuple(moves))


def simple(slots=SLOTS):
    return transition([Source((0,), 2)], [old_code], slots=slots)


def assert_consistent(model, move_of, source_rows, held_rows, target_row):
    """No thread reads a zero, a thunk without descriptor, or a mixture of generations."""
    for region in REGIONS:
        move = move_of[region.base]
        for slot in SLOTS:
            old, new = old_code(region)[slot], move.target[slot]
            for row in source_rows:
                kind, address = model.enter(region, row, slot)
                if kind == "code":
                    assert address in (old, new)
                    continue
                for end, code in model.check(region, row, slot).items():
                    if end == target_row:
                        assert code == new
                    elif end in held_rows:
                        assert code in (old, new)
                        kind, address = model.enter(region, end, slot)
                        assert kind == "thunk" or address in (old, new)
                    else:
                        assert code in (old, new)


def test_every_store_of_a_start_leaves_a_readable_table():
    model = Model()
    plan = simple()
    moves = {move.region.base: move for move in plan.moves}
    model.apply(start(plan), lambda: assert_consistent(model, moves, (0,), (2,), 1))
    for region in REGIONS:
        for slot in SLOTS:
            assert model.enter(region, 0, slot) == ("thunk", region.thunk(slot))
            assert model.enter(region, 2, slot) == ("thunk", region.thunk(slot))
            assert model.enter(region, 1, slot) == ("code", moves[region.base].target[slot])
            assert model.check(region, 0, slot) == {
                1: moves[region.base].target[slot],
                2: old_code(region)[slot],
            }


@pytest.mark.parametrize("order", ["reversed", "descriptor_late", "held_row_late"])
def test_another_order_is_noticed(order):
    """The model is itself judged: orders that the rules forbid are seen to fail."""
    model = Model()
    plan = simple()
    moves = {move.region.base: move for move in plan.moves}
    steps = start(plan)
    held = {region.plain_cell(2, slot) for region in REGIONS for slot in SLOTS}
    if order == "reversed":
        steps = steps[::-1]
    elif order == "descriptor_late":
        steps.sort(key=lambda step: isinstance(step, Block))
    else:
        for address in held:
            model.words[address] = 0
        steps.sort(key=lambda step: isinstance(step, Store) and step.address in held)
    with pytest.raises((AssertionError, KeyError)):
        model.apply(steps, lambda: assert_consistent(model, moves, (0,), (2,), 1))


def test_no_row_is_entered_before_it_is_complete_everywhere():
    steps = start(simple())
    thunks = {region.thunk(slot) for region in REGIONS for slot in SLOTS}
    target = {
        cell
        for region in REGIONS
        for slot in SLOTS
        for cell in (region.dispatch_cell(1, slot), region.plain_cell(1, slot))
    }
    source = {region.dispatch_cell(0, slot) for region in REGIONS for slot in SLOTS}
    first_thunk = min(
        index
        for index, step in enumerate(steps)
        if isinstance(step, Store) and step.address in source and step.value in thunks
    )
    last_target = max(
        index
        for index, step in enumerate(steps)
        if isinstance(step, Store) and step.address in target
    )
    assert last_target < first_thunk


def test_only_functions_that_differ_are_checked():
    plan = simple(slots=(7,))
    assert differing(plan, 0) == [[7], [7]]
    model = Model()
    model.apply(start(plan))
    for region in REGIONS:
        assert model.enter(region, 0, 0) == ("code", old_code(region)[0])
        assert model.enter(region, 0, 7) == ("thunk", region.thunk(7))


def test_finish_leads_everyone_to_the_target():
    model = Model()
    plan = simple()
    moves = {move.region.base: move for move in plan.moves}
    model.apply(start(plan))
    model.apply(finish_rows(plan), lambda: assert_consistent(model, moves, (0,), (2,), 1))
    for region in REGIONS:
        for slot in SLOTS:
            assert model.enter(region, 0, slot) == ("code", moves[region.base].target[slot])
            assert model.enter(region, 2, slot)[0] == "thunk"
            # A thread that read the thunk's address before finds no descriptor any more.
            assert model.check(region, 0, slot) == {0: moves[region.base].target[slot]}
    model.apply(finish_held(plan), lambda: assert_consistent(model, moves, (0,), (2,), 1))
    for region in REGIONS:
        for row in (0, 1, 2):
            for slot in SLOTS:
                assert model.enter(region, row, slot) == ("code", moves[region.base].target[slot])
                assert model.words[region.plain_cell(row, slot)] == moves[region.base].target[slot]


def calls(model, move, row, under, depth):
    """The versions that nested calls run, each as a tuple from the outermost in.

    A thread may always decline, since a stale word may lie on its stack; it migrates only with no
    old frame below.
    """
    if not depth:
        yield ()
        return
    region = move.region
    for slot in SLOTS:
        kind, address = model.enter(region, row, slot)
        ways = {row: address} if kind == "code" else model.check(region, row, slot)
        for end, code in ways.items():
            version = "new" if code == move.target[slot] else "old"
            if kind == "thunk" and version == "new" and end != row and "old" in under:
                continue
            for inner in calls(model, move, end, (*under, version), depth - 1):
                yield (version, *inner)


def test_a_finish_that_is_never_completed_mixes_nothing():
    """Whoever forks in the middle of a finish leaves a child whose table stays like that."""
    model = Model()
    plan = simple()
    # One object is patched at a time: the other region's code stays.
    still = dataclasses.replace(plan.moves[1], target=old_code(plan.moves[1].region))
    plan = dataclasses.replace(plan, moves=(plan.moves[0], still))
    model.apply(start(plan))
    seen = set()

    def watch():
        for versions in calls(model, plan.moves[0], 0, (), 3):
            assert len(set(versions)) == 1, versions
            seen.update(versions)

    watch()
    model.apply(finish_rows(plan), watch)
    assert seen == {"old", "new"}


def test_a_finished_row_never_spins():
    """Between any two stores of a finish, a thread in the thunk gets to code, not to the thunk."""
    model = Model()
    plan = simple()
    model.apply(start(plan))

    def watch():
        for region in REGIONS:
            for slot in SLOTS:
                for code in model.check(region, 0, slot).values():
                    assert code != region.thunk(slot)

    model.apply(finish_rows(plan), watch)


def test_older_rows_are_finished_first():
    plan = transition(
        [Source((0, 3), 2), Source((4,), 5)], [old_code, lambda region: new_code(region, 2)]
    )
    addresses = [step.address for step in finish_rows(plan)]
    order = [
        min(
            addresses.index(region.dispatch_cell(row, slot)) for region in REGIONS for slot in SLOTS
        )
        for row in (0, 3, 4)
    ]
    assert order == sorted(order)


def test_a_revert_out_of_a_partial_transition():
    """Rows 0 and 2 (held) run old code already; only row 1 has something to leave."""
    model = Model()
    model.apply(start(simple()))
    plan = transition(
        [Source((0, 2), None), Source((1,), 4)],
        [old_code, lambda region: new_code(region, 1)],
        target_row=3,
        mark=0,
    )
    model.apply(start(plan))
    for region in REGIONS:
        for slot in SLOTS:
            for row in (0, 2, 3):
                assert model.enter(region, row, slot) == ("code", old_code(region)[slot])
            assert model.enter(region, 1, slot)[0] == "thunk"
            assert model.check(region, 1, slot) == {
                3: old_code(region)[slot],
                4: new_code(region, 1)[slot],
            }
    model.apply(finish_rows(plan))
    model.apply(finish_held(plan))
    for region in REGIONS:
        for row in range(5):
            for slot in SLOTS:
                assert model.enter(region, row, slot) == ("code", old_code(region)[slot])


def test_switch_all_needs_no_thunk():
    model = Model()
    plan = transition([Source((0,), None)], [old_code])
    with pytest.raises(Failed):
        start(plan)
    model.apply(switch_all(plan))
    for region in REGIONS:
        for row in (0, 1):
            for slot in SLOTS:
                assert model.enter(region, row, slot) == ("code", new_code(region, 1)[slot])


def test_all_stores_are_aligned():
    plan = simple()
    for steps in (start(plan), finish_rows(plan), finish_held(plan)):
        assert all(step.address % 8 == 0 for step in steps)
    with pytest.raises(AssertionError):
        Store(0x1004, 1)


def test_a_misaligned_layout_would_be_seen(monkeypatch):
    monkeypatch.setattr(
        generation_table.Region, "dispatch_cell", lambda self, row, slot: self.base + 4 + slot
    )
    with pytest.raises(AssertionError):
        start(simple())


def test_a_slot_leads_to_its_continuation_in_every_row():
    model = Model()
    region = REGIONS[0]
    for row in range(LAYOUT.rows):
        assert model.enter(region, row, 504) == ("code", old_code(region)[504])
        assert model.words[region.plain_cell(row, 504)] == old_code(region)[504]
    assert model.words[region.entry_cell(504)] == 0x400000 + 504


def test_a_transition_that_uses_a_row_twice_is_refused():
    with pytest.raises(Failed) as caught:
        start(transition([Source((0,), 1)], [old_code], target_row=1))
    assert caught.value.reason == "applier_failed"


def test_slots_that_one_generation_lacks_are_refused():
    plan = simple()
    move = plan.moves[0]
    shorter = {slot: code for slot, code in move.target.items() if slot != 7}
    broken = dataclasses.replace(plan, moves=(dataclasses.replace(move, target=shorter),))
    with pytest.raises(Failed):
        start(broken)


def test_rows_are_allocated_and_recycled():
    assert allocate((1, 2, 3, 4, 5, 6, 7), 1) == (1, (2,))
    assert allocate((7, 6, 5), 2) == (5, (6, 7))
    with pytest.raises(Refused) as caught:
        allocate((7,), 1)
    assert caught.value.reason == "generation_exhausted"
    assert recycle(8, in_use=(0, 5), keep=(3,)) == (1, 2, 4, 6, 7)
    assert 0 not in recycle(8, (), ())


def test_rows_outside_the_tables_are_refused():
    with pytest.raises(Refused):
        start(transition([Source((0,), 2)], [old_code], target_row=LAYOUT.rows))
