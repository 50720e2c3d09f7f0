# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps __LINE__ of untouched lines as it was: `#line` directives behind each changed place.

Without them a patch that adds a line changes every later function that asserts or logs its line.
A directive goes where a statement ended, never into a comment, a continued line or a macro call.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from wfpatch_build.errors import Refusal

_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


def with_line_numbers_of(old: Path, new: Path) -> str:
    """The text of ``new`` with directives that give its lines the numbers they have in ``old``."""
    text = new.read_text(errors="surrogateescape")
    hunks = _hunks(old, new)
    if not hunks:
        return text
    lines = text.split("\n")
    safe = _safe_places(lines)
    result: list[str] = []
    next_hunk = 0
    shift = wanted = 0  # old number - new number: in force, and as it should be
    for number, line in enumerate(lines, start=1):
        while next_hunk < len(hunks) and hunks[next_hunk][1] <= number:
            wanted = hunks[next_hunk][0] - hunks[next_hunk][1]
            next_hunk += 1
        if wanted != shift and safe[number - 1] and number + wanted > 0:
            result.append(f"#line {number + wanted}")
            shift = wanted
        result.append(line)
    return "\n".join(result)


def _hunks(old: Path, new: Path) -> list[tuple[int, int]]:
    """(old number, new number) of the first line behind each changed place."""
    done = subprocess.run(
        ["diff", "--text", "--unified=0", str(old), str(new)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )
    if done.returncode > 1:
        raise Refusal("tool_missing", f"diff failed: {done.stderr.strip()}")
    behind = []
    for line in done.stdout.split("\n"):
        match = _HUNK.match(line)
        if match:
            old_start, new_start = int(match[1]), int(match[3])
            old_count = 1 if match[2] is None else int(match[2])
            new_count = 1 if match[4] is None else int(match[4])
            # "-a,0" means behind line a.
            behind.append((old_start + (old_count or 1), new_start + (new_count or 1)))
    return behind


# What may stand in a line of C: comment marks, literals (their ends do not count), anything else.
_TOKEN = re.compile(r"""//|/\*|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\S""")


def _safe_places(lines: list[str]) -> list[bool]:
    """For each line: whether a directive may stand in front of it."""
    safe = []
    comment = continued = directive = False
    last = ";"  # the last character of code so far
    for line in lines:
        safe.append(not comment and not continued and last in ";{}:")
        if not continued:
            directive = not comment and line.lstrip().startswith("#")
        at = 0
        while True:
            if comment:
                end = line.find("*/", at)
                if end < 0:
                    break
                comment, at = False, end + 2
            match = _TOKEN.search(line, at)
            if match is None or match[0] == "//":
                break
            at = match.end()
            if match[0] == "/*":
                comment = True
            elif not directive and match[0] != "\\":
                last = match[0][-1]
        continued = line.endswith("\\")
    return safe
