# SPDX-License-Identifier: GPL-3.0-or-later
"""The longest gap of a busy thread, stops, wall and transition time, at 8, 64 and 512 threads."""

from __future__ import annotations

import statistics
import time
from typing import Any

from .program import Program, running

NEW = """
int patched(int x);
__attribute__((noinline)) int patched(int x) { __asm__ volatile("" : "+r"(x)); return x + 2; }
"""
EPOCH, EPOCH_SEEN, LONGEST_GAP, _, _, EINTR = range(6)


def _begin(program: Program) -> None:
    epoch = program.word(EPOCH) + 1
    program.set_word(EPOCH, epoch)
    deadline = time.monotonic() + 10
    while program.word(EPOCH_SEEN) != epoch and time.monotonic() < deadline:
        time.sleep(0.001)


def _quiet(program: Program, seconds: float) -> float:
    _begin(program)
    time.sleep(seconds)
    return program.word(LONGEST_GAP) / 1e3


def _stops(report: dict[str, Any]) -> tuple[list[int], list[int]]:
    injected, others = [], []
    for stop in report["stops"]:
        (injected if stop["purpose"] == "inject" else others).append(stop["microseconds"])
    return injected, others


def measure(threads: int, policy: str, runs: int, backend: str) -> dict[str, Any]:
    """Medians and maxima over ``runs`` applies (each reverted); times in microseconds."""
    with running("gaps", NEW, threads, counters=True) as program:
        quiet = _quiet(program, 2.0)
        rows = []
        for _ in range(runs):
            _begin(program)
            begun = time.perf_counter()
            run = program.applier("apply", "--policy", policy, "--backend", backend)
            wall = (time.perf_counter() - begun) * 1e6
            gap = program.word(LONGEST_GAP) / 1e3
            if run.code:
                raise RuntimeError(f"apply at {threads} threads: {run}")
            report = run.result["processes"][0]
            injected, others = _stops(report)
            timings = report["timings_us"]
            rows.append(
                {
                    "gap": gap,
                    "wall": wall,
                    "apply": sum(timings[name] or 0 for name in ("load", "arm", "transition")),
                    "transition": timings["transition"],
                    "injected_stop": max(injected, default=0),
                    "other_stop": max(others, default=0),
                    "stops": report["stops_count"],
                }
            )
            reverted = program.applier("revert", "--backend", backend)
            if reverted.code:
                raise RuntimeError(f"revert at {threads} threads: {reverted}")
        return {
            "threads": threads,
            "policy": policy,
            "backend": backend,
            "runs": runs,
            "quiet_gap": quiet,
            "eintr": program.word(EINTR),
            "median": {key: statistics.median(row[key] for row in rows) for key in rows[0]},
            "most": {key: max(row[key] for row in rows) for key in rows[0]},
        }
