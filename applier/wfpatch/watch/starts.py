# SPDX-License-Identifier: GPL-3.0-or-later
"""How the watch learns that a program was started."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Unavailable(Exception):
    """This way is not to be had here; the text says why."""


class Starts:
    """A source of process ids. This one tells nothing: the processes are looked at in turn."""

    name = "polling"
    #: Whether its word comes before the program begins.
    early = False

    def fileno(self) -> int | None:
        """What becomes readable when there is something to read."""
        return None

    def read(self) -> tuple[set[int], bool]:
        """The processes that executed (or are about to execute) a program since the last call, and
        whether some were missed, so that all have to be looked at."""
        return set(), False

    def refresh(self) -> None:
        """Take notice of what changed on the host; called now and then."""

    def close(self) -> None:
        """End it."""


def first_available(ways: Sequence[Callable[[], Starts]]) -> tuple[Starts, tuple[str, ...]]:
    """The first way that is to be had here, and why those before it are not."""
    reasons: list[str] = []
    for way in ways:
        try:
            return way(), tuple(reasons)
        except Unavailable as reason:
            reasons.append(str(reason))
    return Starts(), tuple(reasons)
