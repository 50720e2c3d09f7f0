# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounded work: a service that crashes and starts again and again must not eat the machine.

Each object has a purse of turns, one for each attempt at a process. It fills slowly; once it is
empty, turns come one by one, and the longer the storm lasts the farther apart.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """``burst`` turns at once; ``every``: seconds for one more, which doubles up to ``slowest``
    while the purse stays empty."""

    burst: int = 100
    every: float = 1.0
    slowest: float = 30.0


@dataclass
class _Purse:
    turns: float
    filled: float
    step: float
    ready: float = 0.0  # when the next single turn comes, while the purse is empty
    empty: bool = False


class Budget:
    """The purses of all objects; times in seconds of one clock."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._purses: dict[str, _Purse] = {}

    def take(self, name: str, now: float) -> float:
        """Take a turn: 0.0 when there was one, else the time at which to ask again."""
        limits = self._limits
        purse = self._purses.get(name)
        if purse is None:
            purse = self._purses[name] = _Purse(float(limits.burst), now, limits.every)
        if not purse.empty:
            purse.turns = min(limits.burst, purse.turns + (now - purse.filled) / limits.every)
            purse.filled = now
            if purse.turns >= 1.0:
                purse.turns -= 1.0
                return 0.0
            purse.empty, purse.step, purse.ready = True, limits.every, now + limits.every
            return purse.ready
        if now < purse.ready:
            return purse.ready
        if now - purse.ready > 2 * purse.step:
            # Nobody asked for some time: the storm is over.
            purse.empty, purse.turns, purse.filled = False, (now - purse.ready) / limits.every, now
            return self.take(name, now)
        purse.step = min(2 * purse.step, limits.slowest)
        purse.ready = now + purse.step
        return 0.0

    def slowed(self, name: str) -> bool:
        """Whether the object's purse is empty, so that its processes wait."""
        purse = self._purses.get(name)
        return purse is not None and purse.empty
