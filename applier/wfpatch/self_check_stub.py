# SPDX-License-Identifier: GPL-3.0-or-later
"""The self-check stub: a thread that enters a replaced function decides whether it may migrate.

Three pieces of code in the region's text: for each slot the *entry stub*, which jumps through the
dispatch table, and the *thunk*, where the table leads while a transition is open; for the region
the *check routine*, which the thunks call. Everything that differs from one transition to the next
stands in a *descriptor* in the region's data, which does not change while a thread may read it.

The rules are those of "The self-check stub" in the mechanism's description (docs/mechanism.md):
every general register, the flags and all vector state are preserved, no vector instruction is used,
rsp is proved to lie on the thread's own stack before the stack is scanned, and a thread that cannot
prove its quiescence moves itself to the held row.

No red zone is live at a function's entry (psABI 3.2.2), so the stub may push.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .errors import Failed, Refused
from .machine_code import Listing

MIGRATE_ALWAYS = 0
MIGRATE_AFTER_DIRECT_CALL = 1
MIGRATE_NEVER = 2
MODES = {
    "always": MIGRATE_ALWAYS,
    "after_direct_call": MIGRATE_AFTER_DIRECT_CALL,
    "never": MIGRATE_NEVER,
}
"""How a slot may migrate, by the tail edges into it (the patch ELF's ``migrate``)."""

FIELDS = (
    "target_gs",
    "held_gs",
    "flags",
    "scan_cap",
    "hull_low",
    "hull_width",
    "ranges",
    "range_count",
    "text",
    "text_count",
    "main_tcb",
    "main_low",
    "main_high",
    "stackblock",
    "stacks",
)
"""The descriptor's u64 fields, from offset 0."""

COUNTERS = (
    "migrated",
    "held_in",
    "held_out",
    "not_own_stack",
    "alternate_stack",
    "scan_cap_exceeded",
    "old_frame",
    "tail_call",
    "never",
    "gs_refused",
    "last_word",
    "last_word_at",
)
"""The descriptor's u64 counters, from COUNTERS_OFFSET; the last two are the last word that a scan
took for old code, and its address."""

COUNTERS_OFFSET = 0x80
MODES_OFFSET = 0x100
"""One byte per cell of the table (512 a table page); the arrays follow."""

FLAG_FSGSBASE = 1

_OFFSETS = {name: 8 * index for index, name in enumerate(FIELDS)}
_OFFSETS.update({name: COUNTERS_OFFSET + 8 * index for index, name in enumerate(COUNTERS)})
_OFFSETS["modes"] = MODES_OFFSET

# On the stack at ``again``, from rsp: 12 saved registers, the return address into the thunk, the
# thunk's saved rax and flags; 0x78 bytes above lies the return address of the function's caller.
CHECK_ROUTINE = Listing("""
check:
  53                                  ; push %rbx
  51                                  ; push %rcx
  52                                  ; push %rdx
  56                                  ; push %rsi
  57                                  ; push %rdi
  55                                  ; push %rbp
  41 50                               ; push %r8
  41 51                               ; push %r9
  41 52                               ; push %r10
  41 53                               ; push %r11
  41 54                               ; push %r12
  41 55                               ; push %r13
  ; rbp = cell of the slot
  89 c5                               ; mov %eax,%ebp
again:
  ; r12 = this thread's row
  65 4c 8b 25 <row_cell>              ; mov %gs:<row_cell>(%rip),%r12
  ; rbx = descriptor of that row's transition
  65 48 8b 1d <descriptor_cell>       ; mov %gs:<descriptor_cell>(%rip),%rbx
  ; both of one row: a signal handler may change it here
  65 4c 3b 25 <row_cell>              ; cmp %gs:<row_cell>(%rip),%r12
  0f 85 <again>                       ; jne <again>
  48 85 db                            ; test %rbx,%rbx
  ; the row was finished meanwhile: its plain code
  0f 84 <plain>                       ; je <plain>
  ; r13 = address of the caller's return address
  4c 8d 6c 24 78                      ; lea 0x78(%rsp),%r13
  48 83 7b {range_count} 00           ; cmpq $0x0,{range_count}(%rbx)
  ; nothing differs: nothing can be old
  0f 84 <migrate>                     ; je <migrate>
  41 f6 c5 07                         ; test $0x7,%r13b
  0f 85 <not_own_stack>               ; jne <not_own_stack>
  0f b6 84 2b {modes:32}              ; movzbl {modes}(%rbx,%rbp,1),%eax
  85 c0                               ; test %eax,%eax
  0f 84 <own_stack>                   ; je <own_stack>
  83 f8 01                            ; cmp $0x1,%eax
  0f 85 <never>                       ; jne <never>
  ; the tail rule: rdx = return address
  49 8b 55 00                         ; mov 0x0(%r13),%rdx
  48 8b 4b {text}                     ; mov {text}(%rbx),%rcx
  48 8b 73 {text_count}               ; mov {text_count}(%rbx),%rsi
next_text:
  48 85 f6                            ; test %rsi,%rsi
  0f 84 <tail_call>                   ; je <tail_call>
  48 3b 11                            ; cmp (%rcx),%rdx
  0f 82 <not_this_text>               ; jb <not_this_text>
  48 3b 51 08                         ; cmp 0x8(%rcx),%rdx
  0f 86 <in_text>                     ; jbe <in_text>
not_this_text:
  48 83 c1 10                         ; add $0x10,%rcx
  48 ff ce                            ; dec %rsi
  e9 <next_text>                      ; jmp <next_text>
in_text:
  ; call rel32 ...
  80 7a fb e8                         ; cmpb $0xe8,-0x5(%rdx)
  0f 85 <tail_call>                   ; jne <tail_call>
  48 63 42 fc                         ; movslq -0x4(%rdx),%rax
  48 01 d0                            ; add %rdx,%rax
  48 8d 0d <entry_cells>              ; lea <entry_cells>(%rip),%rcx
  ; ... of this very entry
  48 3b 04 e9                         ; cmp (%rcx,%rbp,8),%rax
  0f 85 <tail_call>                   ; jne <tail_call>
own_stack:
  f6 43 {flags} 01                    ; testb $0x1,{flags}(%rbx)
  0f 84 <fs_by_call>                  ; je <fs_by_call>
  f3 48 0f ae c7                      ; rdfsbase %rdi
have_fs:
  ; proof 1: the main thread on [stack]
  48 3b 7b {main_tcb}                 ; cmp {main_tcb}(%rbx),%rdi
  0f 85 <pthread>                     ; jne <pthread>
  4c 8b 43 {main_high}                ; mov {main_high}(%rbx),%r8
  4c 3b 6b {main_low}                 ; cmp {main_low}(%rbx),%r13
  0f 82 <pthread>                     ; jb <pthread>
  4d 39 c5                            ; cmp %r8,%r13
  0f 82 <alternate>                   ; jb <alternate>
pthread:
  ; proof 2: struct pthread's stackblock
  48 8b 4b {stackblock}               ; mov {stackblock}(%rbx),%rcx
  48 85 c9                            ; test %rcx,%rcx
  0f 84 <listed>                      ; je <listed>
  48 8d 87 00 00 ff ff                ; lea -0x10000(%rdi),%rax
  48 ba 00 00 fd ff ff 7f 00 00       ; movabs $0x7ffffffd0000,%rdx
  48 39 d0                            ; cmp %rdx,%rax
  0f 87 <listed>                      ; ja <listed>
  40 f6 c7 07                         ; test $0x7,%dil
  0f 85 <listed>                      ; jne <listed>
  ; the TCB's self pointer
  48 3b 7f 10                         ; cmp 0x10(%rdi),%rdi
  0f 85 <listed>                      ; jne <listed>
  ; Start of the block, guard included. The main thread's is 0, and its size reaches from there to
  ; the end of [stack] (glibc, __pthread_initialize_minimal_internal): that proves nothing.
  48 8b 04 0f                         ; mov (%rdi,%rcx,1),%rax
  48 85 c0                            ; test %rax,%rax
  0f 84 <listed>                      ; je <listed>
  ; its size
  48 8b 54 0f 08                      ; mov 0x8(%rdi,%rcx,1),%rdx
  49 89 f9                            ; mov %rdi,%r9
  49 29 c1                            ; sub %rax,%r9
  49 39 d1                            ; cmp %rdx,%r9
  0f 83 <listed>                      ; jae <listed>
  4d 89 e9                            ; mov %r13,%r9
  49 29 c1                            ; sub %rax,%r9
  49 39 d1                            ; cmp %rdx,%r9
  0f 83 <listed>                      ; jae <listed>
  ; frames end where the TCB begins
  49 89 f8                            ; mov %rdi,%r8
  4d 39 c5                            ; cmp %r8,%r13
  0f 82 <alternate>                   ; jb <alternate>
listed:
  ; proof 3: bounds from the applier
  48 8b 4b {stacks}                   ; mov {stacks}(%rbx),%rcx
  48 8b 11                            ; mov (%rcx),%rdx
next_stack:
  48 85 d2                            ; test %rdx,%rdx
  0f 84 <not_own_stack>               ; je <not_own_stack>
  48 3b 79 08                         ; cmp 0x8(%rcx),%rdi
  0f 85 <not_this_stack>              ; jne <not_this_stack>
  4c 3b 69 10                         ; cmp 0x10(%rcx),%r13
  0f 82 <not_this_stack>              ; jb <not_this_stack>
  4c 8b 41 18                         ; mov 0x18(%rcx),%r8
  4d 39 c5                            ; cmp %r8,%r13
  0f 82 <alternate>                   ; jb <alternate>
not_this_stack:
  48 83 c1 18                         ; add $0x18,%rcx
  48 ff ca                            ; dec %rdx
  e9 <next_stack>                     ; jmp <next_stack>
alternate:
  ; sigaltstack(NULL, &old): stack_t is 24 bytes
  48 83 ec 18                         ; sub $0x18,%rsp
  31 ff                               ; xor %edi,%edi
  48 89 e6                            ; mov %rsp,%rsi
  b8 83 00 00 00                      ; mov $0x83,%eax
  0f 05                               ; syscall
  8b 4c 24 08                         ; mov 0x8(%rsp),%ecx
  48 83 c4 18                         ; add $0x18,%rsp
  48 85 c0                            ; test %rax,%rax
  0f 85 <not_own_stack>               ; jne <not_own_stack>
  ; SS_ONSTACK
  f6 c1 01                            ; test $0x1,%cl
  0f 85 <alternate_stack>             ; jne <alternate_stack>
  49 83 e0 f8                         ; and $0xfffffffffffffff8,%r8
  4c 89 c0                            ; mov %r8,%rax
  4c 29 e8                            ; sub %r13,%rax
  48 3b 43 {scan_cap}                 ; cmp {scan_cap}(%rbx),%rax
  0f 87 <cap_exceeded>                ; ja <cap_exceeded>
  4c 89 ee                            ; mov %r13,%rsi
  48 8b 7b {ranges}                   ; mov {ranges}(%rbx),%rdi
  4c 8b 53 {hull_low}                 ; mov {hull_low}(%rbx),%r10
  4c 8b 5b {hull_width}               ; mov {hull_width}(%rbx),%r11
scan:
  4c 39 c6                            ; cmp %r8,%rsi
  0f 83 <migrate>                     ; jae <migrate>
  48 8b 06                            ; mov (%rsi),%rax
  48 83 c6 08                         ; add $0x8,%rsi
  48 89 c2                            ; mov %rax,%rdx
  4c 29 d2                            ; sub %r10,%rdx
  4c 39 da                            ; cmp %r11,%rdx
  0f 87 <scan>                        ; ja <scan>
  ; r9 = the last range that begins at or below the word
  49 89 f9                            ; mov %rdi,%r9
  48 8b 4b {range_count}              ; mov {range_count}(%rbx),%rcx
halve:
  48 83 f9 01                         ; cmp $0x1,%rcx
  0f 86 <halved>                      ; jbe <halved>
  48 89 ca                            ; mov %rcx,%rdx
  48 d1 ea                            ; shr $1,%rdx
  48 29 d1                            ; sub %rdx,%rcx
  48 c1 e2 04                         ; shl $0x4,%rdx
  4c 01 ca                            ; add %r9,%rdx
  48 3b 02                            ; cmp (%rdx),%rax
  4c 0f 43 ca                         ; cmovae %rdx,%r9
  e9 <halve>                          ; jmp <halve>
halved:
  49 3b 01                            ; cmp (%r9),%rax
  0f 82 <scan>                        ; jb <scan>
  49 3b 41 08                         ; cmp 0x8(%r9),%rax
  0f 87 <scan>                        ; ja <scan>
  48 89 83 {last_word:32}             ; mov %rax,{last_word}(%rbx)
  48 83 ee 08                         ; sub $0x8,%rsi
  48 89 b3 {last_word_at:32}          ; mov %rsi,{last_word_at}(%rbx)
  f0 48 ff 83 {old_frame:32}          ; lock incq {old_frame}(%rbx)
  e9 <hold>                           ; jmp <hold>
migrate:
  65 48 8b 05 <row_cell>              ; mov %gs:<row_cell>(%rip),%rax
  4c 39 e0                            ; cmp %r12,%rax
  ; a signal handler moved this thread meanwhile
  0f 85 <again>                       ; jne <again>
  48 8b 73 {target_gs}                ; mov {target_gs}(%rbx),%rsi
  f6 43 {flags} 01                    ; testb $0x1,{flags}(%rbx)
  0f 84 <migrate_by_call>             ; je <migrate_by_call>
  f3 48 0f ae de                      ; wrgsbase %rsi
migrated:
  49 c1 e4 0c                         ; shl $0xc,%r12
  4c 3b 63 {held_gs}                  ; cmp {held_gs}(%rbx),%r12
  0f 84 <left_held>                   ; je <left_held>
  f0 48 ff 83 {migrated:32}           ; lock incq {migrated}(%rbx)
  31 c0                               ; xor %eax,%eax
  e9 <leave>                          ; jmp <leave>
left_held:
  f0 48 ff 83 {held_out:32}           ; lock incq {held_out}(%rbx)
  31 c0                               ; xor %eax,%eax
  e9 <leave>                          ; jmp <leave>
not_own_stack:
  f0 48 ff 83 {not_own_stack:32}      ; lock incq {not_own_stack}(%rbx)
  e9 <hold>                           ; jmp <hold>
alternate_stack:
  f0 48 ff 83 {alternate_stack:32}    ; lock incq {alternate_stack}(%rbx)
  e9 <hold>                           ; jmp <hold>
cap_exceeded:
  f0 48 ff 83 {scan_cap_exceeded:32}  ; lock incq {scan_cap_exceeded}(%rbx)
  e9 <hold>                           ; jmp <hold>
tail_call:
  f0 48 ff 83 {tail_call:32}          ; lock incq {tail_call}(%rbx)
  e9 <hold>                           ; jmp <hold>
never:
  f0 48 ff 83 {never:32}              ; lock incq {never}(%rbx)
hold:
  65 48 8b 05 <row_cell>              ; mov %gs:<row_cell>(%rip),%rax
  4c 39 e0                            ; cmp %r12,%rax
  0f 85 <again>                       ; jne <again>
  48 c1 e0 0c                         ; shl $0xc,%rax
  48 8b 73 {held_gs}                  ; mov {held_gs}(%rbx),%rsi
  48 39 f0                            ; cmp %rsi,%rax
  0f 84 <plain>                       ; je <plain>
  ; before the row is entered, so that 0 proves it empty
  f0 48 ff 83 {held_in:32}            ; lock incq {held_in}(%rbx)
  f6 43 {flags} 01                    ; testb $0x1,{flags}(%rbx)
  0f 84 <hold_by_call>                ; je <hold_by_call>
  f3 48 0f ae de                      ; wrgsbase %rsi
plain:
  b8 01 00 00 00                      ; mov $0x1,%eax
leave:
  41 5d                               ; pop %r13
  41 5c                               ; pop %r12
  41 5b                               ; pop %r11
  41 5a                               ; pop %r10
  41 59                               ; pop %r9
  41 58                               ; pop %r8
  5d                                  ; pop %rbp
  5f                                  ; pop %rdi
  5e                                  ; pop %rsi
  5a                                  ; pop %rdx
  59                                  ; pop %rcx
  5b                                  ; pop %rbx
  c3                                  ; ret
fs_by_call:
  ; without FSGSBASE: arch_prctl(ARCH_GET_FS, &rdi)
  6a 00                               ; push $0x0
  48 89 e6                            ; mov %rsp,%rsi
  bf 03 10 00 00                      ; mov $0x1003,%edi
  b8 9e 00 00 00                      ; mov $0x9e,%eax
  0f 05                               ; syscall
  5f                                  ; pop %rdi
  e9 <have_fs>                        ; jmp <have_fs>
migrate_by_call:
  ; arch_prctl(ARCH_SET_GS, target_gs)
  bf 01 10 00 00                      ; mov $0x1001,%edi
  b8 9e 00 00 00                      ; mov $0x9e,%eax
  0f 05                               ; syscall
  48 85 c0                            ; test %rax,%rax
  0f 84 <migrated>                    ; je <migrated>
  f0 48 ff 83 {gs_refused:32}         ; lock incq {gs_refused}(%rbx)
  e9 <plain>                          ; jmp <plain>
hold_by_call:
  ; arch_prctl(ARCH_SET_GS, held_gs)
  bf 01 10 00 00                      ; mov $0x1001,%edi
  b8 9e 00 00 00                      ; mov $0x9e,%eax
  0f 05                               ; syscall
  48 85 c0                            ; test %rax,%rax
  0f 84 <plain>                       ; je <plain>
  f0 48 ff 83 {gs_refused:32}         ; lock incq {gs_refused}(%rbx)
  e9 <plain>                          ; jmp <plain>
""")

THUNK = Listing("""
  9c                                  ; pushf
  50                                  ; push %rax
  b8 {cell:32}                        ; mov ${cell},%eax
  e8 <check>                          ; call <check>
  ; Wipe the return address: as a stale word it would hold this thread in a later scan.
  48 c7 44 24 f8 00 00 00 00          ; movq $0x0,-0x8(%rsp)
  85 c0                               ; test %eax,%eax
  0f 85 <plain>                       ; jne <plain>
  58                                  ; pop %rax
  9d                                  ; popf
  65 ff 25 <dispatch_cell>            ; jmp *%gs:<dispatch_cell>(%rip)
plain:
  58                                  ; pop %rax
  9d                                  ; popf
  65 ff 25 <plain_cell>               ; jmp *%gs:<plain_cell>(%rip)
""")


def check_routine(at: int, descriptor_cell: int, row_cell: int, entry_cells: int) -> bytes:
    """The check routine at address ``at``.

    ``descriptor_cell`` and ``row_cell`` are the addresses of row 0's reserved cells in the dispatch
    table, ``entry_cells`` that of the array of original entry addresses.
    """
    targets = {
        "descriptor_cell": descriptor_cell,
        "row_cell": row_cell,
        "entry_cells": entry_cells,
    }
    return CHECK_ROUTINE.assemble(at, targets, _OFFSETS)


def thunk(at: int, cell: int, check: int, dispatch_cell: int, plain_cell: int) -> bytes:
    """The thunk at ``at`` of the slot whose index among the table's cells is ``cell``.

    ``check`` is the check routine; ``dispatch_cell`` and ``plain_cell`` are row 0's cells of the
    slot in the two tables.
    """
    targets = {"check": check, "dispatch_cell": dispatch_cell, "plain_cell": plain_cell}
    return THUNK.assemble(at, targets, {"cell": cell})


def normalise(intervals: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Closed intervals, sorted, merged where they overlap or touch; empty ones dropped."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if high < low:
            continue
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        else:
            result.append((low, high))
    return tuple(result)


@dataclass(frozen=True)
class StackBounds:
    """The stack of one thread, as the applier knows it: its TCB and ``[low, high)``."""

    tcb: int
    low: int
    high: int


@dataclass(frozen=True)
class Counters:
    """What the check routine counted since the descriptor was written."""

    migrated: int
    held_in: int
    held_out: int
    not_own_stack: int
    alternate_stack: int
    scan_cap_exceeded: int
    old_frame: int
    tail_call: int
    never: int
    gs_refused: int
    last_word: int
    last_word_at: int

    @classmethod
    def decode(cls, block: bytes) -> Counters:
        """From the first 256 bytes of a descriptor."""
        if len(block) < COUNTERS_OFFSET + 8 * len(COUNTERS):
            raise Failed("memory_unreadable", f"a descriptor of {len(block)} bytes has no counters")
        return cls(*struct.unpack_from(f"<{len(COUNTERS)}Q", block, COUNTERS_OFFSET))


@dataclass(frozen=True)
class Descriptor:
    """One source generation's part in a transition: what a thread in its rows must prove.

    ``ranges`` are the closed intervals of words that count as old (see code_ranges); ``text`` the
    ``[low, high)`` intervals in which the return address of a direct call may lie; ``modes`` maps
    cells to MIGRATE_*; ``stackblock`` is the offset of glibc's stackblock and stackblock_size in
    struct pthread, 0 where it is unknown; ``scan_cap`` is in bytes.
    """

    target_row: int
    held_row: int
    fsgsbase: bool
    scan_cap: int
    ranges: tuple[tuple[int, int], ...]
    modes: Mapping[int, int] = field(default_factory=dict)
    text: tuple[tuple[int, int], ...] = ()
    main_tcb: int = 0
    main_low: int = 0
    main_high: int = 0
    stackblock: int = 0
    stacks: Sequence[StackBounds] = ()

    def encode(self, at: int, cells: int, limit: int) -> bytes:
        """The descriptor's bytes for address ``at``, counters zero.

        ``cells`` is the number of cells of the table, ``limit`` the bytes there are; raises
        Refused("region_too_small").
        """
        ranges = normalise(self.ranges)
        text = normalise((low + 5, high) for low, high in self.text)
        # A TCB of 0 means that the thread's is unknown; it must match nothing.
        main = (
            (self.main_tcb, self.main_low, self.main_high) if self.main_tcb else (2**64 - 1, 0, 0)
        )
        stacks = [bounds for bounds in self.stacks if bounds.tcb]
        modes = bytearray(cells)
        for cell, mode in self.modes.items():
            modes[cell] = mode
        ranges_at = at + MODES_OFFSET + (cells + 7) // 8 * 8
        text_at = ranges_at + 16 * len(ranges)
        stacks_at = text_at + 16 * len(text)
        values = {
            "target_gs": self.target_row << 12,
            "held_gs": self.held_row << 12,
            "flags": FLAG_FSGSBASE if self.fsgsbase else 0,
            "scan_cap": self.scan_cap,
            "hull_low": ranges[0][0] if ranges else 0,
            "hull_width": ranges[-1][1] - ranges[0][0] if ranges else 0,
            "ranges": ranges_at,
            "range_count": len(ranges),
            "text": text_at,
            "text_count": len(text),
            "main_tcb": main[0],
            "main_low": main[1],
            "main_high": main[2],
            "stackblock": self.stackblock,
            "stacks": stacks_at,
        }
        out = bytearray(struct.pack(f"<{len(FIELDS)}Q", *(values[name] for name in FIELDS)))
        out += bytes(MODES_OFFSET - len(out))
        out += modes
        out += bytes(ranges_at - at - len(out))
        for low, high in ranges + text:
            out += struct.pack("<QQ", low, high)
        out += struct.pack("<Q", len(stacks))
        for bounds in stacks:
            out += struct.pack("<QQQ", bounds.tcb, bounds.low, bounds.high)
        if len(out) > limit:
            raise Refused(
                "region_too_small",
                f"the transition's descriptor needs {len(out)} bytes, the region has {limit} for "
                "it; a larger region is needed",
                needed=len(out),
                available=limit,
            )
        return bytes(out)
