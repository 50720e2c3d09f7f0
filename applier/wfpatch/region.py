# SPDX-License-Identifier: GPL-3.0-or-later
"""The region: where everything lies in it, its fixed text, and where it may lie itself.

docs/region.md describes layout version 1 byte for byte. All offsets are from the region's base;
addresses are runtime addresses. Nothing here touches a process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import Refused
from .machine_code import entry_stub, syscall_runner
from .self_check_stub import check_routine, thunk

LAYOUT_VERSION = 1
PAGE = 4096
#: An apply and its revert take four: every task is visited to free rows once in three such cycles.
ROWS = 16
#: Where the table of one row has several pages, as stores of a new slot go to every row.
ROWS_OF_LARGE_TABLES = 8
CELLS_PER_PAGE = 512
SLOTS_PER_PAGE = 504
DESCRIPTOR_CELL = 510
ROW_CELL = 511

RUNNER_OFFSET = 0x600
SLOT_TEXT_OFFSET = 0x800
SLOT_TEXT_SIZE = 64
THUNK_OFFSET = 8

MAX_ROWS = 64
MAX_TABLE_PAGES = 64
MAX_COPY_SIZE = 1 << 22
MAX_PART = 1 << 26

REACH = 1 << 31
MARGIN = 1 << 26
HEAP_GROWTH = 64 << 20
STACK_SPAN = 128 << 20
LOWEST = 1 << 16
HIGHEST = (1 << 47) - PAGE

_WINDOW = 32 << 20
_JITTER_PAGES = 2048
CANDIDATES = 120


class Span(Protocol):
    """A mapping, as far as placing needs it."""

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def perms(self) -> str: ...

    @property
    def path(self) -> str: ...


class AddressSpace(Protocol):
    """What placing asks of maps.MemoryMap."""

    @property
    def heap_end(self) -> int: ...

    @property
    def stack(self) -> Span | None: ...

    def free(self, start: int, end: int) -> bool: ...

    def containing(self, address: int) -> Span | None: ...


def _page_up(value: int) -> int:
    return (value + PAGE - 1) // PAGE * PAGE


@dataclass(frozen=True)
class RegionLayout:
    """The sizes of a region's parts, in bytes where not said otherwise; offsets follow from them.

    ``rows`` rows of ``table_pages`` pages in each of the two tables; ``copy_size`` bytes for each
    copy of the header (a power of two); ``descriptor_size`` for each of ``rows`` descriptors;
    ``calls_size`` for system call records; ``free_data`` and ``free_text`` for what patches bring.
    """

    rows: int = ROWS
    table_pages: int = 1
    copy_size: int = 1 << 16
    descriptor_size: int = 1 << 13
    calls_size: int = 1 << 13
    free_data: int = 1 << 16
    free_text: int = 220 << 10

    def __post_init__(self) -> None:
        bounds = (
            (self.rows, 2, MAX_ROWS),
            (self.table_pages, 1, MAX_TABLE_PAGES),
            (self.copy_size, PAGE, MAX_COPY_SIZE),
            (self.descriptor_size, PAGE, MAX_PART),
            (self.calls_size, PAGE, MAX_PART),
            (self.free_data, PAGE, MAX_PART),
            (self.free_text, 1, MAX_PART),
        )
        paged = (self.descriptor_size, self.calls_size, self.free_data)
        if (
            any(not low <= value <= high for value, low, high in bounds)
            or self.copy_size & (self.copy_size - 1)
            or any(value % PAGE for value in paged)
        ):
            raise Refused("region_too_small", f"no region can have the sizes {self}")

    @classmethod
    def for_load(
        cls, slots: int, text: int, data: int, ranges: int = 0, rows: int | None = None
    ) -> RegionLayout:
        """A layout for ``slots`` functions, with room to spare for later patches of the same kind.

        ``text`` and ``data`` are the bytes that the patch and its old continuations take,
        ``ranges`` the number of address ranges of old code in one transition.
        """
        pages = max(1, -(-slots // SLOTS_PER_PAGE))
        header = 2048 + 768 * slots
        copy_size = cls.copy_size
        while copy_size < 2 * header and copy_size < MAX_COPY_SIZE:
            copy_size *= 2
        arrays = 16 * (max(ranges, 3 * slots) + 256)
        if rows is None:
            rows = ROWS if pages == 1 else ROWS_OF_LARGE_TABLES
        return cls(
            rows=rows,
            table_pages=pages,
            copy_size=copy_size,
            descriptor_size=max(cls.descriptor_size, _page_up(0x100 + 512 * pages + 2 * arrays)),
            free_data=max(cls.free_data, _page_up(4 * data)),
            free_text=max(cls.free_text, _page_up(4 * text)),
        )

    @property
    def slots(self) -> int:
        return SLOTS_PER_PAGE * self.table_pages

    @property
    def cells(self) -> int:
        return CELLS_PER_PAGE * self.table_pages

    @property
    def table_size(self) -> int:
        return self.rows * self.table_pages * PAGE

    @property
    def dispatch_offset(self) -> int:
        return 2 * self.copy_size

    @property
    def plain_offset(self) -> int:
        return self.dispatch_offset + self.table_size

    @property
    def entries_offset(self) -> int:
        return self.plain_offset + self.table_size

    @property
    def descriptors_offset(self) -> int:
        return self.entries_offset + self.table_pages * PAGE

    @property
    def calls_offset(self) -> int:
        return self.descriptors_offset + self.rows * self.descriptor_size

    @property
    def data_offset(self) -> int:
        """Where the patches' own data (GOT slots, .data, .bss) begins."""
        return self.calls_offset + self.calls_size

    @property
    def data_size(self) -> int:
        """Bytes of the rw- mapping; the text begins there."""
        return self.data_offset + self.free_data

    @property
    def code_offset(self) -> int:
        """Where the patches' own text begins, 64-aligned."""
        return self.data_size + SLOT_TEXT_OFFSET + SLOT_TEXT_SIZE * self.slots

    @property
    def text_size(self) -> int:
        """Bytes of the r-x mapping."""
        return _page_up(self.code_offset - self.data_size + self.free_text)

    @property
    def size(self) -> int:
        return self.data_size + self.text_size


@dataclass(frozen=True)
class Region:
    """A region at an address: the addresses of its parts."""

    base: int
    layout: RegionLayout

    @property
    def end(self) -> int:
        return self.base + self.layout.size

    @property
    def text(self) -> int:
        """The first address of the r-x mapping."""
        return self.base + self.layout.data_size

    @property
    def check(self) -> int:
        return self.text

    @property
    def runner(self) -> int:
        return self.text + RUNNER_OFFSET

    @property
    def calls(self) -> int:
        return self.base + self.layout.calls_offset

    @property
    def data(self) -> int:
        return self.base + self.layout.data_offset

    @property
    def code(self) -> int:
        return self.base + self.layout.code_offset

    @property
    def stub_text(self) -> tuple[int, int]:
        """The closed interval of the check routine, the runner, stubs and thunks.

        A thread with such an address on its stack is inside the stub: it counts as not quiescent.
        """
        return (self.text, self.code - 1)

    def cell_index(self, slot: int) -> int:
        """The index of the slot among the cells of one row: 512 a table page, 504 of them slots."""
        if not 0 <= slot < self.layout.slots:
            raise Refused(
                "region_too_small",
                f"the region has {self.layout.slots} slots, slot {slot} is asked for",
            )
        return slot // SLOTS_PER_PAGE * CELLS_PER_PAGE + slot % SLOTS_PER_PAGE

    def _cell(self, table: int, row: int, cell: int) -> int:
        if not 0 <= row < self.layout.rows:
            raise Refused("generation_exhausted", f"the region has no row {row}")
        page, index = divmod(cell, CELLS_PER_PAGE)
        return self.base + table + (page * self.layout.rows + row) * PAGE + 8 * index

    def dispatch_cell(self, row: int, slot: int) -> int:
        """The address of A[row][slot]: what a thread in the row runs."""
        return self._cell(self.layout.dispatch_offset, row, self.cell_index(slot))

    def plain_cell(self, row: int, slot: int) -> int:
        """The address of B[row][slot]: the code of the row's generation."""
        return self._cell(self.layout.plain_offset, row, self.cell_index(slot))

    def descriptor_cell(self, row: int) -> int:
        """The address of the cell that holds the address of the row's descriptor, or 0."""
        return self._cell(self.layout.dispatch_offset, row, DESCRIPTOR_CELL)

    def row_cell(self, row: int) -> int:
        """The address of the cell that holds the row's number."""
        return self._cell(self.layout.dispatch_offset, row, ROW_CELL)

    def entry_cell(self, slot: int) -> int:
        """The address of the cell that holds the function's original entry address."""
        return self.base + self.layout.entries_offset + 8 * self.cell_index(slot)

    def descriptor(self, index: int) -> int:
        """The address of a descriptor."""
        if not 0 <= index < self.layout.rows:
            raise Refused("generation_exhausted", f"the region has no descriptor {index}")
        return self.base + self.layout.descriptors_offset + index * self.layout.descriptor_size

    def stub(self, slot: int) -> int:
        """The address of the slot's entry stub."""
        self.cell_index(slot)
        return self.text + SLOT_TEXT_OFFSET + SLOT_TEXT_SIZE * slot

    def thunk(self, slot: int) -> int:
        """The address of the slot's thunk."""
        return self.stub(slot) + THUNK_OFFSET

    def fixed_text(self) -> bytes:
        """The check routine and the syscall runner: the first SLOT_TEXT_OFFSET bytes of text."""
        check = check_routine(
            self.check,
            self.descriptor_cell(0),
            self.row_cell(0),
            self.base + self.layout.entries_offset,
        )
        runner = syscall_runner()
        if len(check) > RUNNER_OFFSET or RUNNER_OFFSET + len(runner) > SLOT_TEXT_OFFSET:
            raise AssertionError("the fixed text has outgrown its place")
        text = check.ljust(RUNNER_OFFSET, b"\xcc") + runner
        return text.ljust(SLOT_TEXT_OFFSET, b"\xcc")

    def slot_text(self, slot: int) -> bytes:
        """The slot's entry stub and thunk: SLOT_TEXT_SIZE bytes for the address ``stub(slot)``."""
        at = self.stub(slot)
        code = entry_stub(at, self.dispatch_cell(0, slot)).ljust(THUNK_OFFSET, b"\xcc") + thunk(
            at + THUNK_OFFSET,
            self.cell_index(slot),
            self.check,
            self.dispatch_cell(0, slot),
            self.plain_cell(0, slot),
        )
        if len(code) > SLOT_TEXT_SIZE:
            raise AssertionError("a slot's text has outgrown its place")
        return code.ljust(SLOT_TEXT_SIZE, b"\xcc")


def kept_clear(space: AddressSpace) -> tuple[tuple[int, int], ...]:
    """``[low, high)`` spans that must stay free of our mappings although nothing lies there.

    The heap grows upwards from brk, [stack] downwards; the kernel itself keeps 128 MiB for the
    stack (mmap_base in arch/x86/mm/mmap.c).
    """
    spans = []
    if space.heap_end:
        spans.append((space.heap_end, space.heap_end + HEAP_GROWTH))
    stack = space.stack
    if stack is not None:
        spans.append((min(stack.start, stack.end - STACK_SPAN), stack.end))
    return tuple(spans)


def placeable(
    space: AddressSpace, start: int, end: int, clear: Sequence[tuple[int, int]] | None = None
) -> bool:
    """Whether ``[start, end)`` may be mapped: free, within user space, clear of kept_clear()."""
    if start < LOWEST or end > HIGHEST:
        return False
    spans = kept_clear(space) if clear is None else clear
    if any(start < high and low < end for low, high in spans):
        return False
    return space.free(start, end)


def candidates(start: int, end: int, build_id: str) -> Iterator[int]:
    """The base addresses at which a region of the object may lie, in order of preference.

    They follow from the object's load address ``start`` and its build-id alone, so that a region is
    found again without a note of where it is. ``end`` is the end of the object's last mapping.
    Nearest first, alternately below and above: the nearer, the more landing pages reach the region.
    """
    for index in range(CANDIDATES):
        step, above = divmod(index, 2)
        seed = f"{build_id}:{start:x}:{index}".encode()
        jitter = int.from_bytes(hashlib.sha256(seed).digest()[:4], "little") % _JITTER_PAGES
        anchor = (end + _WINDOW * step + _WINDOW // 2) if above else (start - _WINDOW * (step + 1))
        base = anchor // PAGE * PAGE + jitter * PAGE
        if LOWEST <= base < HIGHEST:
            yield base


def within_reach(start: int, end: int, base: int, size: int) -> bool:
    """Whether every address of ``[start, end)`` and of the region are within +-2 GiB."""
    return max(end - base, base + size - start) <= REACH - MARGIN


def choose_base(
    start: int,
    end: int,
    build_id: str,
    layout: RegionLayout,
    space: AddressSpace,
    taken: Sequence[tuple[int, int]] = (),
) -> int:
    """The first candidate at which ``layout`` can be mapped, with a free page on either side.

    ``taken`` are spans planned but not mapped yet. Raises Refused("no_free_address").
    """
    clear = (*kept_clear(space), *taken)
    for base in candidates(start, end, build_id):
        if within_reach(start, end, base, layout.size) and placeable(
            space, base - PAGE, base + layout.size + PAGE, clear
        ):
            return base
    raise Refused(
        "no_free_address",
        f"none of {CANDIDATES} addresses within 2 GiB of the object at {start:#x} has "
        f"{layout.size >> 10} KiB free",
        start=start,
        size=layout.size,
    )


def mapped_sizes(space: AddressSpace, base: int) -> tuple[int, int] | None:
    """(bytes of rw-, bytes of r-x) of what looks like a region at ``base``, or None.

    Recognises a region by its address even while its header is still zero. The kernel may have
    merged a neighbour below the base with the rw- part; the r-x part has none.
    """
    data = space.containing(base)
    if data is None or not data.perms.startswith("rw-p") or data.path:
        return None
    text = space.containing(data.end)
    if text is None or not text.perms.startswith("r-xp") or text.path:
        return None
    return data.end - base, text.end - text.start
