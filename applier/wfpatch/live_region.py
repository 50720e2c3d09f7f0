# SPDX-License-Identifier: GPL-3.0-or-later
"""The regions that a process has, as read from its memory, and the notes in their headers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .elf_object import ObjectImage
from .errors import Failed
from .generation_table import Block, Step, initialise
from .maps import MemoryMap
from .memory import ProcessMemory
from .region import Region, RegionLayout, candidates, mapped_sizes
from .region_header import (
    Generation,
    HeaderCopy,
    NewCode,
    Piece,
    RegionHeader,
    RowUse,
    Slot,
    first_copy,
    read_header,
)


@dataclass(frozen=True)
class BlankRegion:
    """A region whose header was never written: the applier was killed right after mapping it."""

    base: int
    data_size: int
    text_size: int


class LiveRegion:
    """One region of a process. Its header is read once and kept in step with what is written."""

    def __init__(
        self, memory: ProcessMemory, image: ObjectImage, region: Region, copy: HeaderCopy
    ) -> None:
        self.memory = memory
        self.image = image
        self.region = region
        self._copy = copy

    @property
    def header(self) -> RegionHeader:
        return self._copy.header

    def write_header(self, header: RegionHeader) -> None:
        """Write the copy that is not in force; the newer one counts from then on."""
        offset, data = self._copy.successor(header)
        self.memory.write(self.region.base + offset, data)
        self._copy = HeaderCopy(1 - self._copy.number, self._copy.sequence + 1, header)

    def note(self, **changes: object) -> None:
        """Write the header with some fields changed."""
        self.write_header(replace(self.header, **changes))  # type: ignore[arg-type]

    def generation(self, number: int | None = None) -> Generation:
        """A generation's note; the current one for None."""
        wanted = self.header.generation if number is None else number
        for generation in self.header.generations:
            if generation.number == wanted:
                return generation
        raise Failed("header_corrupt", f"generation {wanted} is not in the header")

    def slot_of(self, address: int) -> Slot | None:
        """The slot of the function at a run-time address."""
        return next((slot for slot in self.header.slots if slot.address == address), None)

    def code(self, generation: Generation) -> dict[int, int]:
        """slot -> address of what the generation runs; the old continuation where not patched."""
        result = {slot.index: slot.continuation.low for slot in self.header.slots}
        result.update({code.slot: code.address for code in generation.code})
        return result

    def pieces(self, generation: Generation, slot: int) -> tuple[Piece, ...]:
        """All code that a generation runs for a slot, the function as shipped included if it is
        that. The continuation and what leads to it are part of the function as shipped."""
        for code in generation.code:
            if code.slot == slot:
                return code.pieces
        note = next(note for note in self.header.slots if note.index == slot)
        pieces = note.pieces
        if note.migrate != "always":
            # Reached by a tail edge, a thread right before its first instruction has an old
            # caller's arguments: the entry itself counts as inside.
            pieces = tuple(replace(piece, entry=False) for piece in pieces)
        return (*pieces, *note.displaced_pieces)

    def pending_intervals(self) -> list[tuple[int, int]]:
        """Closed intervals of stub text, landing code and jumps in padding.

        A thread there is on its way into a function and has not decided yet.
        """
        intervals = [self.region.stub_text]
        for slot in self.header.slots:
            at, size = slot.landing
            if at:
                intervals.append((at, at + size - 1))
            for jump in slot.writes[:-1]:
                # Within the function it leads to an evicted instruction, and is old code.
                if not slot.address <= jump.address < slot.address + slot.size:
                    intervals.append((jump.address, jump.address + len(jump.after) - 1))
        return intervals

    def carry_out(self, steps: Iterable[Step]) -> None:
        """Do planned stores, one by one, in their order."""
        for step in steps:
            if isinstance(step, Block):
                self.memory.write(step.address, step.data)
            else:
                self.memory.write_u64(step.address, step.value)


def find_regions(
    memory: ProcessMemory, memory_map: MemoryMap, images: Sequence[ObjectImage]
) -> tuple[list[LiveRegion], list[tuple[ObjectImage, BlankRegion]]]:
    """The regions of all objects, and those that are mapped but blank.

    Raises header_corrupt and header_newer.
    """
    live: list[LiveRegion] = []
    blank: list[tuple[ObjectImage, BlankRegion]] = []
    for image in images:
        if not image.build_id:
            continue
        for base in candidates(image.start, image.end, image.build_id):
            sizes = mapped_sizes(memory_map, base)
            if sizes is None:
                continue

            def read(offset: int, size: int, base: int = base) -> bytes:
                return memory.read(base + offset, size)

            copy = read_header(read, sizes[0])
            if copy is None:
                if not any(memory.read(base, 64)):
                    blank.append((image, BlankRegion(base, *sizes)))
                continue
            header = copy.header
            if header.build_id != image.build_id or header.load_address != image.start:
                raise Failed(
                    "header_corrupt",
                    f"the region at {base:#x} says it belongs to {header.object_name} with "
                    f"build-id {header.build_id} at {header.load_address:#x}, found "
                    f"{image.build_id} at {image.start:#x}",
                )
            live.append(LiveRegion(memory, image, Region(base, header.layout), copy))
    return live, blank


def create_region(
    memory: ProcessMemory, image: ObjectImage, region: Region, name: str
) -> LiveRegion:
    """Fill a mapped, blank region: fixed text, row numbers, and the header last.

    Raises memory_unwritable where the kernel lets nobody write to text (proc_mem.force_override).
    """
    header = RegionHeader(
        layout=region.layout,
        index=0,
        object_name=name,
        build_id=image.build_id,
        load_address=image.start,
        generation=0,
        slots=(),
        generations=(Generation(0, 0, (), ()),),
        rows=(RowUse(0, 0, "generation"),),
        transition=None,
        text_cursor=region.layout.code_offset,
        data_cursor=region.layout.data_offset,
    )
    memory.write(region.text, region.fixed_text())
    live = LiveRegion(memory, image, region, HeaderCopy(0, 1, header))
    live.carry_out(initialise(region))
    # The program's memory is not to grow with each transition that takes a row for the first time.
    for row in range(region.layout.rows):
        memory.write(region.descriptor(row), bytes(8))
    offset, data = first_copy(header)
    memory.write(region.base + offset, data)
    return live


__all__ = [
    "BlankRegion",
    "LiveRegion",
    "NewCode",
    "RegionLayout",
    "create_region",
    "find_regions",
]
