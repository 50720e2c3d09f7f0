# SPDX-License-Identifier: GPL-3.0-or-later
"""The region's layout and its place in the address space."""

from __future__ import annotations

import pytest
from wfpatch.errors import Refused
from wfpatch.maps import MemoryMap
from wfpatch.region import (
    HEAP_GROWTH,
    MARGIN,
    PAGE,
    REACH,
    ROWS,
    ROWS_OF_LARGE_TABLES,
    SLOTS_PER_PAGE,
    Region,
    RegionLayout,
    candidates,
    choose_base,
    kept_clear,
    mapped_sizes,
    placeable,
    within_reach,
)

START, END = 0x5555_5555_4000, 0x5555_5570_0000
BUILD_ID = "0123456789abcdef0123456789abcdef01234567"
MAPS = f"""\
{START:x}-{END:x} r-xp 00000000 08:01 1234 /usr/bin/served
{END + 0x1000000:x}-{END + 0x2000000:x} rw-p 00000000 00:00 0 [heap]
7ffff7000000-7ffff7fff000 r-xp 00000000 08:01 99 /usr/lib/libc.so.6
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
"""


@pytest.fixture
def space():
    return MemoryMap.parse(MAPS)


@pytest.mark.parametrize(
    "layout",
    [
        RegionLayout(),
        RegionLayout(table_pages=3),
        RegionLayout.for_load(3651, 500_000, 10_000),
        RegionLayout.for_load(1, 100, 0),
    ],
)
def test_parts_follow_one_another_without_overlap(layout):
    region = Region(0x10_0000_0000, layout)
    tables = layout.rows * layout.table_pages * PAGE
    parts = [
        (region.base, layout.copy_size),
        (region.base + layout.copy_size, layout.copy_size),
        (region.base + layout.dispatch_offset, tables),
        (region.base + layout.plain_offset, tables),
        (region.base + layout.entries_offset, PAGE * layout.table_pages),
        *((region.descriptor(row), layout.descriptor_size) for row in range(layout.rows)),
        (region.calls, layout.calls_size),
        (region.data, layout.free_data),
        (region.text, region.code - region.text),
        (region.code, region.end - region.code),
    ]
    ends = [start + size for start, size in parts]
    assert ends[:-1] == [start for start, _ in parts[1:]]
    assert parts[0][0] == region.base
    assert sum(parts[-1]) == region.end
    assert layout.data_size % PAGE == 0
    assert layout.text_size % PAGE == 0
    assert region.code % 64 == 0


def test_every_cell_is_its_own_and_a_row_is_a_gs_base_away():
    region = Region(0x10_0000_0000, RegionLayout(rows=3, table_pages=2))
    seen = set()
    for row in range(3):
        for slot in range(region.layout.slots):
            for cell in (region.dispatch_cell(row, slot), region.plain_cell(row, slot)):
                assert cell % 8 == 0
                assert cell not in seen
                seen.add(cell)
            assert region.dispatch_cell(row, slot) == region.dispatch_cell(0, slot) + PAGE * row
            assert region.plain_cell(row, slot) == region.plain_cell(0, slot) + PAGE * row
        for cell in (region.row_cell(row), region.descriptor_cell(row)):
            assert cell not in seen
            seen.add(cell)
        assert region.row_cell(row) == region.row_cell(0) + PAGE * row
        assert region.descriptor_cell(row) == region.descriptor_cell(0) + PAGE * row
    entries = {region.entry_cell(slot) for slot in range(region.layout.slots)}
    assert len(entries) == region.layout.slots
    assert not entries & seen


def test_the_first_slot_of_the_second_page():
    region = Region(0x10_0000_0000, RegionLayout(rows=8, table_pages=2))
    assert region.cell_index(SLOTS_PER_PAGE) == 512
    assert region.dispatch_cell(0, SLOTS_PER_PAGE) == region.dispatch_cell(0, 0) + 8 * PAGE


@pytest.mark.parametrize("slot", [-1, 504, 10_000])
def test_slots_outside_are_refused(slot):
    with pytest.raises(Refused):
        Region(0x10_0000_0000, RegionLayout()).dispatch_cell(0, slot)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_rows_outside_are_refused(row):
    region = Region(0x10_0000_0000, RegionLayout())
    for refused in (region.row_cell, region.descriptor, lambda row: region.plain_cell(row, 0)):
        with pytest.raises(Refused):
            refused(row)


@pytest.mark.parametrize(
    "sizes",
    [
        {"rows": 1},
        {"rows": 65},
        {"table_pages": 0},
        {"copy_size": 3 * PAGE},
        {"copy_size": 1 << 30},
        {"descriptor_size": 100},
        {"free_data": PAGE + 1},
        {"free_text": 1 << 40},
    ],
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(Refused):
        RegionLayout(**sizes)


def test_a_stress_layout_holds_what_it_is_for():
    layout = RegionLayout.for_load(3651, 80_000, 0)
    assert layout.slots >= 3651
    assert layout.descriptor_size >= 0x100 + layout.cells + 16 * 3 * 3651
    assert layout.free_text >= 80_000


def test_large_tables_have_fewer_rows():
    assert RegionLayout.for_load(504, 100, 0).rows == ROWS
    assert RegionLayout.for_load(505, 100, 0).rows == ROWS_OF_LARGE_TABLES < ROWS
    assert RegionLayout.for_load(505, 100, 0, rows=5).rows == 5


def test_slot_texts_do_not_overlap():
    region = Region(0x10_0000_0000, RegionLayout())
    assert region.stub(1) - region.stub(0) == len(region.slot_text(0)) == 64
    assert region.stub(0) == region.text + len(region.fixed_text())
    last = region.layout.slots - 1
    assert region.stub(last) + 64 == region.code
    low, high = region.stub_text
    assert (low, high) == (region.text, region.code - 1)


def test_candidates_are_the_same_each_time_and_within_reach():
    first = list(candidates(START, END, BUILD_ID))
    assert first == list(candidates(START, END, BUILD_ID))
    assert first != list(candidates(START, END, BUILD_ID[::-1]))
    assert first != list(candidates(START + PAGE, END, BUILD_ID))
    assert len(set(first)) == len(first) > 100
    size = RegionLayout().size
    for base in first:
        assert base % PAGE == 0
        assert base + size <= START or base >= END
    near = [base for base in first if within_reach(START, END, base, size)]
    assert len(near) > 100
    for base in near:
        assert max(abs(END - base), abs(base + size - START)) <= REACH - MARGIN


def test_two_regions_of_neighbouring_candidates_do_not_overlap():
    bases = sorted(candidates(START, END, BUILD_ID))
    assert all(bases[index + 1] - bases[index] >= 8 << 20 for index in range(len(bases) - 1))


def test_candidates_of_a_low_object_stay_in_user_space():
    found = list(candidates(0x400000, 0x500000, BUILD_ID))
    assert found
    assert all(base >= 1 << 16 for base in found)
    top = 0x7FFF_F7FF_F000
    assert all(base < 1 << 47 for base in candidates(top - 0x100000, top, BUILD_ID))


def test_the_first_free_candidate_is_chosen(space):
    layout = RegionLayout()
    base = choose_base(START, END, BUILD_ID, layout, space)
    assert base == next(iter(candidates(START, END, BUILD_ID)))
    again = choose_base(START, END, BUILD_ID, layout, space, taken=[(base, base + layout.size)])
    assert again != base
    occupied = MemoryMap.parse(MAPS + f"{base:x}-{base + PAGE:x} rw-p 00000000 00:00 0 \n")
    assert choose_base(START, END, BUILD_ID, layout, occupied) != base


def test_no_place_is_refused():
    full = MemoryMap.parse("10000-7ffffffff000 rw-p 00000000 00:00 0 \n")
    with pytest.raises(Refused) as caught:
        choose_base(START, END, BUILD_ID, RegionLayout(), full)
    assert caught.value.reason == "no_free_address"


def test_the_heaps_growth_and_the_stacks_stay_clear(space):
    heap = space.heap_end
    assert kept_clear(space)[0] == (heap, heap + HEAP_GROWTH)
    assert not placeable(space, heap + HEAP_GROWTH - PAGE, heap + HEAP_GROWTH)
    assert placeable(space, heap + HEAP_GROWTH, heap + HEAP_GROWTH + PAGE)
    stack = space.stack
    assert not placeable(space, stack.start - 2 * PAGE, stack.start - PAGE)
    assert placeable(space, stack.end - (160 << 20), stack.end - (160 << 20) + PAGE)
    assert not placeable(space, 0, PAGE)
    assert not placeable(space, START, START + PAGE)


def test_a_region_is_recognised_by_its_mappings():
    layout = RegionLayout()
    base = 0x5555_0000_0000
    text = base + layout.data_size
    lines = (
        f"{base:x}-{text:x} rw-p 00000000 00:00 0 \n"
        f"{text:x}-{base + layout.size:x} r-xp 00000000 00:00 0 \n"
    )
    assert mapped_sizes(MemoryMap.parse(lines), base) == (layout.data_size, layout.text_size)
    # Merged with an anonymous neighbour below.
    merged = lines.replace(f"{base:x}-", f"{base - PAGE:x}-", 1)
    assert mapped_sizes(MemoryMap.parse(merged), base) == (layout.data_size, layout.text_size)
    for other in (
        lines.replace("rw-p", "rwxp"),
        lines.replace("r-xp", "r--p"),
        lines.replace("00:00 0 \n", "08:01 7 /tmp/file\n", 1),
        lines.splitlines(keepends=True)[0],
    ):
        assert mapped_sizes(MemoryMap.parse(other), base) is None
    assert mapped_sizes(MemoryMap.parse(lines), base + layout.size) is None
