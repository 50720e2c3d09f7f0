# SPDX-License-Identifier: GPL-3.0-or-later
"""Thread descriptors found without a stop, compared with what pthread_getattr_np(3) tells."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from wfpatch.elf_object import objects
from wfpatch.maps import MemoryMap
from wfpatch.memory import ProcessMemory
from wfpatch.self_check_stub import StackBounds
from wfpatch.tasks import Look, list_tasks, look
from wfpatch.thread_descriptor import ThreadDescriptors, find_descriptors, robust_list_head


def _find(pid: int, memory: Any = None, with_images: bool = True) -> ThreadDescriptors:
    memory = memory or ProcessMemory(pid)
    memory_map = MemoryMap.read(pid)
    images = objects(pid, memory, memory_map) if with_images else ()
    return find_descriptors(pid, list_tasks(pid), memory, memory_map, images)


def _asleep(pid: int, tid: int) -> Look:
    """How a thread looks once it sleeps: only then its sp is known."""
    deadline = time.monotonic() + 60
    while True:
        seen = look(pid, tid)
        assert seen is not None
        if not seen.running:
            return seen
        assert time.monotonic() < deadline, f"thread {tid} does not go to sleep"


def _spawn(process: Any, kinds: Iterable[str]) -> dict[int, StackBounds]:
    """Start threads; tid -> descriptor and stack without its guard, as the program tells them."""
    told = {}
    for kind in kinds:
        tid, tcb, low, _ = (int(word) for word in process.ask(f"spawn {kind}").split())
        told[tid] = StackBounds(tcb, low, tcb)
    return told


@pytest.fixture
def stacks(program: Any, start: Any) -> Any:
    return start(program("stacks"))


@pytest.mark.parametrize("count", [1, 8, 64])
def test_every_threads_bounds(stacks: Any, count: int) -> None:
    told = _spawn(stacks, ["default"] * count)
    found = _find(stacks.pid)
    assert {tid: found.bounds(tid) for tid in told} == told
    assert all(found.bounds_of(bounds.tcb) == bounds for bounds in told.values())
    for tid in told:
        seen = _asleep(stacks.pid, tid)
        assert told[tid].low < seen.sp < told[tid].high


@pytest.mark.parametrize("kind", ["small", "noguard", "supplied", "adjacent"])
@pytest.mark.parametrize("count", [1, 8])
def test_stacks_of_other_kinds(stacks: Any, kind: str, count: int) -> None:
    told = _spawn(stacks, [kind] * count)
    if kind == "adjacent":
        mappings = {MemoryMap.read(stacks.pid).containing(b.low) for b in told.values()}
        assert len(mappings) == 1, "the kernel shows them as one mapping"
    found = _find(stacks.pid)
    assert {tid: found.bounds(tid) for tid in told} == told


def test_a_mixture_of_stacks(stacks: Any) -> None:
    told = _spawn(stacks, ["default", "small", "supplied", "adjacent", "adjacent", "noguard"] * 3)
    found = _find(stacks.pid)
    assert {tid: found.bounds(tid) for tid in told} == told


def test_a_thread_born_later_is_known_too(stacks: Any) -> None:
    found = _find(stacks.pid)
    assert found.stackblock, "the main thread alone tells the offset"
    told = _spawn(stacks, ["default", "supplied"])
    assert {tid: found.bounds(tid) for tid in told} == told


def test_a_recycled_stack_is_read_anew(stacks: Any) -> None:
    first = _spawn(stacks, ["default"])
    found = _find(stacks.pid)
    assert stacks.ask("do 0 x") == "asleep"
    gone = next(iter(first))
    second = _spawn(stacks, ["small"])
    assert found.bounds(gone) is None
    assert {tid: found.bounds(tid) for tid in second} == second


@pytest.mark.parametrize("flags", [(), ("-static",), ("-no-pie",), ("-static-pie",)])
def test_the_main_threads_bounds(program: Any, start: Any, flags: tuple[str, ...]) -> None:
    process = start(program("stacks", *flags))
    tcb = int(process.ready_line.split()[1])
    found = _find(process.pid)
    assert found.tcb(process.pid) == tcb
    assert found.main is not None
    stack = MemoryMap.read(process.pid).stack
    assert stack is not None
    assert (found.main.tcb, found.main.high) == (tcb, stack.end)
    assert found.main.low < stack.start, "it may grow"
    seen = _asleep(process.pid, process.pid)
    assert found.main.low < seen.sp < found.main.high
    below = [m.end for m in MemoryMap.read(process.pid) if m.end <= stack.start]
    assert found.main.low >= max(below)
    told = _spawn(process, ["default", "default"])
    again = _find(process.pid)
    assert {tid: again.bounds(tid) for tid in told} == told
    assert found.stackblock in (0, again.stackblock)


def test_evidence_of_threads_and_of_the_main_thread_agree(stacks: Any) -> None:
    from_main = _find(stacks.pid).stackblock
    _spawn(stacks, ["default"] * 3)
    from_threads = _find(stacks.pid, with_images=False).stackblock
    assert from_main == from_threads != 0


class _Altered:
    """The process's memory, with 8-byte words altered."""

    def __init__(self, pid: int) -> None:
        self._memory = ProcessMemory(pid)
        self.words: dict[int, int] = {}

    def read(self, address: int, size: int) -> bytes:
        data = bytearray(self._memory.read(address, size))
        for place, word in self.words.items():
            if address <= place and place + 8 <= address + size:
                struct.pack_into("<Q", data, place - address, word)
        return bytes(data)


def test_one_contradicting_thread_is_no_proof(stacks: Any) -> None:
    told = _spawn(stacks, ["default"] * 4)
    offset = _find(stacks.pid).stackblock
    memory = _Altered(stacks.pid)
    victim = next(iter(told.values()))
    other = list(told.values())[-1]
    (others_block,) = struct.unpack("<Q", memory.read(other.tcb + offset, 8))
    # blocks that do not hold the descriptor, one of them all mapped; one that is not mapped; a
    # size that is too small
    for word, place in ((victim.tcb + 4096, 0), (others_block, 0), (4096, 0), (4096, 8)):
        memory.words = {victim.tcb + offset + place: word}
        assert _find(stacks.pid, memory).stackblock == 0


def test_two_candidates_are_no_proof(stacks: Any) -> None:
    """The same pair at a second offset in every thread: which one a later thread has is open."""
    told = _spawn(stacks, ["default"] * 3)
    memory = _Altered(stacks.pid)
    offset = _find(stacks.pid).stackblock
    for bounds in told.values():
        block, size, guard = struct.unpack("<QQQ", memory.read(bounds.tcb + offset, 24))
        for index, word in enumerate((block, size, guard)):
            memory.words[bounds.tcb + 0x400 + 8 * index] = word
    assert _find(stacks.pid, memory, with_images=False).stackblock == 0
    # the main thread's word decides between them
    assert _find(stacks.pid, memory).stackblock == offset


def test_a_wrong_thread_id_is_no_proof(stacks: Any) -> None:
    told = _spawn(stacks, ["default"] * 2)
    good = _find(stacks.pid)
    assert good.tid
    memory = _Altered(stacks.pid)
    memory.words[next(iter(told.values())).tcb + good.tid] = 1
    assert _find(stacks.pid, memory) == ThreadDescriptors(memory)


def test_a_descriptor_without_its_self_pointers_is_none(stacks: Any) -> None:
    told = _spawn(stacks, ["default"])
    ((tid, bounds),) = told.items()
    memory = _Altered(stacks.pid)
    found = _find(stacks.pid, memory)
    assert found.bounds(tid) == bounds
    memory.words[bounds.tcb + 16] = bounds.tcb + 64
    assert found.bounds(tid) is None
    assert found.bounds_of(bounds.tcb) is None
    assert found.bounds_of(0x1000) is None


def test_a_vfork_child_has_no_descriptor_of_its_own(program: Any, start: Any) -> None:
    process = start(program("vfork_sleeper"))
    child = int(process.ready_line.split()[1])
    assert any(task.tid == child for task in list_tasks(process.pid))
    found = _find(process.pid)
    assert robust_list_head(child) == 0
    assert found.bounds(child) is None
    assert found.main is not None


def test_it_stops_nobody(stacks: Any) -> None:
    """No thread runs, let alone stops: the run counts of sleepers stay as they are."""
    told = _spawn(stacks, ["default"] * 8)
    before = {tid: _asleep(stacks.pid, tid) for tid in told}
    found = _find(stacks.pid)
    assert all(found.bounds(tid) for tid in told)
    assert {tid: look(stacks.pid, tid) for tid in told} == before


def test_a_process_in_its_own_pid_namespace(program: Any, tmp_path: Path, start: Any) -> None:
    process = start("unshare", "--pid", "--fork", "--kill-child", program("stacks"))
    told = [process.ask("spawn default").split() for _ in range(2)]
    inside = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pid = int(inside[0])
    found = _find(pid)
    assert found.tid
    tids = [task.tid for task in list_tasks(pid) if task.tid != pid]
    bounds = sorted((found.bounds(tid) for tid in tids), key=lambda b: b.tcb if b else 0)
    assert [b and (b.tcb, b.low) for b in bounds] == sorted((int(t[1]), int(t[2])) for t in told)
    assert {int(t[0]) for t in told}.isdisjoint(tids), "the program sees other thread ids"
