# SPDX-License-Identifier: GPL-3.0-or-later
"""A mutex inside the patched function, 16 threads contending: local against global quiescence."""

from __future__ import annotations

import time
from typing import Any

from .program import running

NEW = """
#include <pthread.h>
extern pthread_mutex_t lock;
extern volatile int spin;
int patched(int x);
__attribute__((noinline)) int patched(int x)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 2000; i++)
        spin++;
    pthread_mutex_unlock(&lock);
    return x + 2;
}
"""
OLD_TURNS, NEW_TURNS = range(2)


def measure(threads: int, policy: str, timeout: int, backend: str) -> dict[str, Any]:
    """How the transition went within ``timeout`` seconds, and which code ran after it."""
    with running("contended", NEW, threads, counters=True) as program:
        time.sleep(0.5)
        before = program.word(OLD_TURNS)
        begun = time.perf_counter()
        options = ("--policy", policy, "--backend", backend, "--timeout", timeout)
        run = program.applier("apply", *options)
        wall = time.perf_counter() - begun
        during = program.word(OLD_TURNS) + program.word(NEW_TURNS) - before
        report = run.result["processes"][0]
        old = program.word(OLD_TURNS)
        time.sleep(0.5)
        return {
            "threads": threads,
            "policy": policy,
            "backend": backend,
            "state": report["state"],
            "stragglers": len(report["threads"]["stragglers"]),
            "stops": report["stops_count"],
            "longest_stop_us": report["timings_us"]["longest_stop"],
            "wall_s": wall,
            "turns_per_s": during / wall,
            "old_turns_after": program.word(OLD_TURNS) - old,
        }
