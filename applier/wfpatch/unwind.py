# SPDX-License-Identifier: GPL-3.0-or-later
"""Unwinding a thread's stack by call frame information, over copies of its registers and stack.

The result is either all frames, down to the one that the thread began with, or a failure with its
reason. Nothing is guessed: no frame pointers are assumed, no return addresses searched for. That is
what lets it clear a thread whose stack still holds stale words of old code.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .dwarf_expression import CannotUnwind, evaluate
from .elf_object import ObjectImage
from .errors import WfpatchError
from .frame_information import (
    CALLEE_SAVED,
    RBP,
    RIP,
    RSP,
    IndexedTable,
    ListedTable,
    Row,
    Rule,
)
from .object_memory import Memory, ObjectMemory
from .quiescence import is_restorer

MAX_FRAMES = 4096
_MAX_CACHE = 65536
_MASK = (1 << 64) - 1

#: DWARF numbers of registers by their name in struct user_regs_struct (psABI, figure 3.36).
DWARF_NUMBERS: dict[str, int] = {
    "rax": 0, "rdx": 1, "rcx": 2, "rbx": 3, "rsi": 4, "rdi": 5, "rbp": 6, "rsp": 7,
    "r8": 8, "r9": 9, "r10": 10, "r11": 11, "r12": 12, "r13": 13, "r14": 14, "r15": 15,
    "rip": 16,
}  # fmt: skip
# The order of gregs in struct sigcontext (arch/x86/include/uapi/asm/sigcontext.h), behind uc_flags,
# uc_link and uc_stack.
_SIGCONTEXT = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15") + (
    "rdi",
    "rsi",
    "rbp",
    "rbx",
    "rdx",
    "rax",
    "rcx",
    "rsp",
    "rip",
)
_SIGCONTEXT_OFFSET = 40


@dataclass(frozen=True)
class Frame:
    """One frame: ``pc`` is where it goes on, ``cfa`` its frame address.

    ``pc`` is a return address, or the exact place of a frame that was ``interrupted``: the
    innermost one, and one that a signal interrupted.
    """

    pc: int
    cfa: int
    interrupted: bool


@dataclass(frozen=True)
class Unwound:
    """Frames from the innermost one; ``failure`` says why there are not all of them, None if so."""

    frames: tuple[Frame, ...]
    failure: str | None

    @property
    def complete(self) -> bool:
        return self.failure is None


@dataclass(frozen=True)
class Grounds:
    """What an unwinding rests on besides rip and rsp: ``words``, (address, value), and the frame
    pointer or not. Whenever a thread has all of that again, it has the same frames."""

    words: tuple[tuple[int, int], ...]
    frame_pointer: bool


@dataclass(frozen=True)
class StackMemory:
    """A stack's copy, ``data`` from ``base``.

    ``beyond`` reads the rest of the process's memory (an alternate stack); it may only be given for
    a thread that cannot run meanwhile.
    """

    base: int
    data: bytes = field(repr=False)
    beyond: Memory | None = None
    #: What was read, if that is of interest: the words' addresses.
    words: set[int] | None = None

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes; raises CannotUnwind for what is not in the copy."""
        start = address - self.base
        if start >= 0 and start + size <= len(self.data):
            if self.words is not None:
                self.words.update(range(address & -8, address + size, 8))
            return self.data[start : start + size]
        if self.beyond is None:
            raise CannotUnwind(f"{address:#x} is outside of the stack's copy")
        try:
            return self.beyond.read(address, size)
        except WfpatchError as error:
            raise CannotUnwind(error.message) from None


@dataclass(frozen=True)
class CopiedCode:
    """Code that stands in for other code: an old continuation for a function's first instructions.

    ``places`` are (address here, address there) of each instruction, ascending; from ``high`` on it
    is something else. A place has the frame of the one that it stands for.
    """

    high: int
    places: tuple[tuple[int, int], ...]

    @property
    def low(self) -> int:
        return self.places[0][0]

    def original(self, pc: int) -> int | None:
        """The address that ``pc`` stands for; None outside."""
        if not self.low <= pc < self.high:
            return None
        return [there for here, there in self.places if here <= pc][-1]


def stop_registers(registers: object) -> dict[int, int]:
    """DWARF number -> value, from a struct user_regs_struct (or anything with those attributes)."""
    return {number: getattr(registers, name) for name, number in DWARF_NUMBERS.items()}


def sleeper_registers(pc: int, sp: int) -> dict[int, int]:
    """What is known of a sleeper without a stop: not enough for every frame."""
    return {RIP: pc, RSP: sp}


class Unwinder:
    """Unwinds threads of one process; keeps what it read of its (constant) frame information.

    ``regions`` are (address, size) of relocated .eh_frame sections in regions, ``copies`` the code
    there that stands in for other code.
    """

    def __init__(
        self,
        memory: Memory,
        images: Iterable[ObjectImage],
        regions: Iterable[tuple[int, int]] = (),
        copies: Iterable[CopiedCode] = (),
    ) -> None:
        self._memory = memory
        self._images = tuple(images)
        self._regions = tuple(regions)
        self._copies = tuple(copies)
        self._tables: dict[int, IndexedTable | None] = {}
        self._listed: list[ListedTable] | None = None
        self._rows: dict[int, Row | None] = {}

    def grounds(self, registers: Mapping[int, int], stack: StackMemory) -> Grounds | None:
        """The least that the frames of a thread follow from; None where that is too much."""
        for followed in (frozenset[int](), frozenset({RBP})):
            words: set[int] = set()
            known = {number: registers[number] for number in (RIP, RSP, *followed)}
            copy = StackMemory(stack.base, stack.data, words=words)
            if self.unwind(known, copy, followed).complete:
                found = tuple((at, _word(stack, at)) for at in sorted(words))
                return Grounds(found, bool(followed))
        return None

    def unwind(
        self,
        registers: Mapping[int, int],
        stack: StackMemory,
        followed: frozenset[int] | None = None,
    ) -> Unwound:
        """The frames of a thread; ``registers`` by DWARF number, rip and rsp at least.

        Of the callers' registers only those in ``followed`` are restored, where that is given.
        """
        frames: list[Frame] = []
        try:
            current = dict(registers)
            interrupted = True
            while len(frames) < MAX_FRAMES:
                frame, caller, interrupted = self._step(current, interrupted, stack, followed)
                frames.append(frame)
                if caller is None:
                    return Unwound(tuple(frames), None)
                current = caller
            failure = f"there are more than {MAX_FRAMES} frames"
        except CannotUnwind as error:
            failure = str(error)
        except WfpatchError as error:
            failure = error.message
        return Unwound(tuple(frames), failure)

    def _step(
        self,
        registers: dict[int, int],
        interrupted: bool,
        stack: StackMemory,
        followed: frozenset[int] | None,
    ) -> tuple[Frame, dict[int, int] | None, bool]:
        """(this frame, its caller's registers or None, whether the caller was interrupted)."""
        pc, sp = registers[RIP], registers[RSP]
        # a return address may lie behind its function when the call never returns
        place = pc if interrupted else pc - 1
        row = self._row(place)
        if row is None:
            if is_restorer(self._code(pc)):
                # a signal trampoline without frame information (musl): sp is at the ucontext
                return Frame(pc, sp, interrupted), _interrupted_by_signal(sp, stack), True
            raise CannotUnwind(f"no frame information covers {pc:#x}")

        def register(number: int) -> int:
            if number == RIP:
                return self._original(pc)
            if number not in registers:
                raise CannotUnwind(f"register {number} is not known at {pc:#x}")
            return registers[number]

        if row.cfa.code is None:
            cfa = register(row.cfa.register) + row.cfa.offset & _MASK
        else:
            cfa = evaluate(row.cfa.code, register, stack.read)
        frame = Frame(pc, cfa, interrupted)
        if not row.signal_frame and not sp < cfa:
            raise CannotUnwind(f"the frame at {pc:#x} ends at {cfa:#x}, below its stack pointer")
        rule = row.rules.get(row.return_register)
        if rule is not None and rule.kind == "undefined":
            return frame, None, False
        if rule is None:
            raise CannotUnwind(f"no rule for the return address at {pc:#x}")
        caller = {RSP: cfa}
        for number, saved in row.rules.items():
            if number == row.return_register:
                continue
            if followed is None or number in followed or number == RSP:
                value = _apply(saved, number, registers, cfa, stack)
                if value is None:
                    caller.pop(number, None)
                else:
                    caller[number] = value
        kept = CALLEE_SAVED if followed is None else CALLEE_SAVED & followed
        for number in kept - set(row.rules):
            if number in registers:
                caller[number] = registers[number]
        back = _apply(rule, row.return_register, registers, cfa, stack)
        if back is None:
            raise CannotUnwind(f"the return address at {pc:#x} is not known")
        if back == 0:
            return frame, None, False
        caller[RIP] = back
        if caller[RSP] <= sp and not row.signal_frame:
            raise CannotUnwind(f"the frame at {pc:#x} does not lead upwards")
        return frame, caller, row.signal_frame

    def _code(self, address: int) -> bytes:
        try:
            return self._memory.read(address, 16)
        except WfpatchError:
            return b""

    def _row(self, pc: int) -> Row | None:
        if pc not in self._rows:
            if len(self._rows) >= _MAX_CACHE:
                self._rows.clear()
            self._rows[pc] = self._find(pc)
        return self._rows[pc]

    def _original(self, pc: int) -> int:
        for copy in self._copies:
            original = copy.original(pc)
            if original is not None:
                return original
        return pc

    def _find(self, pc: int) -> Row | None:
        row = self._find_in_objects(self._original(pc))
        if row is None:
            for table in self._region_tables():
                low, high = table.extent
                if low <= pc < high:
                    row = row or table.row(pc)
        return row

    def _find_in_objects(self, pc: int) -> Row | None:
        for image in self._images:
            if pc in image:
                if image.base not in self._tables:
                    place = image.eh_frame_hdr
                    self._tables[image.base] = (
                        None if place is None else IndexedTable(image.contents, place[0])
                    )
                table = self._tables[image.base]
                return None if table is None else table.row(pc)
        return None

    def _region_tables(self) -> Sequence[ListedTable]:
        if self._listed is None:
            self._listed = [
                ListedTable(
                    ObjectMemory(self._memory, address, address + size, "new code"), address, size
                )
                for address, size in self._regions
            ]
        return self._listed


def _apply(
    rule: Rule,
    number: int,
    registers: Mapping[int, int],
    cfa: int,
    stack: StackMemory,
) -> int | None:
    """The caller's value of a register; None when it is not known."""

    def known(wanted: int) -> int:
        if wanted not in registers:
            raise CannotUnwind(f"register {wanted} is not known")
        return registers[wanted]

    if rule.kind == "undefined":
        return None
    if rule.kind == "same":
        return registers.get(number)
    if rule.kind == "register":
        return registers.get(rule.value)
    if rule.kind == "val_offset":
        return cfa + rule.value & _MASK
    if rule.kind == "offset":
        return _word(stack, cfa + rule.value & _MASK)
    result = evaluate(rule.code, known, stack.read, (cfa,))
    return result if rule.kind == "val_expression" else _word(stack, result)


def _word(stack: StackMemory, address: int) -> int:
    return int.from_bytes(stack.read(address, 8), "little")


def _interrupted_by_signal(context: int, stack: StackMemory) -> dict[int, int]:
    """The registers that a signal frame's struct ucontext holds."""
    count = len(_SIGCONTEXT)
    words = struct.unpack(f"<{count}Q", stack.read(context + _SIGCONTEXT_OFFSET, 8 * count))
    return {DWARF_NUMBERS[name]: word for name, word in zip(_SIGCONTEXT, words)}
