# SPDX-License-Identifier: GPL-3.0-or-later
"""Unwinding, against the truth (a program stepped through, its calls counted) and against gdb."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sample_patch
from iced_x86 import Decoder, FlowControl
from test_link import SOURCE, Linkable, _work
from wfpatch.backend.ptrace_requests import UserRegisters
from wfpatch.dwarf_expression import CannotUnwind, Reader, evaluate
from wfpatch.elf_header import PT_GNU_EH_FRAME
from wfpatch.elf_object import ObjectImage, objects
from wfpatch.frame_information import ListedTable, Row
from wfpatch.maps import MemoryMap
from wfpatch.memory import ProcessMemory
from wfpatch.object_memory import ObjectMemory
from wfpatch.patch_elf import read_patch
from wfpatch.tasks import look
from wfpatch.unwind import (
    DWARF_NUMBERS,
    CopiedCode,
    StackMemory,
    Unwinder,
    Unwound,
    sleeper_registers,
    stop_registers,
)

#: Objects whose code is asked for grounds, beside the program itself.
CHECKED = ("libc.so.6", "ld-linux-x86-64.so.2")
RIP, RSP, RBP = (DWARF_NUMBERS[name] for name in ("rip", "rsp", "rbp"))
_PTRACE = ctypes.CDLL(None, use_errno=True).ptrace
_PTRACE.restype = ctypes.c_long
_SEIZE, _INTERRUPT, _SINGLESTEP, _GETREGS, _DETACH, _CONT = 0x4206, 0x4207, 9, 12, 17, 7


def _ptrace(request: int, tid: int, address: int = 0, data: Any = 0) -> None:
    result = _PTRACE(ctypes.c_long(request), ctypes.c_long(tid), ctypes.c_void_p(address), data)
    assert result >= 0, os.strerror(ctypes.get_errno())


def _registers(tid: int) -> UserRegisters:
    registers = UserRegisters()
    _ptrace(_GETREGS, tid, 0, ctypes.byref(registers))
    return registers


@contextmanager
def _stopped(tid: int) -> Iterator[UserRegisters]:
    """A thread, stopped, for as long as it is looked at."""
    _ptrace(_SEIZE, tid)
    _ptrace(_INTERRUPT, tid)
    os.waitpid(tid, 0x40000000)  # __WALL
    try:
        yield _registers(tid)
    finally:
        _ptrace(_DETACH, tid)


class Target:
    """A process and the unwinder for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.memory = ProcessMemory(pid)
        self.map = MemoryMap.read(pid)
        self.images = objects(pid, self.memory, self.map)
        self.unwinder = Unwinder(self.memory, self.images)

    def stack(self, sp: int, beyond: bool = True) -> StackMemory:
        mapping = self.map.containing(sp)
        assert mapping is not None
        data = self.memory.read(sp, mapping.end - sp)
        return StackMemory(sp, data, self.memory if beyond else None)

    def unwind(self, registers: UserRegisters) -> Unwound:
        return self.unwinder.unwind(stop_registers(registers), self.stack(registers.rsp))


def _pcs(unwound: Unwound) -> list[int]:
    return [frame.pc for frame in unwound.frames]


@pytest.mark.parametrize("flags", [("-Wl,-z,lazy",), ("-Wl,-z,now", "-fno-omit-frame-pointer")])
def test_every_instruction_of_a_program(program: Any, flags: tuple[str, ...]) -> None:
    """Stepped through, calls and returns keep the true stack: the unwinder must tell the same."""
    pid = os.posix_spawn(program("unwound", *flags), ["unwound"], {"LD_BIND_NOW": ""})
    try:
        _, status = os.waitpid(pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        # seized while stopped by SIGSTOP, then let go on to a stop of ours
        _ptrace(_SEIZE, pid)
        _ptrace(_INTERRUPT, pid)
        os.kill(pid, signal.SIGCONT)
        os.waitpid(pid, 0x40000000)
        _step_through(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0x40000000)


def _grounds_suffice(target: Target, registers: UserRegisters, unwound: Unwound) -> bool:
    """Whether there are grounds; the same frames must follow from them and nothing else."""
    stack = target.stack(registers.rsp, beyond=False)
    known = stop_registers(registers)
    grounds = target.unwinder.grounds(known, stack)
    if grounds is None:
        return False
    kept = {RIP, RSP, *([RBP] if grounds.frame_pointer else [])}
    other = {number: value if number in kept else 0xDEAD for number, value in known.items()}
    data = bytearray(b"\xa5" * len(stack.data))
    for address, value in grounds.words:
        data[address - stack.base : address - stack.base + 8] = value.to_bytes(8, "little")
    followed = frozenset(kept - {RIP, RSP})
    again = target.unwinder.unwind(other, StackMemory(stack.base, bytes(data)), followed)
    assert again.frames == unwound.frames, (hex(registers.rip), grounds)
    assert len(grounds.words) <= 3 * len(unwound.frames)
    return True


def _step_through(pid: int) -> None:
    target = Target(pid)
    first = target.unwind(_registers(pid))
    assert first.complete, first.failure
    calls = _pcs(first)[1:]  # return addresses, innermost first
    main = next(image for image in target.images if image.main)
    # _start, and libc's frames in between, are main's callers
    callers = len(calls) - next(i for i, call in enumerate(calls) if call in main) - 1
    assert callers in (2, 3)
    decoded: dict[int, Any] = {}
    seen_in: dict[str, int] = {}
    aliases = 0
    asked = sufficient = 0
    images = [image for image in target.images if image.main or image.soname in CHECKED]
    deepest = 0
    registers = _registers(pid)
    for step in range(40_000):
        unwound = target.unwind(registers)
        pc = registers.rip
        assert unwound.complete, f"step {step} at {pc:#x}: {unwound.failure}"
        assert _pcs(unwound) == [pc, *calls], f"step {step} at {pc:#x}"
        addresses = [frame.cfa for frame in unwound.frames]
        assert addresses == sorted(set(addresses))
        deepest = max(deepest, len(calls))
        for image in target.images:
            if pc in image:
                name = image.soname or "main"
                seen_in[name] = seen_in.get(name, 0) + 1
        # Not in the vDSO: there who is slow reads the clock again, as it has changed meanwhile.
        if step % 11 == 0 and any(pc in image for image in images):
            asked += 1
            sufficient += _grounds_suffice(target, registers, unwound)
        if pc in main and step % 7 == 0:
            # the same instruction, copied elsewhere, has the same callers
            copy = CopiedCode(0x10_0000 + 15, ((0x10_0000, pc),))
            elsewhere = Unwinder(target.memory, target.images, copies=[copy])
            moved = dict(stop_registers(registers))
            moved[RIP] = 0x10_0000
            other = elsewhere.unwind(moved, target.stack(registers.rsp))
            assert _pcs(other) == [0x10_0000, *calls]
            aliases += 1
        if pc not in decoded:
            decoded[pc] = next(iter(Decoder(64, target.memory.read(pc, 15), ip=pc)))
        instruction = decoded[pc]
        _ptrace(_SINGLESTEP, pid)
        _, status = os.waitpid(pid, 0x40000000)
        if not os.WIFSTOPPED(status):
            break
        registers = _registers(pid)
        if instruction.is_call_near or instruction.is_call_near_indirect:
            calls.insert(0, instruction.next_ip)
        elif instruction.flow_control == FlowControl.RETURN:
            assert calls.pop(0) == registers.rip
            if len(calls) < callers:
                break  # main has returned
    assert deepest >= 8
    assert aliases > 10
    print(f"grounds for {sufficient} of {asked} places")
    assert sufficient > asked / 2 > 100
    assert seen_in["libc.so.6"] > 1000
    assert seen_in["linux-vdso.so.1"] > 10, "clock_gettime does not enter the kernel"
    if not main.bind_now:
        assert seen_in["ld-linux-x86-64.so.2"] > 500, "lazy binding was seen"


GDB_SCRIPT = """
import gdb
gdb.execute("set backtrace past-main on")
gdb.execute("set backtrace past-entry on")
gdb.execute("set confirm off")
for thread in sorted(gdb.selected_inferior().threads(), key=lambda t: t.ptid[1]):
    thread.switch()
    frame, pcs = gdb.newest_frame(), []
    while frame is not None:
        if frame.type() != gdb.INLINE_FRAME and frame.type() != gdb.TAILCALL_FRAME:
            pcs.append(hex(frame.pc()))
        frame = frame.older()
    print("FRAMES", thread.ptid[1], *pcs)
"""


def _gdb_frames(pid: int, tmp_path: Path) -> dict[int, list[int]]:
    script = tmp_path / "frames.py"
    script.write_text(GDB_SCRIPT)
    done = subprocess.run(
        [
            "gdb",
            "-nx",
            "-batch",
            "-p",
            str(pid),
            "-ex",
            "set debuginfod enabled off",
            "-x",
            str(script),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "DEBUGINFOD_URLS": ""},
    )
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("FRAMES"):
            _, tid, *pcs = line.split()
            found[int(tid)] = [int(pc, 16) for pc in pcs]
    assert found, done.stderr
    return found


def _asleep(pid: int, tids: list[int]) -> None:
    deadline = time.monotonic() + 30
    for tid in tids:
        while (seen := look(pid, tid)) is None or seen.running:
            assert time.monotonic() < deadline, f"thread {tid} does not go to sleep"


def _agree(pid: int, tids: list[int], tmp_path: Path) -> dict[int, Unwound]:
    """Unwind each thread and compare with gdb; all must sleep."""
    _asleep(pid, tids)
    target = Target(pid)
    ours = {}
    for tid in tids:
        with _stopped(tid) as registers:
            ours[tid] = target.unwind(registers)
    _asleep(pid, tids)
    theirs = _gdb_frames(pid, tmp_path)
    for tid, unwound in ours.items():
        assert unwound.complete, unwound.failure
        assert _pcs(unwound) == theirs[tid]
    return ours


needs_gdb = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is the independent reader")


@needs_gdb
def test_signal_frames_and_alternate_stacks(program: Any, start: Any, tmp_path: Path) -> None:
    path = Path(program("stacks"))
    process = start(path)
    tids = [int(process.ask("spawn default").split()[0]) for _ in range(7)]
    for number, what in enumerate("oshipn"):
        assert process.ask(f"do {number} {what}") == "asleep"
    assert process.ask("signal 4") == "asleep"
    ours = _agree(process.pid, [process.pid, *tids], tmp_path)
    image = next(i for i in Target(process.pid).images if i.main)
    symbols = sample_patch._Program(path)

    def inside(number: int, name: str) -> list[bool]:
        """For each frame within the function, whether it was interrupted."""
        function = symbols.function(name)
        low = image.address(function.address)
        frames = ours[tids[number]].frames
        return [f.interrupted for f in frames if low <= f.pc < low + function.size]

    assert inside(0, "inner") == inside(0, "outer") == [False]
    assert inside(1, "raise_inside") == [True], "signal on the normal stack"
    assert inside(2, "on_alternate") == [False], "alternate stack on the heap"
    assert inside(2, "raise_inside") == [True]
    assert inside(3, "alternate_inside") == [False], "alternate stack in the own one"
    assert inside(3, "raise_inside") == [True]
    assert inside(4, "spin") == [True], "interrupted in a loop"
    for number in (0, 1, 2, 3, 4, 6):
        assert inside(number, "work") == [False]
    assert inside(6, "inner") == []
    function = symbols.function("ends_in_call")
    end = image.address(function.address) + function.size
    assert end in [frame.pc for frame in ours[tids[5]].frames], "it ends in a call"


@needs_gdb
def test_an_interpreter_with_threads(start: Any, tmp_path: Path) -> None:
    code = (
        "import threading,sys\n"
        "e=threading.Event()\n"
        "def f(n):\n"
        "    f(n-1) if n else e.wait()\n"
        "for i in (1,5,40):\n"
        "    threading.Thread(target=lambda i=i: sorted([i],key=f),daemon=True).start()\n"
        "print('ready',flush=True)\n"
        "sys.stdin.read()"
    )
    process = start(Path(sys.executable).resolve(), "-c", code)
    tids = [int(tid) for tid in os.listdir(f"/proc/{process.pid}/task")]
    assert len(tids) == 4
    ours = _agree(process.pid, tids, tmp_path)
    assert max(len(unwound.frames) for unwound in ours.values()) > 20


def test_without_a_stop_what_is_told_is_true(program: Any, start: Any) -> None:
    """Of a sleeper only pc and sp are known: the frames told are the first of all there are."""
    process = start(program("stacks"))
    tids = [int(process.ask("spawn default").split()[0]) for _ in range(3)]
    for number, what in enumerate("os"):
        assert process.ask(f"do {number} {what}") == "asleep"
    _asleep(process.pid, tids)
    target = Target(process.pid)
    for tid in tids:
        seen = look(process.pid, tid)
        assert seen is not None
        partial = target.unwinder.unwind(
            sleeper_registers(seen.pc, seen.sp), target.stack(seen.sp, beyond=False)
        )
        with _stopped(tid) as registers:
            full = target.unwind(registers)
        assert full.complete
        assert len(partial.frames) >= 1
        told = _pcs(partial)
        assert told == _pcs(full)[: len(told)]
        assert partial.complete == (len(told) == len(full.frames))
        assert partial.complete or partial.failure


def test_a_stack_cut_short_is_a_failure(program: Any, start: Any) -> None:
    process = start(program("stacks"))
    tid = int(process.ask("spawn default").split()[0])
    assert process.ask("do 0 o") == "asleep"
    _asleep(process.pid, [tid])
    target = Target(process.pid)
    with _stopped(tid) as registers:
        whole = target.stack(registers.rsp)
        known = stop_registers(registers)
        full = target.unwinder.unwind(known, whole)
    assert full.complete
    last = full.frames[-2].cfa - whole.base
    for size in (0, 8, 64, last - 8, last - 1):
        short = target.unwinder.unwind(known, StackMemory(whole.base, whole.data[:size]))
        assert not short.complete
        assert short.failure
        assert _pcs(short) == _pcs(full)[: len(short.frames)]
    assert target.unwinder.unwind(known, StackMemory(whole.base, whole.data)).complete


def test_code_without_frame_information_is_a_failure(program: Any, start: Any) -> None:
    process = start(program("stacks"))
    target = Target(process.pid)
    with _stopped(process.pid) as registers:
        known = stop_registers(registers)
        stack = target.stack(registers.rsp)
    for pc in (0, 0x10_0000, (1 << 47) - 4096, registers.rsp):
        result = target.unwinder.unwind({**known, RIP: pc}, stack)
        assert not result.complete
        assert result.frames == ()
        assert "no frame information" in (result.failure or "")


def test_new_code_in_a_region_is_unwound_by_its_own_information(program: Any, start: Any) -> None:
    """A thread sleeps in code that was linked and loaded; its callers are told through it."""
    path = Path(program("linkable"))
    process = start(path)
    target = Linkable(process, path.name)
    body = "\tchar byte[64] = {0};\n\textern long read(int, void *, unsigned long);\n"
    body += "\treturn (int)read(0, byte, 64) + byte[0] + x;"
    old, new = _work(body)
    patch = read_patch(sample_patch.build(path, SOURCE.replace(old, new), ["work"]))
    linked = target.load(patch)
    assert linked.eh_frame is not None
    process.say(f"call {linked.entry('work')} 5")
    deadline = time.monotonic() + 30
    piece = linked.functions[0].pieces[0]
    region = Unwinder(target.memory, target.images, [linked.eh_frame])
    while True:
        assert time.monotonic() < deadline
        _asleep(process.pid, [process.pid])
        with _stopped(process.pid) as registers:
            known = stop_registers(registers)
            stack = Target(process.pid).stack(registers.rsp)
        unwound = region.unwind(known, stack)
        if any(piece.low <= frame.pc <= piece.high for frame in unwound.frames):
            break
    assert unwound.complete, unwound.failure
    main = sample_patch._Program(path).function("main")
    low = target.image.address(main.address)
    assert any(low <= frame.pc <= low + main.size for frame in unwound.frames)
    without = Unwinder(target.memory, target.images).unwind(known, stack)
    assert not without.complete
    assert _pcs(without) == _pcs(unwound)[: len(without.frames)]


class _Altered:
    def __init__(self, memory: ProcessMemory) -> None:
        self.memory = memory
        self.changes: dict[int, int] = {}

    def read(self, address: int, size: int) -> bytes:
        data = bytearray(self.memory.read(address, size))
        for place, value in self.changes.items():
            if address <= place < address + size:
                data[place - address] = value
        return bytes(data)


def test_hostile_frame_information_does_no_harm(program: Any, start: Any) -> None:
    """2,000 alterations of .eh_frame and its index; WFPATCH_FUZZ_SEED repeats a run."""
    path = Path(program("stacks"))
    process = start(path)
    tid = int(process.ask("spawn default").split()[0])
    assert process.ask("do 0 i") == "asleep"
    _asleep(process.pid, [tid])
    target = Target(process.pid)
    main = next(image for image in target.images if image.main)
    header = main.header.of_type(PT_GNU_EH_FRAME)[0]
    start_of_index = main.address(header.address)
    with _stopped(tid) as registers:
        known = stop_registers(registers)
        stack = target.stack(registers.rsp)
    truth = target.unwinder.unwind(known, stack)
    assert truth.complete
    seed = int(os.environ.get("WFPATCH_FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    failures = 0
    for number in range(2000):
        chance = random.Random(seed * 2000 + number)
        memory = _Altered(target.memory)
        for _ in range(chance.randrange(1, 12)):
            # .eh_frame follows its index
            place = start_of_index + chance.randrange(header.size + 0x300)
            memory.changes[place] = chance.randrange(256)
        images = [_with_memory(image, memory, target) for image in target.images]
        started = time.process_time()
        try:
            result = Unwinder(memory, images).unwind(known, stack)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, alteration {number}: {error!r}") from error
        assert time.process_time() - started < 2, f"seed {seed}, alteration {number}"
        failures += not result.complete
    assert 50 < failures < 1990


def _with_memory(image: ObjectImage, memory: Any, target: Target) -> ObjectImage:
    """The object with other memory; only the altered one is read anew."""
    if not image.main:
        return image
    from wfpatch.elf_object import read_object

    mapping = target.map.containing(image.base)
    assert mapping is not None
    again = read_object(memory, mapping, True)
    assert again is not None
    return again


def test_expressions() -> None:
    def run(code: bytes, *stack: int) -> int:
        memory = {0x1000: b"\x01\x02\x03\x04\x05\x06\x07\x08"}
        return evaluate(code, lambda n: 100 + n, lambda a, s: memory[a][:s], stack)

    assert run(bytes([0x30 + 7])) == 7  # lit7
    assert run(bytes([0x70 + 7, 8])) == 115  # breg7 8
    assert run(bytes([0x92, 16, 0x78])) == 108  # bregx 16, -8
    assert run(bytes([0x0A, 0, 0x10, 0x06])) == 0x0807060504030201  # const2u, deref
    assert run(bytes([0x0A, 0, 0x10, 0x94, 2])) == 0x0201
    assert run(bytes([0x09, 0xFF])) == (1 << 64) - 1  # const1s -1
    assert run(bytes([0x23, 0x85, 0x01]), 5) == 5 + 0x85  # plus_uconst
    assert run(bytes([0x22]), 3, 4) == 7
    assert run(bytes([0x1C]), 3, 4) == (1 << 64) - 1
    assert run(bytes([0x1A]), 6, 3) == 2
    assert run(bytes([0x24]), 1, 3) == 8
    assert run(bytes([0x26]), (1 << 64) - 8, 1) == (1 << 64) - 4
    assert run(bytes([0x2A]), 3, 3) == 1
    assert run(bytes([0x2D]), (1 << 64) - 1, 0) == 1, "comparisons are signed"
    assert run(bytes([0x12, 0x22]), 21) == 42  # dup, plus
    assert run(bytes([0x14, 0x1C]), 9, 2) == (2 - 9) % (1 << 64)  # over, minus
    assert run(bytes([0x16, 0x1C]), 2, 9) == 7  # swap, minus
    assert run(bytes([0x17]), 1, 2, 3) == 2, "rot: the top goes below the next two"
    assert run(bytes([0x2F, 1, 0, 0x31, 0x32])) == 2  # skip over lit1
    assert run(bytes([0x30, 0x28, 1, 0, 0x31])) == 1  # bra not taken
    # the PLT's: rsp + 8 + (((rip & 15) >= 11) << 3)
    plt = bytes([0x77, 8, 0x80, 0, 0x3F, 0x1A, 0x3B, 0x2A, 0x33, 0x24, 0x22])
    assert run(plt) == 107 + 8 + (8 if 116 & 15 >= 11 else 0)


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x22",
        b"\x2f\xfd\xff",
        b"\x2f\x7f\x7f",
        b"\xf0",
        b"\x30" * 99,
        b"\x0e\x00",
        b"\x15\x09",
    ],
)
def test_expressions_that_cannot_be_computed(code: bytes) -> None:
    def unknown(*_: int) -> Any:
        raise CannotUnwind("not known")

    with pytest.raises(CannotUnwind):
        evaluate(code, unknown, unknown)


class _Bytes:
    """Memory of given bytes."""

    def __init__(self, start: int, data: bytes) -> None:
        self.start, self.data = start, data

    def read(self, address: int, size: int) -> bytes:
        return self.data[address - self.start : address - self.start + size]


def _row(code: bytes, pc: int, augmentation: bytes = b"zR", cie_code: bytes = b"") -> Row | None:
    """The row at ``pc`` of an FDE for [0x1000, 0x1100) with those instructions."""
    rest = b"\x01\x04"  # one byte of augmentation data: pointers are udata8, absolute
    cie = struct.pack("<IB", 0, 1) + augmentation + b"\0\x01\x78\x10" + rest
    cie += b"\x0c\x07\x08\x90\x01" + cie_code  # def_cfa rsp+8, ra at cfa-8
    cie += bytes(-len(cie) % 4)
    fde = struct.pack("<IQQ", len(cie) + 8, 0x1000, 0x100) + b"\0" + code
    fde += bytes(-len(fde) % 4)
    data = struct.pack("<I", len(cie)) + cie + struct.pack("<I", len(fde)) + fde + bytes(64)
    table = ListedTable(ObjectMemory(_Bytes(0, data), 0, len(data), "sample"), 0, len(data))
    assert table.extent == (0x1000, 0x1100)
    return table.row(pc)


def test_frame_instructions() -> None:
    """Those that compilers for x86-64 seldom or never use are tried on bytes written by hand."""
    saved = b"\x86\x02"  # offset rbp at cfa-16
    row = _row(b"\x41\x0e\x10" + saved + b"\x42\x0a\xc6\x0e\x08\x41\x0b", 0x1000)
    assert row is not None
    assert row.cfa == (7, 8, None)
    assert row.rules == {16: ("offset", -8, b"")}
    code = b"\x41\x0e\x10" + saved + b"\x42\x0a\xc6\x0e\x08\x41\x0b"
    rows = [_row(code, 0x1000 + i) for i in range(5)]
    assert [r and r.cfa.offset for r in rows] == [8, 16, 16, 8, 16]
    assert [r and r.rules.get(6) for r in rows] == [
        None, ("offset", -16, b""), ("offset", -16, b""), None, ("offset", -16, b"")
    ]  # fmt: skip
    # restore goes back to the CIE's rule, where there is one
    row = _row(b"\x86\x05\x41\xc6", 0x1001, cie_code=b"\x86\x03")
    assert row is not None
    assert row.rules[6] == ("offset", -24, b"")
    row = _row(b"\x07\x03\x08\x0c\x09\x0d\x06\x14\x0e\x02\x15\x0f\x7f", 0x10FF)
    assert row is not None
    assert row.rules[3].kind == "undefined"
    assert row.rules[12].kind == "same"
    assert row.rules[13] == ("register", 6, b"")
    assert row.rules[14] == ("val_offset", -16, b"")
    assert row.rules[15] == ("val_offset", 8, b"")
    row = _row(b"\x0f\x02\x77\x10\x10\x06\x01\x30\x16\x03\x01\x31", 0x1010)
    assert row is not None
    assert row.cfa.code == b"\x77\x10"
    assert row.rules[6] == ("expression", 0, b"\x30")
    assert row.rules[3] == ("val_expression", 0, b"\x31")
    # advance_loc1, 2, 4; def_cfa_sf, def_cfa_register, def_cfa_offset_sf; GNU_args_size
    code = b"\x02\x10\x12\x06\x7e\x03\x10\x00\x0d\x07\x04\x10\x00\x00\x00\x13\x7d\x2e\x08"
    assert [r and r.cfa for r in (_row(code, 0x100F), _row(code, 0x1010))] == [
        (7, 8, None),
        (6, 16, None),
    ]
    assert [r and r.cfa for r in (_row(code, 0x1020), _row(code, 0x1030))] == [
        (7, 16, None),
        (7, 24, None),
    ]
    assert _row(b"", 0xFFF) is None
    assert _row(b"", 0x1100) is None


@pytest.mark.parametrize(
    "code", [b"\x0b", b"\x3f", b"\x0f\x7f", b"\x0a" * 100, b"\x0f\x01\x30\x0e\x08"]
)
def test_frame_instructions_that_make_no_sense(code: bytes) -> None:
    with pytest.raises(CannotUnwind):
        _row(code, 0x1050)


def test_leb128() -> None:
    assert Reader(b"\xe5\x8e\x26").uleb() == 624485  # DWARF 4, 7.6, figure 22
    assert Reader(b"\x80\x7f").sleb() == -128
    assert Reader(b"\x7f").sleb() == -1
    with pytest.raises(CannotUnwind):
        Reader(b"\xff" * 20).uleb()
    with pytest.raises(CannotUnwind):
        Reader(struct.pack("<B", 0x80)).sleb()
