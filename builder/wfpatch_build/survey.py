# SPDX-License-Identifier: GPL-3.0-or-later
"""How the functions of a binary could be armed: the share of each way, by static criteria.

The host decides for real, with the process's memory map; this table says what to expect. A landing
counts as free when it cannot lie in the object itself nor, for an executable, in the heap behind
it (brk starts up to 32 MiB behind .bss, Linux arch_randomize_brk, and 64 MiB of growth are kept
clear). The neighbours of a shared library are not known before it is loaded, so a distance of
LIBRARY_CLEARANCE around it counts as taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wfpatch_build.displacement import JUMP_LENGTH, NotRelocatable, first_instruction, hold_template
from wfpatch_build.entry_analysis import EntryAnalysis, OldFunction
from wfpatch_build.instructions import decode_one, ends_flow, is_valid
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.text_table import text_table

PAGE = 4096
HEAP_CLEARANCE = (32 + 64) << 20
LIBRARY_CLEARANCE = 64 << 20
WAYS = ("byte", "swap", "hold", "impossible")


@dataclass(frozen=True)
class Survey:
    """Counts over the functions of one object (main pieces and split parts, as the FDEs list)."""

    name: str
    build_id: str | None
    functions: int
    ways: dict[str, int]
    shorter_than_jump: int
    first_is_branch: int
    first_is_one_byte: int
    first_is_five_bytes: int
    aligned_16: int

    def share(self, count: int) -> float:
        return 100.0 * count / self.functions if self.functions else 0.0


def landing(image: ObjectFile, address: int) -> int:
    """Where `e9` over the first byte at ``address`` would lead: the next four bytes stay."""
    rel32 = int.from_bytes(image.read(address + 1, 4), "little", signed=True)
    return address + JUMP_LENGTH + rel32


def landing_is_free(image: ObjectFile, target: int) -> bool:
    """Whether the two pages at ``target`` can be mapped in a typical layout."""
    low = min(segment.address for segment in image.segments)
    high = max(segment.address + segment.memory_size for segment in image.segments)
    if image.kind == "executable":
        low, high = low - PAGE, high + HEAP_CLEARANCE
    else:
        low, high = low - LIBRARY_CLEARANCE, high + LIBRARY_CLEARANCE
    return target + PAGE < low or target >= high


def way(analysis: EntryAnalysis, address: int, size: int) -> str:
    """``byte``, ``swap``, ``hold`` or ``impossible`` for the function at ``address``."""
    image = analysis.image
    code = image.read(address, size)
    try:
        first = first_instruction(code, address)
    except NotRelocatable:
        return "impossible"
    function = OldFunction(f"{address:#x}", address, size)
    if landing_is_free(image, landing(image, address)):
        return "byte"
    if first.length >= JUMP_LENGTH:
        return "swap"
    if first.length >= 2 and analysis.padding(function) is not None:
        return "swap"
    if hold_template(code, address, analysis.branch_targets) is not None:
        return "hold"
    return "impossible"


def survey(image: ObjectFile) -> Survey:
    """Count the ways over all functions of ``image``, its .init, .fini and PLT left out."""
    analysis = EntryAnalysis(image)
    text = [s for s in image.sections if s.executable and s.name not in (".init", ".fini")]
    functions = [
        (start, size)
        for start, size in image.pieces
        if size and any(s.contains(start) for s in text if not s.name.startswith(".plt"))
    ]
    ways = dict.fromkeys(WAYS, 0)
    short = branch = one = five = aligned = 0
    for start, size in functions:
        ways[way(analysis, start, size)] += 1
        first = decode_one(image.read(start, 16), start)
        short += size < JUMP_LENGTH
        branch += is_valid(first) and (ends_flow(first) or first.is_jcc_short_or_near)
        one += first.len == 1
        five += first.len >= JUMP_LENGTH
        aligned += start % 16 == 0
    return Survey(
        image.name, image.build_id, len(functions), ways, short, branch, one, five, aligned
    )


def table(surveys: Iterable[Survey]) -> str:
    """The surveys as a table for people, one line per object, shares in percent."""
    head = ("object", "functions", *WAYS, "<5 bytes", "1-byte first", ">=5 first", "branch first")
    rows: list[tuple[str, ...]] = [head]
    for item in surveys:
        counts = (
            *(item.ways[w] for w in WAYS),
            item.shorter_than_jump,
            item.first_is_one_byte,
            item.first_is_five_bytes,
            item.first_is_branch,
        )
        rows.append(
            (item.name, str(item.functions), *(f"{item.share(count):.1f} %" for count in counts))
        )
    return text_table(rows)
