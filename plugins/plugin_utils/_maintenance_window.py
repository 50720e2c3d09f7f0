# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Maintenance windows: when a wave may begin."""

from __future__ import annotations

import datetime
import typing as t
import zoneinfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def time_zone(name: str) -> datetime.tzinfo:
    """The time zone of that name; UTC needs no database.

    Raises what zoneinfo.ZoneInfo raises for others.
    """
    return datetime.UTC if name == "UTC" else zoneinfo.ZoneInfo(name)


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)


def is_open(window: dict[str, t.Any] | None, now: datetime.datetime) -> bool:
    """Whether a wave may begin at ``now``, an aware time. ``window``: as in the policy.

    A span that ends on the next day belongs to the day on which it began.
    """
    if window is None:
        return True
    local = now.astimezone(time_zone(window["timezone"]))
    minute = local.hour * 60 + local.minute
    for span in window["open"]:
        begin, end = _minutes(span["from"]), _minutes(span["to"])
        days = span.get("days", DAYS)
        today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
        if begin < end:
            if today in days and begin <= minute < end:
                return True
        elif (today in days and minute >= begin) or (yesterday in days and minute < end):
            return True
    return False
