# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory map: parsing what the kernel writes, and the questions asked of it."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest
from wfpatch.errors import Failed
from wfpatch.maps import MemoryMap

TEXT = """\
00400000-00401000 r--p 00000000 fe:00 1234                               /usr/bin/a b (deleted)
00401000-00403000 r-xp 00001000 fe:00 1234                               /usr/bin/a b (deleted)
00405000-00406000 rw-p 00000000 00:00 0 
01000000-01021000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000001000 rw-s 00000000 00:01 77                         /dev/zero\\012x
7ffff0000000-7ffff0021000 rw-p 00000000 00:00 0                          [stack]
7ffff0021000-7ffff0022000 ---p 00000000 00:00 0 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_fields_of_a_line():
    first, second, third, *_ = MemoryMap.parse(TEXT)
    assert (first.start, first.end, first.path, first.deleted) == (
        0x400000,
        0x401000,
        "/usr/bin/a b",
        True,
    )
    assert (second.offset, second.device, second.inode) == (0x1000, "fe:00", 1234)
    assert (second.readable, second.writable, second.executable) == (True, False, True)
    assert second.size == 0x2000
    assert not second.anonymous
    assert (third.path, third.anonymous, third.private) == ("", True, True)


def test_newline_in_a_path_is_undone_and_makes_no_second_line():
    shared = MemoryMap.parse(TEXT).containing(0x7F0000000000)
    assert shared.path == "/dev/zero\nx"
    assert not shared.private


def test_containing_looks_at_both_ends():
    maps = MemoryMap.parse(TEXT)
    assert maps.containing(0x401000).offset == 0x1000
    assert maps.containing(0x402FFF).offset == 0x1000
    assert maps.containing(0x403000) is None
    assert maps.containing(0x3FFFFF) is None
    assert maps.containing(0) is None


def test_free_and_gaps_agree():
    maps = MemoryMap.parse(TEXT)
    assert maps.free(0x403000, 0x405000)
    assert not maps.free(0x403000, 0x405001)
    assert not maps.free(0x402FFF, 0x404000)
    assert not maps.free(0x300000, 0x500000)
    assert list(maps.gaps(0x400800, 0x407000)) == [(0x403000, 0x405000), (0x406000, 0x407000)]
    assert list(maps.gaps(0x401000, 0x402000)) == []
    assert list(maps.gaps(0x100000, 0x200000)) == [(0x100000, 0x200000)]
    for low, high in maps.gaps(0, 1 << 47):
        assert maps.free(low, high)


def test_heap_end_and_stack():
    maps = MemoryMap.parse(TEXT)
    assert maps.heap_end == 0x1021000
    assert maps.stack.start == 0x7FFFF0000000
    assert MemoryMap.parse("").heap_end == 0
    assert MemoryMap.parse("").stack is None


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        "00401000-00400000 r-xp 0 00:00 0",
        "00400000-00401000 r-x 0 00:00 0",
        "00400000-00401000 r-xp 0 00:00",
        "zz-00401000 r-xp 0 00:00 0",
    ],
)
def test_what_is_no_map_is_refused(line):
    with pytest.raises(ValueError, match="not a line"):
        MemoryMap.parse(line)


def test_own_map_holds_a_fresh_mapping():
    area = mmap.mmap(-1, 3 * 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    found = MemoryMap.read(os.getpid()).containing(address)
    assert found is not None
    assert found.writable
    assert found.end >= address + 3 * 4096


def test_a_process_that_is_gone():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(Failed) as caught:
        MemoryMap.read(pid)
    assert caught.value.reason == "target_exited"
