# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A check for Nagios and its kin: one line with performance data, and an exit code.

It needs nothing but Python. The playbook writes this very file beside the report as
``check_wfpatch``, for a monitoring host: a check reads the report each time, so that it also sees
that nobody has written a newer one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys

OK, WARNING, CRITICAL, UNKNOWN = 0, 1, 2, 3
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
#: What each state of a host is to a monitor.
SEVERITY = {
    "not_affected": OK,
    "fixed": OK,
    "patched": OK,
    "pending": WARNING,
    "unknown": UNKNOWN,
    "partial": CRITICAL,
    "unpatchable": CRITICAL,
    "blocked": CRITICAL,
    "vulnerable": CRITICAL,
}
#: Of several, the worse: a fault that is known is worse than one that may be.
ORDER = (OK, WARNING, UNKNOWN, CRITICAL)
LISTED = 5


def _time(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def _plain(text):
    """A text for one line: neither the separator of performance data nor control characters."""
    return "".join("_" if c in "|'=" or not c.isprintable() else c for c in text)


def check(report, now, flagged_is=WARNING):
    """The line and the exit code. ``flagged_is``: what outdated images are to the monitor."""
    states = {}
    flagged = stale = 0
    for host in report["hosts"]:
        old = host["expires"] is not None and now > _time(host["expires"])
        stale += old
        state = "unknown" if old else host["state"]
        states.setdefault(state, []).append(host["name"])
        flagged += host["flagged"]
    found = [SEVERITY.get(state, UNKNOWN) for state in states]
    if flagged:
        found.append(flagged_is)
    if not report["hosts"] or not report["cves"]:
        found.append(UNKNOWN)
    code = max(found, key=ORDER.index)
    parts = []
    for state in sorted(states, key=lambda each: -ORDER.index(SEVERITY.get(each, UNKNOWN))):
        names = states[state]
        shown = ""
        if SEVERITY.get(state, UNKNOWN) != OK:
            shown = ", ".join(_plain(name) for name in names[:LISTED])
            shown = " ({}{})".format(shown, ", ..." if len(names) > LISTED else "")
        parts.append(f"{len(names)} {state}{shown}")
    if flagged:
        parts.append(f"{flagged} outdated images")
    if stale:
        parts.append(f"evidence of {stale} hosts is stale")
    if not report["cves"]:
        parts.append("no manifest names a CVE")
    total = len(report["hosts"])
    age = max(0, int((now - _time(report["time"])).total_seconds()))
    data = [f"{state}={len(states.get(state, ()))};;;0;{total}" for state in SEVERITY]
    data += [f"outdated={flagged};;;0", f"stale={stale};;;0;{total}", f"age={age}s;;;0"]
    line = "WFPATCH {} - {} | {}".format(WORDS[code], "; ".join(parts), " ".join(data))
    return line, code


def main(argv=None):
    """The check as a command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Check a compliance report of wfpatch.")
    parser.add_argument("report", help="report.json, as the compliance playbook writes it")
    parser.add_argument(
        "--outdated",
        choices=("ok", "warning", "critical"),
        default="warning",
        help="what processes with outdated images are (default: warning)",
    )
    arguments = parser.parse_args(argv)
    try:
        with open(arguments.report, encoding="utf-8") as file:
            report = json.load(file)
        now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 - any Python 3.7 and later
        outdated = {"ok": OK, "warning": WARNING, "critical": CRITICAL}[arguments.outdated]
        line, code = check(report, now, outdated)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        line = f"WFPATCH UNKNOWN - the report cannot be read: {_plain(str(error))[:200]}"
        code = UNKNOWN
    print(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
