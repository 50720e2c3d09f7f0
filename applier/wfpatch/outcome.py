# SPDX-License-Identifier: GPL-3.0-or-later
"""How a transition ended."""

from __future__ import annotations

from dataclasses import dataclass

from .report import Straggler


@dataclass(frozen=True)
class Outcome:
    """Complete, or with the threads that keep the transition open; counts of threads."""

    complete: bool
    stragglers: tuple[Straggler, ...] = ()
    migrated: int = 0
    quiescent: int = 0
