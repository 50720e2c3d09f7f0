# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of bytes that are never executed: the fill between one piece of code and the next.

A function whose first instruction has 2..4 bytes can be armed by a page swap that puts `jmp rel8`
at its entry, if the `jmp rel32` it leads to fits into such a run within reach.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection

from wfpatch_build.displacement import JUMP_LENGTH
from wfpatch_build.instructions import decode, ends_flow, is_padding, is_valid, last_instruction
from wfpatch_build.object_file import ObjectFile

_SHORT_JUMP = 2
_REACH = range(-128, 128)


def gaps(image: ObjectFile) -> list[tuple[int, int]]:
    """All (address, size) runs of at least 5 never-executed bytes between pieces, sorted.

    A run counts when the piece before it ends in a jump or return (not in a call: the return
    address would lie in the run) and all of its bytes are fill.
    """
    found: list[tuple[int, int]] = []
    for (start, size), (following, _) in zip(image.pieces, image.pieces[1:], strict=False):
        # The byte way reads the five bytes at an entry: fill behind a shorter one is in use.
        end = max(start + size, start + JUMP_LENGTH)
        if following - end < JUMP_LENGTH:
            continue
        section = image.section_at(start)
        if section is None or not section.contains(following):
            continue
        if not _last_ends_flow(image, start, size):
            continue
        fill = image.read(end, following - end)
        if all(is_valid(i) and is_padding(i) for i in decode(fill, end)):
            found.append((end, following - end))
    return found


def _last_ends_flow(image: ObjectFile, start: int, size: int) -> bool:
    last = last_instruction(image.read(start, size), start)
    return last is not None and ends_flow(last)


def reachable_padding(
    runs: list[tuple[int, int]], entry: int, taken: Collection[int]
) -> tuple[int, int] | None:
    """(address, size) of five bytes of a run that a `jmp rel8` at ``entry`` reaches, or None.

    ``taken`` are addresses of such places that other functions of the set use. The run in front of
    the entry is preferred: that keeps functions of different patches off each other's padding.
    """
    index = bisect.bisect_left(runs, (entry, 0))
    # The last bytes of a run in front and the first ones of a run behind are the nearest.
    places = [a + s - JUMP_LENGTH for a, s in reversed(runs[max(0, index - 10) : index])]
    places += [a for a, _ in runs[index : index + 10]]
    for place in places:
        in_reach = place - (entry + _SHORT_JUMP) in _REACH
        if in_reach and all(abs(place - other) >= JUMP_LENGTH for other in taken):
            return place, JUMP_LENGTH
    return None
