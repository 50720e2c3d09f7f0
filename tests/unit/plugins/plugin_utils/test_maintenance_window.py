# SPDX-License-Identifier: GPL-3.0-or-later
"""When waves may begin."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._maintenance_window import is_open


def window(begin, end, *days, zone="UTC"):
    span = {"from": begin, "to": end, **({"days": list(days)} if days else {})}
    return {"timezone": zone, "open": [span]}


@pytest.mark.parametrize(
    ("given", "time", "expected"),
    [
        (None, "2026-01-14 12:00", True),
        # the end is not part of it; 2026-01-14 is a Wednesday
        (window("12:00", "13:00"), "2026-01-14 11:59", False),
        (window("12:00", "13:00"), "2026-01-14 12:00", True),
        (window("12:00", "13:00"), "2026-01-14 12:59", True),
        (window("12:00", "13:00"), "2026-01-14 13:00", False),
        (window("12:00", "13:00", "wed"), "2026-01-14 12:30", True),
        (window("12:00", "13:00", "thu", "fri"), "2026-01-14 12:30", False),
        # over midnight, the day is that on which it began
        (window("22:00", "04:00", "wed"), "2026-01-14 23:00", True),
        (window("22:00", "04:00", "wed"), "2026-01-15 03:59", True),
        (window("22:00", "04:00", "wed"), "2026-01-15 04:00", False),
        (window("22:00", "04:00", "wed"), "2026-01-14 03:00", False),
        (window("22:00", "04:00", "sun"), "2026-01-19 03:00", True),
        # elsewhere it is later
        (window("22:00", "23:00", "thu", zone="Asia/Tokyo"), "2026-01-15 13:30", True),
        (window("22:00", "23:00", "thu", zone="Asia/Tokyo"), "2026-01-15 22:30", False),
    ],
)
def test_windows(given, time, expected):
    now = datetime.datetime.fromisoformat(f"{time}:00+00:00")
    assert is_open(given, now) is expected
