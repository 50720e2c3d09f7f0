# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand-encoded machine code: decoded by objdump, and run."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from dataclasses import dataclass

import pytest
from objdump_listing import decoded, meant
from wfpatch import machine_code, self_check_stub
from wfpatch.errors import Refused
from wfpatch.machine_code import (
    CALL_RECORD_SIZE,
    SYSCALL_RUNNER,
    Listing,
    continuation,
    continuation_size,
    entry_stub,
    jmp_absolute,
    jmp_rel8,
    jmp_rel32,
    landing,
    pack_call_records,
    syscall_runner,
    unpack_call_records,
)
from wfpatch.region import Region, RegionLayout

AT = 0x7F00_1234_5000


@dataclass(frozen=True)
class Fixup:
    offset: int
    addend: int
    target: int


@dataclass(frozen=True)
class Template:
    length: int
    code: bytes
    fixups: tuple
    falls_through: bool


@pytest.mark.parametrize(
    ("listing", "fields"),
    [
        (self_check_stub.CHECK_ROUTINE, self_check_stub._OFFSETS),
        (self_check_stub.THUNK, {"cell": 0x1F8}),
        (SYSCALL_RUNNER, {}),
    ],
    ids=["check", "thunk", "runner"],
)
def test_the_bytes_are_what_the_assembly_says(listing, fields, tmp_path):
    targets = {
        "descriptor_cell": AT - 0x20000,
        "row_cell": AT - 0x1FFF8,
        "entry_cells": AT - 0x10000,
        "dispatch_cell": AT - 0x20008,
        "plain_cell": AT + 0x7FF0,
        "check": AT - 0x400,
    }
    code = listing.assemble(AT, targets, fields)
    assert len(code) == listing.size
    seen = decoded(code, AT, tmp_path)
    wanted = meant(listing, AT, targets, fields)
    assert seen == wanted


def test_a_wrong_byte_is_noticed(tmp_path):
    """The comparison is itself compared: one register changed in the bytes."""
    code = bytearray(SYSCALL_RUNNER.assemble(AT))
    code[2] ^= 1
    assert decoded(bytes(code), AT, tmp_path) != meant(SYSCALL_RUNNER, AT, {}, {})


def test_a_listing_resolves_backward_and_forward():
    listing = Listing("""
    first:
      ; a comment
      e9 <second>     ; jmp <second>
      b8 {value:32}   ; mov ${value},%eax
    second:
      6a {small}      ; push ${small}
      e9 <first>      ; jmp <first>
    """)
    code = listing.assemble(0x1000, {}, {"value": 0x11223344, "small": 0x55})
    assert code.hex() == "e905000000b8443322116a55e9efffffff"


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_short_pieces(kind, tmp_path):
    target = AT + (0x7000_0000 if kind == "forward" else -0x7000_0000)
    near = AT + (0x70 if kind == "forward" else -0x70)
    assert decoded(jmp_rel32(AT, target), AT, tmp_path) == [(AT, f"jmp {target:#x}")]
    assert decoded(jmp_rel8(AT, near), AT, tmp_path) == [(AT, f"jmp {near:#x}")]
    assert decoded(entry_stub(AT, target), AT, tmp_path) == [(AT, f"jmp *%gs:{target:#x}(%rip)")]
    far = jmp_absolute(0x1122334455667788)
    assert decoded(far[:6], AT, tmp_path) == [(AT, f"jmp *{AT + 6:#x}(%rip)")]
    assert far[6:] == struct.pack("<Q", 0x1122334455667788)


def test_a_landing_is_as_short_as_it_can_be():
    assert len(landing(AT, AT + 5 + (1 << 31) - 1)) == 5
    assert len(landing(AT, AT + 5 + (1 << 31))) == 14
    assert len(landing(AT, AT + 5 - (1 << 31))) == 5
    assert len(landing(AT, AT + 5 - (1 << 31) - 1)) == 14


def test_a_jump_out_of_reach_is_refused():
    with pytest.raises(Refused) as caught:
        jmp_rel32(AT, AT + 5 + (1 << 31))
    assert caught.value.reason == "no_free_address"


def test_a_continuation_relocates_and_jumps_back(tmp_path):
    # lea 0x2000,%rax displaced from a function at 0x1000, both link-time addresses.
    bias = 0x5555_0000_0000
    template = Template(7, bytes.fromhex("488d0500000000"), (Fixup(3, -4, 0x2000),), True)
    at = bias - 0x10_0000
    code = continuation(template, at, bias + 0x1000, lambda address: bias + address)
    assert len(code) == continuation_size(template)
    assert decoded(code, at, tmp_path) == [
        (at, f"lea {bias + 0x2000:#x}(%rip),%rax"),
        (at + 7, f"jmp {bias + 0x1007:#x}"),
    ]


def test_a_continuation_that_does_not_fall_through_ends_with_its_code():
    template = Template(1, b"\xc3", (), False)
    assert continuation(template, AT, AT - 0x1000, lambda address: address) == b"\xc3"


@pytest.mark.parametrize("offset", [-1, 4, 100])
def test_a_fixup_outside_the_code_is_refused(offset):
    template = Template(7, bytes(7), (Fixup(offset, -4, 0),), True)
    with pytest.raises(Refused) as caught:
        continuation(template, AT, AT, lambda address: AT)
    assert caught.value.reason == "patch_elf_malformed"


def test_call_records_go_in_and_come_out():
    data = pack_call_records([(9, [1, 2, -1]), (39, [])])
    assert len(data) == 2 * CALL_RECORD_SIZE
    assert struct.unpack_from("<9Q", data) == (9, 1, 2, 2**64 - 1, 0, 0, 0, 0, 0)
    data = data[:56] + struct.pack("<qQ", -22, 1) + data[72:]
    assert unpack_call_records(data) == [(-22, True), (0, False)]


def run_calls(program, start, calls, done=()):
    """The records after the runner went through them in a thread with an rt_sigframe."""
    path = program("syscall_runner")
    running = start(path, ready=None)
    code = syscall_runner()
    records = bytearray(pack_call_records(calls))
    for index in done:
        struct.pack_into("<qQ", records, CALL_RECORD_SIZE * index + 56, 4242, 1)
    stdin = running.process.stdin
    stdin.write(struct.pack("<QQ", len(code), len(calls)) + code + records)
    stdin.flush()
    assert running.line() == "restored"
    data = bytes.fromhex(running.line())
    assert running.line() == "end"
    return unpack_call_records(data)


def test_the_runner_runs_all_records_and_restores_everything(program, start):
    results = run_calls(
        program,
        start,
        [
            (39, []),  # getpid
            (9, [0, 4096, 3, 0x22, -1, 0]),  # mmap: six arguments
            (3, [9999]),  # close of no descriptor
            (39, [1, 2, 3, 4, 5, 6]),
        ],
    )
    assert all(done for _, done in results)
    assert results[0][0] > 0
    assert results[0] == results[3]
    assert results[1][0] > 0
    assert results[1][0] % 4096 == 0
    assert results[2][0] == -errno.EBADF


def test_the_runner_skips_what_is_done(program, start):
    results = run_calls(program, start, [(39, []), (39, [])], done=[0])
    assert results[0] == (4242, True)
    assert results[1][0] != 4242


def test_the_runner_runs_nothing_when_there_is_nothing(program, start):
    assert run_calls(program, start, []) == []


def test_the_fixed_text_is_where_the_layout_says(tmp_path):
    region = Region(0x5555_0000_0000, RegionLayout())
    text = region.fixed_text()
    assert len(text) == region.stub(0) - region.text
    first = decoded(text[:1], region.check, tmp_path)
    assert first == [(region.check, "push %rbx")]
    runner = text[region.runner - region.text :]
    assert runner.startswith(syscall_runner())
    stub = region.slot_text(3)
    assert decoded(stub[:7], region.stub(3), tmp_path) == [
        (region.stub(3), f"jmp *%gs:{region.dispatch_cell(0, 3):#x}(%rip)")
    ]


def test_a_landing_runs():
    """A 14-byte landing, run here and now: it must reach a function anywhere in memory."""
    getpid = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        page[: len(jmp_absolute(getpid))] = jmp_absolute(getpid)
        handle = ctypes.c_char.from_buffer(page)
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(handle))
        assert call() == os.getpid()
        del handle, call


def test_nothing_of_the_stub_touches_vector_state():
    """MECHANISM: no vector instruction. None of the mnemonics used has a vector form."""
    allowed = {
        *("push", "pop", "mov", "cmp", "cmpq", "cmpb", "cmovae", "test", "testb", "lea", "movzbl"),
        *("movslq", "movabs", "movq", "add", "sub", "dec", "and", "xor", "shr", "shl", "lock"),
        *("syscall", "rdfsbase", "wrgsbase", "ret", "call", "jmp", "pushf", "popf", "ud2"),
        *("je", "jne", "jb", "jae", "jbe", "ja"),
    }
    for listing in (self_check_stub.CHECK_ROUTINE, self_check_stub.THUNK, SYSCALL_RUNNER):
        assert {line.assembly.split()[0] for line in listing.lines} <= allowed
        assert not any("mm" in line.assembly.split("%")[-1] for line in listing.lines)


def test_reach_is_signed():
    assert machine_code.reaches(0x1_0000_0000, 0x8000_0000)
    assert not machine_code.reaches(0x1_0000_0000, 0x7FFF_FFFF)
