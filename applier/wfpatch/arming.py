# SPDX-License-Identifier: GPL-3.0-or-later
"""Arming: how each replaced function's entry becomes a jump to its stub.

The rule that all ways but the last obey: **the bytes written contain no instruction boundary in
their inside**, so that no thread, wherever it was interrupted, resumes within them. In this order:

``byte``  e9 over the first byte; its rel32 is the four bytes that follow, as they are in memory
          (instruction punning). Where it lands, a page is mapped that jumps to the stub.
``swap``  a patched copy of the page is moved over it by mremap: ``jmp rel32`` over a first
          instruction of five bytes or more; ``jmp rel8`` over one of two to four bytes to a
          ``jmp rel32`` in never-executed padding; or ``jmp rel32`` over one of two to four bytes
          with the bytes behind it as the upper part of its distance (E9Patch's padded punning),
          landing on a page mapped for it; or, where neither fits, the second instruction is
          *evicted*: it too becomes a jump, to its own copy on a page mapped for it, so that its
          bytes are ours to choose for the distance of the first (E9Patch's successor eviction).
          Both are single instructions: a thread between them runs the copy.
``hold``  all threads stopped at once, then ``jmp rel32`` over whole instructions.

Nothing here touches a process: the plan says what to map, to write and to move, and in which order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional, Protocol

from .errors import Refused
from .machine_code import (
    ContinuationTemplate,
    continuation,
    continuation_size,
    entry_stub,
    jmp_rel8,
    jmp_rel32,
    landing,
    reaches,
)
from .region import PAGE, AddressSpace, kept_clear, placeable
from .region_header import WAYS, Slot, Write

BYTES_NEEDED = 8
"""Bytes of the entry that planning looks at: those of the longest punned jump."""

LONGEST_EVICTED = 64
"""Bytes that the copy of an evicted instruction and its jump back can take at most."""

_LEGACY_PREFIX = 0x3E
"""A DS segment override: ignored by a near jump in 64-bit mode (SDM volume 2, 2.1.1)."""


@dataclass(frozen=True)
class RuntimeFixup:
    """As machine_code.Fixup, with a runtime address as its target."""

    offset: int
    addend: int
    target: int


@dataclass(frozen=True)
class Successor:
    """The second instruction of a function, ``length`` bytes, as a template for a copy of it.

    A machine_code.ContinuationTemplate whose fixups have runtime addresses.
    """

    length: int
    code: bytes
    fixups: tuple[RuntimeFixup, ...]
    falls_through: bool


class HoldTemplate(ContinuationTemplate, Protocol):
    """patch_elf.Hold: whole instructions with their boundaries (old offset, offset in ``code``)."""

    @property
    def boundaries(self) -> Sequence[tuple[int, int]]: ...


def successor(hold: HoldTemplate, resolve: Callable[[int], int]) -> Optional[Successor]:
    """The second of the instructions that a hold would displace; None where it has only one.

    ``resolve`` turns a link-time address of the object into a runtime address.
    """
    boundaries = [*hold.boundaries, (hold.length, len(hold.code))]
    if len(boundaries) < 3:
        return None
    (low, begin), (high, end) = boundaries[1:3]
    return Successor(
        high - low,
        hold.code[begin:end],
        tuple(
            RuntimeFixup(fixup.offset - begin, fixup.addend, resolve(fixup.target))
            for fixup in hold.fixups
            if begin <= fixup.offset < end
        ),
        hold.falls_through or len(boundaries) > 3,
    )


@dataclass(frozen=True)
class EntrySite:
    """One function to arm, in runtime addresses.

    ``entry`` are its first bytes (at least BYTES_NEEDED) as they are in memory now;
    ``first_length`` the length of its first instruction; ``inner_entries`` the offsets 1..4 at
    which control may enter from elsewhere; ``padding`` (address, size) of never-executed bytes;
    ``hold_length`` the length of the whole instructions that a hold displaces, None where that is
    impossible; ``stub`` where the entry must lead, ``cell`` row 0's dispatch cell that the stub
    jumps through (0: always go by the stub); ``successor`` the second instruction, where it may be
    evicted.

    Where a hold would be possible, its whole instructions are what the continuation stands for,
    whatever the way: else it would jump back into the inside of a punned jump, and instructions
    that overlap a jump cost its prediction each time (measured: 15 ns a call instead of 1).
    """

    slot: int
    name: str
    address: int
    entry: bytes
    first_length: int
    stub: int
    inner_entries: tuple[int, ...] = ()
    padding: Optional[tuple[int, int]] = None
    hold_length: Optional[int] = None
    successor: Optional[Successor] = None
    cell: int = 0

    @property
    def displaced(self) -> int:
        """The length of what the continuation of a punned entry stands for."""
        return self.first_length if self.hold_length is None else self.hold_length


@dataclass(frozen=True)
class ArmedEntry:
    """How one function is armed.

    ``writes`` are the bytes of the object's text that change, in the order of arming; ``landing``
    the address of the landing code or 0, ``landing_code`` its bytes; ``relied`` the interval
    ``[low, high)`` of unchanged bytes that are part of the jump; ``displaced`` the length of what
    the continuation stands for; ``evicted`` the address and bytes of the second instruction's copy,
    or (0, b""). The copy is old code: a thread in it is inside the function.
    """

    slot: int
    name: str
    address: int
    way: str
    writes: tuple[Write, ...]
    displaced: int
    landing: int = 0
    landing_code: bytes = b""
    relied: tuple[int, int] = (0, 0)
    evicted: tuple[int, bytes] = (0, b"")

    @property
    def outside(self) -> tuple[tuple[int, bytes], ...]:
        """(address, code) of all that lies on landing pages for this entry."""
        landing = ((self.landing, self.landing_code),) if self.landing else ()
        return landing + ((self.evicted,) if self.evicted[0] else ())


@dataclass(frozen=True)
class PageSwap:
    """Pages to replace: ``size`` bytes at ``start`` by those at ``scratch``.

    Copy what is in memory at ``start`` to ``scratch`` with ``writes`` applied, compare, then
    mremap(scratch, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, start).
    """

    start: int
    size: int
    scratch: int
    writes: tuple[Write, ...]


@dataclass(frozen=True)
class ArmingPlan:
    """What to do, in this order.

    1. mmap each (start, size) of ``landing_maps`` and ``scratch_maps``: PROT_READ | PROT_EXEC,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    2. write ``landing_writes``;
    3. do each of ``swaps``;
    4. write each of ``stores``, one byte each;
    5. hold all threads, move those inside the bytes, and write each of ``holds``.

    ``landing_pages`` are all landing pages, those mapped before included.
    """

    entries: tuple[ArmedEntry, ...]
    landing_maps: tuple[tuple[int, int], ...]
    landing_writes: tuple[Write, ...]
    landing_pages: tuple[tuple[int, int], ...]
    scratch_maps: tuple[tuple[int, int], ...]
    swaps: tuple[PageSwap, ...]
    stores: tuple[Write, ...]
    holds: tuple[Write, ...]

    def share(self) -> dict[str, int]:
        """The number of functions that go each way."""
        counts = dict.fromkeys(WAYS, 0)
        for entry in self.entries:
            counts[entry.way] += 1
        return counts


@dataclass(frozen=True)
class DisarmingPlan:
    """What to do, in this order: mmap ``scratch_maps``, ``swaps``, then ``stores``.

    Needs no hold: the armed jump is one instruction, so no thread is in the inside of what is
    written. Landing pages and stubs stay until every task was seen outside of them.
    """

    scratch_maps: tuple[tuple[int, int], ...]
    swaps: tuple[PageSwap, ...]
    stores: tuple[Write, ...]


class _Bytes:
    """Which bytes of the text are written by arming, and on which an armed jump relies."""

    def __init__(self, armed: Iterable[ArmedEntry]) -> None:
        self.written: set[int] = set()
        self.relied: set[int] = set()
        for entry in armed:
            self.add(entry)

    def add(self, entry: ArmedEntry) -> None:
        for write in entry.writes:
            self.written.update(range(write.address, write.address + len(write.after)))
        self.relied.update(range(*entry.relied))

    def accept(self, entry: ArmedEntry, entries: frozenset[int]) -> bool:
        """Whether the entry collides with nothing; ``entries`` are the set's own entries."""
        own = {
            address
            for write in entry.writes
            for address in range(write.address, write.address + len(write.after))
        }
        for address in own:
            if address in self.written or address in self.relied:
                return False
        for address in (*own, *range(*entry.relied)):
            if address in entries and address != entry.address:
                return False
        return not any(address in self.written for address in range(*entry.relied))


class _Landings:
    """The landing pages: those mapped already, those planned, and the bytes used in them."""

    def __init__(
        self,
        space: AddressSpace,
        mapped: Sequence[tuple[int, int]],
        used: Iterable[tuple[int, int]],
        taken: Sequence[tuple[int, int]],
        budget: int,
    ) -> None:
        self._budget = budget
        self._space = space
        self._clear = (*kept_clear(space), *taken)
        self._mapped = {page for start, size in mapped for page in range(start, start + size, PAGE)}
        self._verdicts: dict[int, bool] = {}
        self._used: dict[int, list[tuple[int, int]]] = {}
        self.planned: set[int] = set()
        for start, size in used:
            self._use(start, start + size)

    def _use(self, start: int, end: int) -> None:
        for page in range(start // PAGE, (end - 1) // PAGE + 1):
            self._used.setdefault(page * PAGE, []).append((start, end))

    def _page_available(self, page: int) -> bool:
        if page in self._mapped or page in self.planned:
            return True
        if len(self.planned) + 1 >= self._budget:
            return False
        verdict = self._verdicts.get(page)
        if verdict is None:
            verdict = placeable(self._space, page, page + PAGE, self._clear)
            self._verdicts[page] = verdict
        return verdict

    def fits(self, start: int, size: int) -> bool:
        """Whether ``size`` bytes at ``start`` can become landing code."""
        if start < 0:
            return False
        for page in range(start // PAGE * PAGE, start + size, PAGE):
            if not self._page_available(page):
                return False
            if any(start < high and low < start + size for low, high in self._used.get(page, ())):
                return False
        return True

    def take(self, start: int, size: int) -> None:
        self._use(start, start + size)
        for page in range(start // PAGE * PAGE, start + size, PAGE):
            if page not in self._mapped:
                self.planned.add(page)

    def all_pages(self) -> set[int]:
        return self._mapped | self.planned


def _runs(pages: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Pages as (start, size) of contiguous runs."""
    result: list[tuple[int, int]] = []
    for page in sorted(pages):
        if result and page == sum(result[-1]):
            result[-1] = (result[-1][0], result[-1][1] + PAGE)
        else:
            result.append((page, PAGE))
    return tuple(result)


def _landings_at(at: int, stub: int, cell: int) -> Iterator[bytes]:
    """The code that may stand where a jump lands, best first.

    Through the table at once, since each jump costs a cycle; or by way of the stub.
    """
    if cell and reaches(at + 7, cell):
        yield entry_stub(at, cell)
    yield landing(at, stub)


def _landing_code(landings: _Landings, at: int, site: EntrySite) -> bytes:
    """What can be placed at ``at``; empty where nothing can."""
    for code in _landings_at(at, site.stub, site.cell):
        if landings.fits(at, len(code)):
            return code
    return b""


def _by_byte(site: EntrySite, landings: _Landings) -> Iterator[ArmedEntry]:
    at = site.address + 5 + struct.unpack_from("<i", site.entry, 1)[0]
    code = _landing_code(landings, at, site)
    if code:
        yield ArmedEntry(
            site.slot,
            site.name,
            site.address,
            "byte",
            (Write(site.address, site.entry[:1], b"\xe9"),),
            site.displaced,
            at,
            code,
            (site.address + 1, site.address + 5),
        )


def _by_whole_jump(site: EntrySite) -> Iterator[ArmedEntry]:
    if site.first_length < 5 or any(offset < 5 for offset in site.inner_entries):
        return
    if reaches(site.address + 5, site.stub):
        jump = jmp_rel32(site.address, site.stub)
        yield ArmedEntry(
            site.slot,
            site.name,
            site.address,
            "swap",
            (Write(site.address, site.entry[:5], jump),),
            site.first_length,
        )


def _by_short_jump(site: EntrySite, padding: Mapping[int, bytes]) -> Iterator[ArmedEntry]:
    if not 2 <= site.first_length < 5 or 1 in site.inner_entries or site.padding is None:
        return
    start, size = site.padding
    content = padding.get(site.slot, b"")
    if len(content) != size:
        return
    for at in range(start, start + size - 4):
        distance = at - (site.address + 2)
        if not -128 <= distance <= 127:
            continue
        codes = [
            code
            for code in _landings_at(at, site.stub, site.cell)
            if at + len(code) <= start + size and len(code) < 14
        ]
        if not codes:
            continue
        before = content[at - start : at - start + len(codes[0])]
        yield ArmedEntry(
            site.slot,
            site.name,
            site.address,
            "swap",
            (
                Write(at, before, codes[0]),
                Write(site.address, site.entry[:2], jmp_rel8(site.address, at)),
            ),
            site.first_length,
        )


def _punned_distances(fixed: int, free: int) -> Iterator[int]:
    """Signed distances whose low ``free`` bytes are ours to choose, the rest being ``fixed``.

    Spread over the span, which is a page or two, 17 pages or 16 MiB: one free place is sought.
    """
    span = 1 << 8 * free
    step = (1, 8, PAGE + 64, 1 << 18)[free]
    for low in range(0, span, step):
        value = fixed << 8 * free | low
        yield value - (1 << 32) if value >= 1 << 31 else value


def _by_punned_jump(site: EntrySite, landings: _Landings) -> Iterator[ArmedEntry]:
    length = site.first_length
    if not 2 <= length < 5 or any(offset < length for offset in site.inner_entries):
        return
    for prefixes in range(length):
        # [3e...] e9, then the free low bytes of the distance, then bytes that stay.
        free = length - 1 - prefixes
        end = prefixes + 5
        fixed = int.from_bytes(site.entry[length:end], "little")
        for distance in _punned_distances(fixed, free):
            at = site.address + end + distance
            landing_code = _landing_code(landings, at, site)
            if not landing_code:
                continue
            code = bytes([_LEGACY_PREFIX]) * prefixes + b"\xe9" + struct.pack("<i", distance)
            yield ArmedEntry(
                site.slot,
                site.name,
                site.address,
                "swap",
                (Write(site.address, site.entry[:length], code[:length]),),
                site.displaced,
                at,
                landing_code,
                (site.address + length, site.address + end),
            )
            break


def _longer_punned_distances(fixed: int, free: int) -> Iterator[int]:
    """As _punned_distances, with all four bytes of the distance free as well."""
    if free < 4:
        yield from _punned_distances(fixed, free)
        return
    for top in range(0x08, 0x100, 0x10):
        yield from _punned_distances(top, 3)


def _by_eviction(site: EntrySite, landings: _Landings) -> Iterator[ArmedEntry]:
    """The second instruction's jump first, since the entry's distance contains its bytes."""
    length, second = site.first_length, site.successor
    if second is None or length >= 5 or continuation_size(second) > LONGEST_EVICTED:
        return
    end = length + second.length
    if any(offset < end and offset != length for offset in site.inner_entries):
        return
    size = continuation_size(second)
    for prefixes in range(second.length):
        # [3e...] e9 and its distance, of which the first bytes lie within the second instruction.
        opcode = length + prefixes
        if len(site.entry) < max(end, opcode + 5):
            return
        free = min(4, end - opcode - 1)
        fixed = int.from_bytes(site.entry[end : opcode + 5], "little")
        for distance in _longer_punned_distances(fixed, free):
            copy = site.address + opcode + 5 + distance
            if not landings.fits(copy, size):
                continue
            try:
                code = continuation(second, copy, site.address + length, lambda target: target)
            except Refused:
                continue
            jump = bytes([_LEGACY_PREFIX]) * prefixes + b"\xe9" + struct.pack("<i", distance)
            # What the jump leaves of a longer instruction is never run.
            changed = (jump + site.entry[opcode + 5 :])[: second.length]
            behind = site.entry[:length] + changed + site.entry[end:]
            found = _entry_before_evicted(site, landings, behind, (copy, copy + size))
            if found is None:
                continue
            prefix, near, landing_at, landing_code = found
            yield ArmedEntry(
                site.slot,
                site.name,
                site.address,
                "swap",
                (
                    Write(site.address + length, site.entry[length:end], changed),
                    Write(site.address, site.entry[:length], near[:length]),
                ),
                site.displaced,
                landing_at,
                landing_code,
                (site.address + end, site.address + max(end, opcode + 5, prefix + 5)),
                (copy, code),
            )
            break


def _entry_before_evicted(
    site: EntrySite, landings: _Landings, behind: bytes, copy: tuple[int, int]
) -> Optional[tuple[int, bytes, int, bytes]]:
    """(prefixes, jump, where it lands, the code there) of an entry that ends in ``behind``."""
    length = site.first_length
    for prefixes in range(length):
        free = length - 1 - prefixes
        end = prefixes + 5
        fixed = int.from_bytes(behind[length:end], "little")
        for distance in _punned_distances(fixed, free):
            at = site.address + end + distance
            landing_code = _landing_code(landings, at, site)
            if not landing_code or (at < copy[1] and copy[0] < at + len(landing_code)):
                continue
            code = bytes([_LEGACY_PREFIX]) * prefixes + b"\xe9" + struct.pack("<i", distance)
            return prefixes, code, at, landing_code
    return None


def _by_hold(site: EntrySite) -> Iterator[ArmedEntry]:
    if site.hold_length is None or site.hold_length < 5:
        return
    if any(offset < 5 for offset in site.inner_entries):
        return
    if reaches(site.address + 5, site.stub):
        yield ArmedEntry(
            site.slot,
            site.name,
            site.address,
            "hold",
            (Write(site.address, site.entry[:5], jmp_rel32(site.address, site.stub)),),
            site.hold_length,
        )


@dataclass(frozen=True)
class Occupied:
    """What planning must work around besides the memory map.

    ``armed`` are the entries armed before; ``landing_pages`` (start, size) mapped before and ours;
    ``taken`` spans ``[low, high)`` that are planned but not mapped yet; ``padding`` slot -> the
    bytes of its padding in memory; ``ways`` those that may be used (hugetlb text cannot be
    swapped); ``mapping_budget`` how many pages may be mapped (vm.max_map_count).
    """

    armed: tuple[ArmedEntry, ...] = ()
    landing_pages: tuple[tuple[int, int], ...] = ()
    taken: tuple[tuple[int, int], ...] = ()
    padding: Mapping[int, bytes] = field(default_factory=dict)
    ways: frozenset[str] = frozenset(WAYS)
    mapping_budget: int = 1 << 15


def _choices(site: EntrySite, landings: _Landings, occupied: Occupied) -> Iterator[ArmedEntry]:
    if "byte" in occupied.ways:
        yield from _by_byte(site, landings)
    if "swap" in occupied.ways:
        yield from _by_whole_jump(site)
        yield from _by_short_jump(site, occupied.padding)
        yield from _by_punned_jump(site, landings)
        yield from _by_eviction(site, landings)
    if "hold" in occupied.ways:
        yield from _by_hold(site)


def plan_arming(
    sites: Sequence[EntrySite], space: AddressSpace, scratch: int, occupied: Occupied = Occupied()
) -> ArmingPlan:
    """The plan for the whole set.

    ``scratch`` is an address from which on scratch pages may be mapped, see scratch_span(). Raises
    Refused("arming_impossible") naming every function that no way fits.
    """
    landings = _Landings(
        space,
        occupied.landing_pages,
        [(at, len(code)) for entry in occupied.armed for at, code in entry.outside],
        occupied.taken,
        occupied.mapping_budget,
    )
    changed = _Bytes(occupied.armed)
    ordered = sorted(sites, key=lambda site: site.address)
    addresses = frozenset(site.address for site in ordered)
    entries: list[ArmedEntry] = []
    impossible: list[EntrySite] = []
    for site in ordered:
        if len(site.entry) < BYTES_NEEDED:
            raise Refused("arming_impossible", f"{site.name}: too few bytes of the entry are known")
        for choice in _choices(site, landings, occupied):
            if changed.accept(choice, addresses):
                changed.add(choice)
                for at, code in choice.outside:
                    landings.take(at, len(code))
                entries.append(choice)
                break
        else:
            impossible.append(site)
    if impossible:
        names = ", ".join(f"{site.name} at {site.address:#x}" for site in impossible[:8])
        raise Refused(
            "arming_impossible",
            f"{len(impossible)} function(s) fit no way of arming: {names}",
            functions=[site.name for site in impossible],
        )
    swaps, scratch_maps = _swaps(
        [entry.writes for entry in entries if entry.way == "swap"], scratch
    )
    return ArmingPlan(
        entries=tuple(entries),
        landing_maps=_runs(landings.planned),
        landing_writes=tuple(
            Write(at, bytes(len(code)), code) for entry in entries for at, code in entry.outside
        ),
        landing_pages=_runs(landings.all_pages()),
        scratch_maps=scratch_maps,
        swaps=swaps,
        stores=tuple(entry.writes[0] for entry in entries if entry.way == "byte"),
        holds=tuple(entry.writes[0] for entry in entries if entry.way == "hold"),
    )


def page_swaps(entries: Sequence[ArmedEntry], scratch: int) -> tuple[PageSwap, ...]:
    """The swaps that arm those of ``entries`` that go that way, from ``scratch`` on."""
    return _swaps([entry.writes for entry in entries if entry.way == "swap"], scratch)[0]


def _swaps(
    writes: Sequence[Sequence[Write]], scratch: int
) -> tuple[tuple[PageSwap, ...], tuple[tuple[int, int], ...]]:
    """Page swaps that carry all writes: one for each run of pages whose writes belong together."""
    joined: dict[int, set[int]] = {}
    for group in writes:
        pages = {
            page
            for write in group
            for page in range(write.address // PAGE * PAGE, write.address + len(write.after), PAGE)
        }
        for page in list(pages):
            pages |= joined.get(page, set())
        for page in pages:
            joined[page] = pages
    runs = sorted({run for pages in joined.values() for run in _runs(pages)})
    swaps: list[PageSwap] = []
    at = scratch
    for start, size in runs:
        own = sorted(
            (write for group in writes for write in group if start <= write.address < start + size),
            key=lambda write: write.address,
        )
        swaps.append(PageSwap(start, size, at, tuple(own)))
        at += size
    return tuple(swaps), (((scratch, at - scratch),) if swaps else ())


def armed_entry(slot: Slot, stub: int, cell: int = 0) -> ArmedEntry:
    """How the slot was armed, from the header's note; ``stub`` and ``cell`` as in EntrySite."""
    at, size = slot.landing
    code = b""
    if at or size:
        codes = [code for code in _landings_at(at, stub, cell) if len(code) == size]
        if not codes:
            raise Refused("header_corrupt", f"slot {slot.index}: no landing code has {size} bytes")
        code = codes[0]
    return ArmedEntry(
        slot.index,
        slot.name,
        slot.address,
        slot.way,
        slot.writes,
        slot.displaced,
        at,
        code,
        slot.relied,
        slot.evicted,
    )


def plan_disarming(entries: Sequence[ArmedEntry], scratch: int) -> DisarmingPlan:
    """The plan that puts back what was there before the entries were armed."""
    undone = [
        [Write(write.address, write.after, write.before) for write in reversed(entry.writes)]
        for entry in entries
        if entry.way != "byte"
    ]
    swaps, scratch_maps = _swaps(undone, scratch)
    return DisarmingPlan(
        scratch_maps=scratch_maps,
        swaps=swaps,
        stores=tuple(
            Write(entry.writes[0].address, entry.writes[0].after, entry.writes[0].before)
            for entry in entries
            if entry.way == "byte"
        ),
    )


def patched_copy(swap: PageSwap, content: bytes) -> bytes:
    """The bytes for the scratch pages, from what is in memory at ``swap.start`` now.

    Raises Refused("old_code_mismatch") when the memory is not as it was at plan time.
    """
    out = bytearray(content)
    if len(out) != swap.size:
        raise Refused("old_code_mismatch", f"{len(out)} bytes were read for {swap.size}")
    for write in swap.writes:
        at = write.address - swap.start
        found = bytes(out[at : at + len(write.before)])
        if found not in (write.before, write.after):
            raise Refused(
                "old_code_mismatch",
                f"the bytes at {write.address:#x} are {found.hex()}, expected "
                f"{write.before.hex()}; another tool may have changed them",
                address=write.address,
            )
        out[at : at + len(write.after)] = write.after
    return bytes(out)


def scratch_span(
    space: AddressSpace, after: int, size: int, taken: Sequence[tuple[int, int]]
) -> int:
    """An address for ``size`` bytes of scratch pages: the first free place above ``after``."""
    clear = (*kept_clear(space), *taken)
    at = after
    for _ in range(4096):
        if placeable(space, at - PAGE, at + size + PAGE, clear):
            return at
        at += 16 * PAGE
    raise Refused("no_free_address", f"no free place for {size} bytes of scratch above {after:#x}")
