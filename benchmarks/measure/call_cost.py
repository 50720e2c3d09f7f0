# SPDX-License-Identifier: GPL-3.0-or-later
"""The steady cost of a patched call against an unpatched one of the same code."""

from __future__ import annotations

import json
from typing import Any

from .program import Program, running

NEW = """
int patched(int x);
__attribute__((noinline, aligned(64))) int patched(int x)
{
    __asm__ volatile("" : "+r"(x));
    return x + 2;
}
"""


def _ask(program: Program) -> dict[str, Any]:
    if program.process.stdin is None or program.process.stdout is None:
        raise RuntimeError("the program has no pipes")
    program.process.stdin.write("measure\n")
    program.process.stdin.flush()
    answer: dict[str, Any] = json.loads(program.process.stdout.readline())
    return answer


def measure() -> dict[str, Any]:
    """Nanoseconds per call, least of nine rounds; ``added_ns`` is what patching adds."""
    with running("call_cost", NEW, counters=False) as program:
        before = _ask(program)
        run = program.applier("apply")
        if run.code:
            raise RuntimeError(f"apply: {run}")
        after = _ask(program)
        if after["answer"] != 3:
            raise RuntimeError(f"the patched function answers {after['answer']}")
        return {
            "before": before,
            "after": after,
            "added_ns": (after["patched_ns"] - after["untouched_ns"])
            - (before["patched_ns"] - before["untouched_ns"]),
        }
