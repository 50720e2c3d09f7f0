# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""How far a host's clock is ahead of the controller's, by when it was asked and what it says."""

from __future__ import annotations

import datetime
import typing as t


def parse_time(text: str) -> datetime.datetime:
    """A time of a result, a report or evidence."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def clock_offset(
    evidence: t.Mapping[str, t.Any], asked: datetime.datetime, answered: datetime.datetime
) -> dict[str, int]:
    """Microseconds that the host's clock is ahead, and by how many that may be wrong.

    The host began no earlier than it was asked and ended no later than it answered: that bounds
    the offset from both sides.
    """
    one = datetime.timedelta(microseconds=1)
    high = (parse_time(evidence["begun"]) - asked) // one
    low = (parse_time(evidence["ended"]) - answered) // one
    # A clock that was set meanwhile turns the bounds around.
    low, high = min(low, high), max(low, high)
    return {"offset_us": (low + high) // 2, "uncertainty_us": (high - low + 1) // 2}
