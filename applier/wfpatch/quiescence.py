# SPDX-License-Identifier: GPL-3.0-or-later
"""Local quiescence by scanning: is a word on a thread's stack an address inside old code?

A word inside is not proof of a frame (it may be left over from one that is gone), but no word is
proof of none: a frame's return address, and a signal frame's saved rip, lie on the stack, 8-byte
aligned (psABI 3.2.2). What counts as inside is said by closed intervals of words: of a function's
body the entry itself is none (it is a function's address, not a frame's), and its end is one only
if the body ends in a call; of other pieces the beginning counts too (docs/mechanism.md).

The scan holds for a copy of ``[sp, high)`` of the thread's *own* stack. A thread that handles a
signal on an alternate stack has older frames elsewhere: ``alternate_stack`` finds that out.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from .object_memory import Memory

MAX_STACK_COPY = 64 << 20

# The bytes of a word that may tell a code address from other words: 4096 and 2**47 bound them.
_TELLING_BYTES = (1, 2, 3, 4, 5)

# glibc's and musl's restorers: mov $15,%rax; syscall (and the shorter encoding of the same). The
# kernel pushes the restorer's address as a signal frame's return address.
_RESTORERS = (
    b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05",
    b"\xb8\x0f\x00\x00\x00\x0f\x05",
)
_RESTORERS_END = b"\x0f\x00\x00\x00\x0f\x05"  # common to both: one search for them
_FRAME_SP = 8 + 40 + 15 * 8  # struct rt_sigframe: pretcode, then uc.uc_mcontext.gregs[REG_RSP]


class Interval(NamedTuple):
    """The words ``low <= w <= high``."""

    low: int
    high: int


class Hit(NamedTuple):
    """A word inside, and the address where it lies."""

    at: int
    word: int


class CodeRanges:
    """Intervals of words, made ready for many scans. Immutable; equal parts are merged."""

    def __init__(self, intervals: Iterable[tuple[int, int]]) -> None:
        merged: list[tuple[int, int]] = []
        for low, high in sorted(i for i in intervals if i[0] <= i[1]):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        self.intervals = tuple(Interval(low, high) for low, high in merged)
        self._lows = [interval.low for interval in self.intervals]
        self._sieves = _sieves(self.intervals)

    def __bool__(self) -> bool:
        return bool(self.intervals)

    def __contains__(self, word: object) -> bool:
        if not isinstance(word, int):
            return False
        index = bisect.bisect_right(self._lows, word) - 1
        return index >= 0 and word <= self.intervals[index].high

    def scan(self, stack: bytes, base: int, most: int | None = None) -> list[Hit]:
        """The aligned words of ``stack``, which lies at ``base``, that are inside, in order.

        Only the first ``most`` are returned. ``base`` need not be aligned; a last part that is no
        whole word is left out.
        """
        found: list[Hit] = []
        for offset in self._candidates(stack, -base & 7):
            (word,) = struct.unpack_from("<Q", stack, offset)
            if word in self:
                found.append(Hit(base + offset, word))
                if len(found) == most:
                    break
        return found

    def _candidates(self, stack: bytes, skew: int) -> Iterator[int]:
        """Offsets of aligned words whose telling bytes are those of some interval, ascending.

        A sieve over one byte of all words at once: every eighth byte of the stack, translated to
        0 or 1; two sieves as integers, ANDed. All of that is a few passes in C.
        """
        count = (len(stack) - skew) // 8
        if count <= 0 or not self._sieves:
            return
        end = skew + 8 * count
        passed = 0
        for pair in self._sieves:
            both = -1
            for place, table in pair:
                plane = stack[skew + place : end : 8].translate(table)
                both &= int.from_bytes(plane, "little")
            passed |= both
        sieved = passed.to_bytes(count, "little")
        index = sieved.find(1)
        while index >= 0:
            yield skew + 8 * index
            index = sieved.find(1, index + 1)


_Sieve = tuple[int, bytes]  # which byte of the word, and its table


def _sieves(intervals: Sequence[Interval]) -> tuple[tuple[_Sieve, _Sieve], ...]:
    """Pairs of sieves, one of which lets each word of an interval pass, and few others.

    Most words of a stack are zero or small numbers, and most others are addresses that are alike at
    the top. Low intervals get pairs of their own, lest zero passes because of them: bytes that
    are zero in one interval tell nothing in combination with another one's.
    """
    bounds = (0, 1 << 24, 1 << 32, 1 << 64)
    pairs = []
    for start, stop in zip(bounds, bounds[1:]):
        ranked = []
        for place in _TELLING_BYTES:
            values: set[int] = set()
            for low, high in intervals:
                if low < stop and high >= start:
                    first = max(low, start) >> 8 * place
                    last = min(high, stop - 1) >> 8 * place
                    values.update(
                        block & 0xFF for block in range(first, min(last, first + 255) + 1)
                    )
            weight = len(values) + (128 if 0 in values else 0) + (32 if place == 5 else 0)
            ranked.append((weight, place, bytes(value in values for value in range(256))))
        if ranked[0][0]:
            best = sorted(ranked)
            pairs.append((best[0][1:], best[1][1:]))
    return tuple(pairs)


@lru_cache(maxsize=64)
def _ranges(intervals: tuple[tuple[int, int], ...]) -> CodeRanges:
    return CodeRanges(intervals)


def words_inside(
    stack: bytes, base: int, intervals: CodeRanges | Iterable[tuple[int, int]]
) -> list[Hit]:
    """The aligned words of a stack copied from ``base`` that lie in closed ``intervals``."""
    if isinstance(intervals, CodeRanges):
        return intervals.scan(stack, base)
    return _ranges(tuple((low, high) for low, high in intervals)).scan(stack, base)


# -- the thread's own stack ---------------------------------------------------------------------


class Text(Protocol):
    """An object's executable segments; elf_object.ObjectImage has them."""

    @property
    def text(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of each."""


def is_restorer(code: bytes) -> bool:
    """Whether code begins with the call of rt_sigreturn that ends a signal handler."""
    return code.startswith(_RESTORERS)


class Restorers:
    """Where signal handlers return to: the code that leaves a signal frame by rt_sigreturn."""

    def __init__(self, addresses: Iterable[int]) -> None:
        self.addresses = tuple(sorted(addresses))
        self._pushed = CodeRanges((address, address) for address in self.addresses)
        longest = max(len(code) for code in _RESTORERS)
        self._inside = CodeRanges((address, address + longest - 1) for address in self.addresses)

    @classmethod
    def find(cls, memory: Memory, images: Iterable[Text]) -> Restorers:
        """Those of a process, by the code that lies there.

        Linear in the size of all text; once for each process (libc takes about a millisecond).
        """
        found = set()
        for image in images:
            for start, end in image.text:
                code = memory.read(start, end - start)
                place = code.find(_RESTORERS_END)
                while place >= 0:
                    for restorer in _RESTORERS:
                        begin = place + len(_RESTORERS_END) - len(restorer)
                        if begin >= 0 and code.startswith(restorer, begin):
                            found.add(start + begin)
                    place = code.find(_RESTORERS_END, place + 1)
        return cls(found)

    def frames(self, stack: bytes, base: int, pc: int | None = None) -> list[int]:
        """Addresses of what may be signal frames in a copy of a stack.

        ``pc`` is the thread's: in the restorer itself, the frame's first word is already popped.
        """
        found = [hit.at for hit in self._pushed.scan(stack, base)]
        if pc is not None and pc in self._inside:
            found.insert(0, base - 8)
        return found


def alternate_stack(
    stack: bytes, base: int, restorers: Restorers, pc: int | None = None
) -> int | None:
    """The address of a signal frame in the copy whose interrupted stack lies elsewhere.

    The kernel builds a signal frame below the interrupted stack pointer, unless it switches to
    an alternate stack; that one may lie in the thread's own stack, with older frames below it which
    ``[sp, high)`` does not hold. A frame that is gone may look the same: then this errs on the side
    of caution. None if there is no such frame.
    """
    end = base + len(stack)
    for at in restorers.frames(stack, base, pc):
        place = at - base + _FRAME_SP
        if place + 8 > len(stack):
            return at
        (interrupted,) = struct.unpack_from("<Q", stack, place)
        if not at < interrupted <= end:
            return at
    return None


class Look(Protocol):
    """What a look at a task tells (tasks.Look)."""

    @property
    def running(self) -> bool: ...

    @property
    def sp(self) -> int: ...

    @property
    def pc(self) -> int: ...

    @property
    def stamp(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class StackCopy:
    """The used part ``[sp, high)`` of a thread's own stack, and its pc, all of one moment."""

    sp: int
    pc: int
    data: bytes

    @property
    def high(self) -> int:
        return self.sp + len(self.data)


def copy_sleeper(
    first: Look,
    memory: Memory,
    bounds: tuple[int, int],
    look_again: Callable[[], Look | None],
) -> StackCopy | None:
    """A sleeping thread's stack, copied without a stop; None when it is not of one moment.

    ``first`` is a look taken before, ``bounds`` are ``[low, high)`` of the thread's own stack. The
    copy counts if a second look shows the same run count and place: then the thread did not run in
    between. (The counters of status alone miss one that runs now; stamps are of schedstat.)
    """
    low, high = bounds
    if first.running or first.sp % 8 or not low <= first.sp < high:
        return None
    if high - first.sp > MAX_STACK_COPY:
        return None
    data = memory.read(first.sp, high - first.sp)
    second = look_again()
    if second is None or second.running:
        return None
    if (second.stamp, second.sp, second.pc) != (first.stamp, first.sp, first.pc):
        return None
    return StackCopy(first.sp, first.pc, data)


def first_old_word(copy: StackCopy, old: CodeRanges, restorers: Restorers) -> Hit | None:
    """Why a copy does not show its thread quiescent; None if it does.

    ``old`` is all that must not be in use: old code, and stub and landing text. A hit at address 0
    is the pc itself; one with word 0 is a signal frame on an alternate stack.
    """
    if copy.pc in old:
        return Hit(0, copy.pc)
    frame = alternate_stack(copy.data, copy.sp, restorers, copy.pc)
    if frame is not None:
        return Hit(frame, 0)
    hits = old.scan(copy.data, copy.sp, 1)
    return hits[0] if hits else None
