# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of a process through one kept descriptor."""

from __future__ import annotations

import time

import pytest
from wfpatch.errors import Failed, Refused
from wfpatch.maps import MemoryMap
from wfpatch.memory import ProcessMemory


def test_read_and_write_whatever_the_protection(program, start):
    process = start(program("threads"), 1)
    with ProcessMemory(process.pid) as memory:
        text = next(m for m in MemoryMap.read(process.pid) if m.executable and m.inode)
        before = memory.read(text.end - 16, 16)
        memory.write(text.end - 16, b"\xcc" * 8)
        assert memory.read(text.end - 16, 16) == b"\xcc" * 8 + before[8:]
        memory.write(text.end - 16, before)


def test_unmapped_memory_is_named(program, start):
    process = start(program("threads"), 1)
    with ProcessMemory(process.pid) as memory:
        mapping = next(iter(MemoryMap.read(process.pid)))
        for address in (mapping.start - 8, 0, (1 << 63) + 8, 1 << 64):
            with pytest.raises(Failed) as caught:
                memory.read(address, 16)
            assert caught.value.reason == "memory_unreadable"
        with pytest.raises(Failed) as caught:
            memory.write(8, b"x")
        assert caught.value.reason == "memory_unwritable"


def test_what_procfs_does_not_write_is_asked_for(program, start):
    process = start(program("threads"), 1)
    asked = []
    with ProcessMemory(process.pid) as memory:
        memory.force = lambda address, data: asked.append((address, data)) or len(asked) < 2
        memory.write(8, b"by somebody else")
        with pytest.raises(Failed) as caught:
            memory.write(8, b"by nobody")
    assert caught.value.reason == "memory_unwritable"
    assert asked == [(8, b"by somebody else"), (8, b"by nobody")]


def test_a_read_over_the_end_of_a_mapping_is_no_short_read(program, start):
    process = start(program("threads"), 1)
    maps = MemoryMap.read(process.pid)
    stack = maps.stack
    assert maps.free(stack.end, stack.end + 8)
    with ProcessMemory(process.pid) as memory, pytest.raises(Failed) as caught:
        memory.read(stack.end - 8, 16)
    assert caught.value.reason == "memory_unreadable"


def test_a_word_is_stored_aligned_only(program, start):
    process = start(program("threads"), 1)
    with ProcessMemory(process.pid) as memory, pytest.raises(AssertionError, match="misaligned"):
        memory.write_u64(MemoryMap.read(process.pid).stack.start + 4, 1)


def test_aligned_words_do_not_tear(program, start):
    process = start(program("torn_words"))
    address, misaligned = (int(word) for word in process.ready_line.split()[1:])
    with ProcessMemory(process.pid) as memory:
        end = time.monotonic() + 2
        value = 0
        while time.monotonic() < end:
            for _ in range(100):
                value = (value + 1) & 0xFF
                memory.write_u64(address, value * 0x0101010101010101)
                memory.write(misaligned, bytes([value]) * 8)
    words = process.ask("report").split()
    reads, torn = int(words[1]), int(words[3])
    assert reads > 1000
    assert torn == 0


def test_the_descriptor_does_not_follow_an_exec(program, start):
    process = start(program("exec_self"), "leader", 0)
    with ProcessMemory(process.pid) as memory:
        address = MemoryMap.read(process.pid).stack.start
        memory.read(address, 8)
        process.say("go")
        assert process.line() == "again"
        for act in (lambda: memory.read(address, 8), lambda: memory.write(address, b"12345678")):
            with pytest.raises(Failed) as caught:
                act()
            assert caught.value.reason == "target_changed"
    # What is opened by the pid once more is the new program, whatever lies there.
    with ProcessMemory(process.pid) as memory:
        memory.read(MemoryMap.read(process.pid).stack.start, 8)


def test_a_process_that_has_exited(program, start):
    process = start(program("threads"), 1)
    memory = ProcessMemory(process.pid)
    address = MemoryMap.read(process.pid).stack.start
    process.kill()
    process.process.wait()
    with pytest.raises(Failed) as caught:
        memory.read(address, 8)
    assert caught.value.reason == "target_exited"
    memory.close()
    with pytest.raises(Failed) as caught:
        ProcessMemory(process.pid)
    assert caught.value.reason == "target_exited"


def test_without_the_right_to(program, start, monkeypatch):
    process = start(program("threads"), 1)

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("wfpatch.memory.os.open", refuse)
    with pytest.raises(Refused) as caught:
        ProcessMemory(process.pid)
    assert caught.value.reason == "no_permission"
