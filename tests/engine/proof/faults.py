# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults: each switches one rule of the mechanism off in this process, for a test to notice.

A fault is a function of pytest's monkeypatch. Those of the self-check stub change its listing, so
what is tested without the rule is the real machine code but for the instructions named here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import wfpatch.apply
import wfpatch.host
import wfpatch.live_region
import wfpatch.observe
import wfpatch.plan
import wfpatch.rows
import wfpatch.self_check_stub as stub
import wfpatch.tasks
import wfpatch.transition
import wfpatch.unwind
from wfpatch.backend.ptrace import PtraceSession
from wfpatch.generation_table import Block, start
from wfpatch.live_region import LiveRegion
from wfpatch.machine_code import Line, Listing
from wfpatch.region_header import RowUse
from wfpatch.thread_stack import Threads
from wfpatch.transition import table_transition

Fault = Callable[[Any], None]


def _lines(text: str) -> list[Line]:
    return list(Listing(text).lines)


def _edit(listing: Listing, change: Callable[[list[Line]], list[Line]]) -> Listing:
    """The listing with other lines."""
    edited = object.__new__(Listing)
    edited.lines = tuple(change(list(listing.lines)))
    edited.size = sum(len(line.code) for line in edited.lines)
    return edited


def _index(lines: Sequence[Line], assembly: str, which: int = 0) -> int:
    """The line with that assembly; the listing must have it."""
    found = [index for index, line in enumerate(lines) if line.assembly == assembly]
    assert len(found) > which, f"the check routine has no `{assembly}`"
    return found[which]


def _change_check(monkeypatch: Any, change: Callable[[list[Line]], list[Line]]) -> None:
    monkeypatch.setattr(stub, "CHECK_ROUTINE", _edit(stub.CHECK_ROUTINE, change))


# The self-check stub


def handlers_migrate(monkeypatch: Any) -> None:
    """A signal frame on the stack does not decline."""
    original = Threads.stacks
    monkeypatch.setattr(
        Threads,
        "stacks",
        lambda self: dataclasses.replace(original(self), signal_returns=frozenset()),
    )


def alternate_stack_ignored(monkeypatch: Any) -> None:
    """Neither SS_ONSTACK nor a signal frame declines."""
    handlers_migrate(monkeypatch)

    def change(lines: list[Line]) -> list[Line]:
        del lines[_index(lines, "jne <alternate_stack>")]
        return lines

    _change_check(monkeypatch, change)


def any_stack_up_to_tcb(monkeypatch: Any) -> None:
    """No proof of the own stack: [rsp, %fs:0) is scanned."""
    handlers_migrate(monkeypatch)

    def change(lines: list[Line]) -> list[Line]:
        begin = _index(lines, "and $0xfffffffffffffff8,%r8")
        lines[begin] = dataclasses.replace(lines[begin], label="bounded")
        del lines[_index(lines, "ja <cap_exceeded>")]
        at = next(index for index, line in enumerate(lines) if line.label == "have_fs")
        lines[at] = dataclasses.replace(lines[at], label="")
        lines[at:at] = _lines("""
have_fs:
  49 89 f8                            ; mov %rdi,%r8
  e9 <bounded>                        ; jmp <bounded>
""")
        return lines

    _change_check(monkeypatch, change)


def scan_up_to_cap_only(monkeypatch: Any) -> None:
    """What lies beyond the scan's cap is taken for clean."""

    def change(lines: list[Line]) -> list[Line]:
        at = _index(lines, "ja <cap_exceeded>")
        lines[at : at + 1] = _lines("""
  76 07                               ; jbe over the next two
  4d 89 e8                            ; mov %r13,%r8
  4c 03 43 {scan_cap}                 ; add {scan_cap}(%rbx),%r8
""")
        return lines

    _change_check(monkeypatch, change)


def only_words_behind_calls(monkeypatch: Any) -> None:
    """The scan clears a word that no call precedes."""
    handlers_migrate(monkeypatch)

    def change(lines: list[Line]) -> list[Line]:
        at = _index(lines, "cmp 0x8(%r9),%rax") + 2
        lines[at:at] = _lines("""
  80 78 fb e8                         ; cmpb $0xe8,-0x5(%rax)
  0f 85 <scan>                        ; jne <scan>
""")
        return lines

    _change_check(monkeypatch, change)


def no_tail_rule(monkeypatch: Any) -> None:
    """Every slot may migrate, whatever jumps there; and its entry itself does not count as old."""
    monkeypatch.setattr(wfpatch.transition, "_modes", lambda *_: {})


def no_old_code(monkeypatch: Any) -> None:
    """No word counts as old."""
    for module in (wfpatch.transition, wfpatch.observe):
        monkeypatch.setattr(module, "old_intervals", lambda *_: [])


def _pieces_without(monkeypatch: Any, change: Callable[[Any, Any], Any]) -> None:
    original = LiveRegion.pieces

    def pieces(self: LiveRegion, generation: Any, slot: int) -> Any:
        note = next(note for note in self.header.slots if note.index == slot)
        return change(original(self, generation, slot), note)

    monkeypatch.setattr(LiveRegion, "pieces", pieces)


def no_cold_pieces(monkeypatch: Any) -> None:
    """Only a function's main body counts as old."""

    def change(pieces: Any, note: Any) -> Any:
        main = {(piece.low, piece.high) for piece in note.pieces if piece.entry}
        kept = {*main, (note.continuation.low, note.continuation.high)}
        return tuple(piece for piece in pieces if (piece.low, piece.high) in kept)

    _pieces_without(monkeypatch, change)


def no_end_after_call(monkeypatch: Any) -> None:
    """The end of a body that ends in a call does not count."""
    _pieces_without(
        monkeypatch,
        lambda pieces, _: tuple(dataclasses.replace(piece, ends_in_call=False) for piece in pieces),
    )


def no_continuation(monkeypatch: Any) -> None:
    """The old continuation in the region does not count as old code."""

    def change(pieces: Any, note: Any) -> Any:
        return tuple(piece for piece in pieces if piece.low != note.continuation.low)

    _pieces_without(monkeypatch, change)


def no_pending_text(monkeypatch: Any) -> None:
    """A thread in stub text, or at an entry that is jumped to, counts as outside."""
    monkeypatch.setattr(LiveRegion, "pending_intervals", lambda _: [])
    _pieces_without(
        monkeypatch,
        lambda pieces, note: tuple(
            dataclasses.replace(piece, entry=piece.entry or piece.low == note.address)
            for piece in pieces
        ),
    )


# The transition


def incomplete_unwinding_clears(monkeypatch: Any) -> None:
    """What an unwinding found until it was stuck is taken for all the frames."""
    original = wfpatch.unwind.Unwinder.unwind

    def unwind(self: Any, *arguments: Any) -> Any:
        return dataclasses.replace(original(self, *arguments), failure=None)

    monkeypatch.setattr(wfpatch.unwind.Unwinder, "unwind", unwind)


def listed_threads_only(monkeypatch: Any) -> None:
    """The tasks are those of /proc/PID/task."""
    monkeypatch.setattr(wfpatch.tasks.SharingProcesses, "current", lambda self: [self._pid])


def nobody_is_born(monkeypatch: Any) -> None:
    """The tasks are those that there were at the opening."""
    original = PtraceSession.tasks
    first: dict[int, Any] = {}

    def tasks(self: PtraceSession) -> Any:
        now = original(self)
        return first.setdefault(id(self), now)

    monkeypatch.setattr(PtraceSession, "tasks", tasks)


def no_held_row(monkeypatch: Any) -> None:
    """Who may not migrate stays in row 0."""
    original = stub.Descriptor.encode

    def encode(self: Any, at: int, cells: int, limit: int) -> bytes:
        return original(dataclasses.replace(self, held_row=0), at, cells, limit)

    monkeypatch.setattr(stub.Descriptor, "encode", encode)


def no_observation(monkeypatch: Any) -> None:
    """Row 0 is finished without looking at anybody."""
    monkeypatch.setattr(wfpatch.apply, "_observed", lambda *_: True)


def seen_before_open(monkeypatch: Any) -> None:
    """The tasks are observed before the slots become self-checks, and not again."""
    deferred: list[Callable[[], None]] = []
    observed = wfpatch.apply._observed

    def opened(process: Any, live: LiveRegion, stacks: Any) -> None:
        steps = list(start(table_transition(process, live, stacks)))
        wfpatch.transition.set_phase(live, "start")
        wfpatch.transition.set_phase(live, "open")
        deferred.append(lambda: live.carry_out(steps))

    def seen(watch: Any, deadline: float) -> bool:
        done = observed(watch, deadline)
        deferred.pop()()
        return done

    monkeypatch.setattr(wfpatch.apply, "open_transition", opened)
    monkeypatch.setattr(wfpatch.apply, "_observed", seen)


def held_row_unseen(monkeypatch: Any) -> None:
    """The held row is finished without looking who is in it."""
    monkeypatch.setattr(wfpatch.apply, "_emptied", lambda *_: True)


def held_row_uncounted(monkeypatch: Any) -> None:
    """Nobody counts who enters the held row, so the fast path believes that it is empty."""
    monkeypatch.setattr(wfpatch.observe.HeldRow, "never_entered", lambda _: True)


def cleared_for_good(monkeypatch: Any) -> None:
    """Who was cleared before anybody was counted into the held row stays so."""
    monkeypatch.setattr(wfpatch.observe.HeldRow, "_begin_exactly", lambda _: None)


def children_of_the_process_ignored(monkeypatch: Any) -> None:
    """Who was forked while the process was patched is not looked for."""
    monkeypatch.setattr(wfpatch.host, "MAX_ROUNDS", 1)


def only_first_function_armed(monkeypatch: Any) -> None:
    """The transition opens before every function of the set is armed."""
    original = wfpatch.apply.arm

    def arm(process: Any, live: Any, slots: Any, patch: Any) -> bool:
        return original(process, live, sorted(slots)[:1], patch)

    monkeypatch.setattr(wfpatch.apply, "arm", arm)


def target_row_last(monkeypatch: Any) -> None:
    """Threads are led to the target row before it is complete."""
    original = LiveRegion.carry_out

    def carry_out(self: LiveRegion, steps: Any) -> None:
        planned = list(steps)
        first = next((i for i, step in enumerate(planned) if isinstance(step, Block)), 0)
        original(self, planned[first:] + planned[:first])

    monkeypatch.setattr(LiveRegion, "carry_out", carry_out)


def rows_reused_unseen(monkeypatch: Any) -> None:
    """Rows become free without a look at who is in them."""

    def recycle(process: Any) -> None:
        for region in process.regions:
            region.note(rows=(RowUse(0, region.header.generation, "generation"),))

    monkeypatch.setattr(wfpatch.rows, "recycle", recycle)
