# SPDX-License-Identifier: GPL-3.0-or-later
"""Scanning stacks: against a scan word by word, and on threads that sleep in known places."""

from __future__ import annotations

import random
import struct
import timeit
from pathlib import Path
from typing import Any

import pytest
import sample_patch
from wfpatch.elf_object import ObjectImage, objects
from wfpatch.maps import MemoryMap
from wfpatch.memory import ProcessMemory
from wfpatch.quiescence import (
    CodeRanges,
    Hit,
    Interval,
    Restorers,
    StackCopy,
    alternate_stack,
    copy_sleeper,
    first_old_word,
    words_inside,
)
from wfpatch.tasks import Look, list_tasks, look
from wfpatch.thread_descriptor import find_descriptors

NONE = CodeRanges(())


def _slow_scan(stack: bytes, base: int, intervals: list[tuple[int, int]]) -> list[Hit]:
    """Word by word, as the rule says it."""
    found = []
    for at in range(base + (-base & 7), base + len(stack) - 7, 8):
        (word,) = struct.unpack_from("<Q", stack, at - base)
        if any(low <= word <= high for low, high in intervals):
            found.append(Hit(at, word))
    return found


def _intervals(chance: random.Random) -> list[tuple[int, int]]:
    """Ranges as they occur: a few near each other, some far, at low and high addresses."""
    center = chance.choice([0x401000, 0x800000, 0x2000000, 0xFFFF_F000, 0x5555_5555_4000])
    center = chance.choice([center, 0x7F12_3456_7000, 0x1_0000_0000, chance.randrange(1 << 47)])
    found = []
    for _ in range(chance.choice([1, 2, 5, 40])):
        spread = chance.choice([1 << 12, 1 << 20, 1 << 31])
        low = max(0, center + chance.randrange(-spread, spread))
        found.append((low, low + chance.choice([0, 3, 100, 70_000, 5 << 20, 40 << 20])))
    return found


def _stack(chance: random.Random, intervals: list[tuple[int, int]], size: int) -> bytes:
    words = []
    for _ in range(size // 8 + 1):
        low, high = chance.choice(intervals)
        edge = chance.choice([low, high, low - 1, high + 1, (low + high) // 2, low ^ 1 << 40])
        other = chance.choice([0, chance.randrange(1 << 16), chance.randrange(1 << 64)])
        words.append(chance.choice([edge, other, other]) & (1 << 64) - 1)
    data = struct.pack(f"<{len(words)}Q", *words)
    return data[: max(0, size)]


def test_the_fast_scan_finds_what_the_slow_one_finds() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    hits = 0
    for number in range(1500):
        chance = random.Random(seed + number)
        intervals = _intervals(chance)
        stack = _stack(chance, intervals, chance.choice([0, 1, 7, 8, 9, 16, 100, 1000, 4096]))
        base = 0x7FFC_0000_0000 + chance.choice([0, 0, 1, 4, 7, 8])
        # shift the words so that those at aligned addresses are the ones meant
        stack = bytes(-base & 7) + stack
        expected = _slow_scan(stack, base, intervals)
        ranges = CodeRanges(intervals)
        assert ranges.scan(stack, base) == expected, f"seed {seed}, number {number}"
        assert words_inside(stack, base, intervals) == expected
        assert ranges.scan(stack, base, 1) == expected[:1]
        hits += len(expected)
    assert hits > 5000


def test_misaligned_words_are_no_hits() -> None:
    word = struct.pack("<Q", 0x5555_5555_4100)
    ranges = CodeRanges([(0x5555_5555_4000, 0x5555_5555_4FFF)])
    for skew in range(1, 8):
        stack = bytes(skew) + word + bytes(16 - skew)
        assert ranges.scan(stack, 0x1000) == []
        assert ranges.scan(stack, 0x1000 - skew + 8) == [Hit(0x1008, 0x5555_5555_4100)]


def test_ranges_merge_and_empty_ones_vanish() -> None:
    ranges = CodeRanges([(10, 20), (21, 30), (15, 18), (50, 40), (100, 100)])
    assert ranges.intervals == (Interval(10, 30), Interval(100, 100))
    assert [w in ranges for w in (9, 10, 30, 31, 45, 99, 100, 101)] == [
        False, True, True, False, False, False, True, False
    ]  # fmt: skip
    assert not CodeRanges([(5, 4)])
    assert CodeRanges([(5, 4)]).scan(bytes(64), 0) == []


def test_the_scan_is_much_faster_than_word_by_word() -> None:
    """A stack of 128 KiB; the floor is far below what was measured (20 times)."""
    chance = random.Random(1)
    intervals = [(0x5555_5555_5000, 0x5555_5557_0000), (0x5555_4000_0000, 0x5555_4001_0000)]
    stack = _stack(chance, [(0x7F12_0000_0000, 0x7F12_0100_0000)], 128 << 10)
    ranges = CodeRanges(intervals)

    def loop() -> list[int]:
        return [w for w in struct.unpack(f"<{len(stack) // 8}Q", stack) if w in ranges]

    fast = min(timeit.repeat(lambda: ranges.scan(stack, 0), number=5, repeat=5))
    slow = min(timeit.repeat(loop, number=5, repeat=3))
    assert fast * 5 < slow


class Sleepers:
    """The test program's threads, and how the applier sees them."""

    def __init__(self, process: Any, path: Path, kind: str = "default") -> None:
        self.process = process
        self.pid = process.pid
        self.memory = ProcessMemory(self.pid)
        self.tids: list[int] = []
        self.spawn(kind)
        memory_map = MemoryMap.read(self.pid)
        self.images = objects(self.pid, self.memory, memory_map)
        self.image: ObjectImage = next(i for i in self.images if i.main)
        self.restorers = Restorers.find(self.memory, self.images)
        self.descriptors = find_descriptors(
            self.pid, list_tasks(self.pid), self.memory, memory_map, self.images
        )
        self._program = sample_patch._Program(path)

    def spawn(self, kind: str) -> int:
        self.tids.append(int(self.process.ask(f"spawn {kind}").split()[0]))
        return len(self.tids) - 1

    def body(self, name: str) -> CodeRanges:
        """What counts as inside of a function: its entry does not."""
        function = self._program.function(name)
        address = self.image.address(function.address)
        return CodeRanges([(address + 1, address + function.size - 1)])

    def look(self, number: int) -> Look:
        """The thread, once it sleeps."""
        for _ in range(100_000):
            seen = look(self.pid, self.tids[number])
            assert seen is not None
            if not seen.running and seen.syscall == 0:
                return seen
        raise AssertionError(f"thread {number} does not go to sleep")

    def copy(self, number: int = 0) -> StackCopy | None:
        bounds = self.descriptors.bounds(self.tids[number])
        assert bounds is not None
        for _ in range(5):
            # On a busy machine the first look may see the last of its way to sleep.
            copy = copy_sleeper(
                self.look(number),
                self.memory,
                (bounds.low, bounds.high),
                lambda: look(self.pid, self.tids[number]),
            )
            if copy is not None:
                return copy
        return None

    def old_word(self, name: str, number: int = 0) -> Hit | None:
        copy = self.copy(number)
        assert copy is not None
        return first_old_word(copy, self.body(name), self.restorers)


@pytest.fixture
def sleepers(program: Any, start: Any) -> Any:
    path = Path(program("stacks"))
    return Sleepers(start(path), path)


def test_frames_of_a_sleeper_are_found(sleepers: Sleepers) -> None:
    for name in ("inner", "outer", "spin", "next"):
        found = sleepers.old_word(name)
        assert (found is not None) == (name == "next"), name
    assert sleepers.process.ask("do 0 o") == "asleep"
    for name in ("inner", "outer", "next", "work"):
        hit = sleepers.old_word(name)
        assert hit is not None, name
        assert hit.word in sleepers.body(name)
    assert sleepers.old_word("spin") is None


def test_a_signal_frames_saved_rip_counts(sleepers: Sleepers) -> None:
    """It is preceded by no call, and lies in the middle of a loop."""
    assert sleepers.process.ask("do 0 p") == "asleep"
    assert sleepers.process.ask("signal 0") == "asleep"
    hit = sleepers.old_word("spin")
    assert hit is not None
    address = sleepers.image.address(sleepers._program.function("spin").address)
    before = sleepers.memory.read(hit.word - 5, 5)
    assert before[0] != 0xE8, "a rule that asks for a call before it would miss it"
    assert hit.word > address
    copy = sleepers.copy()
    assert copy is not None
    assert alternate_stack(copy.data, copy.sp, sleepers.restorers) is None, "the normal stack"


def test_an_alternate_stack_in_the_threads_own_is_noticed(sleepers: Sleepers) -> None:
    """Frames below the alternate stack are not in [sp, high): the scan alone would miss them."""
    assert sleepers.process.ask("do 0 i") == "asleep"
    copy = sleepers.copy()
    assert copy is not None, "sp is within the thread's bounds"
    assert not sleepers.body("on_alternate").scan(copy.data, copy.sp)
    assert sleepers.old_word("on_alternate") is not None
    assert alternate_stack(copy.data, copy.sp, sleepers.restorers) is not None
    # without knowing the restorer the rule would not see it
    assert alternate_stack(copy.data, copy.sp, Restorers(())) is None


def test_an_alternate_stack_elsewhere_is_not_the_threads_own(sleepers: Sleepers) -> None:
    assert sleepers.process.ask("do 0 h") == "asleep"
    assert sleepers.copy() is None


def test_a_handler_on_the_normal_stack_hides_nothing(sleepers: Sleepers) -> None:
    assert sleepers.process.ask("do 0 s") == "asleep"
    assert sleepers.old_word("raise_inside") is not None
    assert sleepers.old_word("work") is not None
    assert sleepers.old_word("spin") is None


def test_a_thread_that_ran_in_between_is_not_taken(sleepers: Sleepers) -> None:
    bounds = sleepers.descriptors.bounds(sleepers.tids[0])
    assert bounds is not None
    first = sleepers.look(0)

    def after_a_round() -> Look:
        # it runs, and is back in the very same place
        assert sleepers.process.ask("do 0 z") == "asleep"
        again = sleepers.look(0)
        assert (again.sp, again.pc) == (first.sp, first.pc)
        return again

    assert copy_sleeper(first, sleepers.memory, (bounds.low, bounds.high), after_a_round) is None


def test_sp_outside_of_the_bounds_is_not_taken(sleepers: Sleepers) -> None:
    first = sleepers.look(0)
    again = lambda: look(sleepers.pid, sleepers.tids[0])  # noqa: E731
    for bounds in ((first.sp + 8, first.sp + 4096), (first.sp - 4096, first.sp), (0, 1 << 47)):
        assert copy_sleeper(first, sleepers.memory, bounds, again) is None
    assert copy_sleeper(first, sleepers.memory, (first.sp, first.sp + 64), again) is not None
    assert copy_sleeper(first, sleepers.memory, (first.sp, first.sp + 64), lambda: None) is None


def test_the_restorer_is_libcs(sleepers: Sleepers) -> None:
    libc = next(image for image in sleepers.images if image.soname == "libc.so.6")
    assert any(address in libc for address in sleepers.restorers.addresses)
    assert sleepers.process.ask("do 0 s") == "asleep"
    copy = sleepers.copy()
    assert copy is not None
    assert sleepers.restorers.frames(copy.data, copy.sp)


def test_a_frame_that_is_being_left_is_seen_by_the_pc() -> None:
    """At the restorer the frame's first word is popped: what is left begins at sp - 8."""
    restorers = Restorers([0x7F00_0000_1000])
    frame = bytearray(512)
    struct.pack_into("<Q", frame, 168, 0x1234_0000)  # the interrupted stack pointer, elsewhere
    popped = bytes(frame[8:])
    assert alternate_stack(popped, 0x8008, restorers, 0x7F00_0000_1000) == 0x8000
    assert alternate_stack(popped, 0x8008, restorers, 0x7F00_0000_1007) == 0x8000
    assert alternate_stack(popped, 0x8008, restorers, 0x7F00_0000_2000) is None
    struct.pack_into("<Q", frame, 168, 0x8000 + 300)
    assert alternate_stack(bytes(frame[8:]), 0x8008, restorers, 0x7F00_0000_1000) is None


def test_the_pc_counts(sleepers: Sleepers) -> None:
    copy = sleepers.copy()
    assert copy is not None
    here = CodeRanges([(copy.pc, copy.pc)])
    assert first_old_word(copy, here, sleepers.restorers) == Hit(0, copy.pc)
    assert first_old_word(copy, NONE, sleepers.restorers) is None
