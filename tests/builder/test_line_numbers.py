# SPDX-License-Identifier: GPL-3.0-or-later
"""`#line` directives: unchanged lines keep their numbers, and the source stays what it was."""

from __future__ import annotations

import subprocess

import pytest
from wfpatch_build.line_numbers import with_line_numbers_of

OLD = """\
#include <stdio.h>
#define SHOW(text) printf("%s %d\\n", text, __LINE__)
/* a comment
   that has
   several lines */
#define LONG(x) \\
    do { \\
        SHOW(x); \\
    } while (0)
static void a(void)
{
    SHOW("a");
}
static void b(void)
{
    SHOW("b 'quoted' /* no comment */");
    printf("%s %d\\n",
           "args",
           __LINE__);
}
/* it's */ static void c(void) { SHOW("c"); }
static void d(void) { LONG("d"); }
int main(void)
{
    a();
    b(); // it's a comment
    c();
    d();
    return 0;
}
"""


def output(path, tmp_path) -> list[str]:
    program = tmp_path / "program"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, path], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n")


def added(number: int, line: str) -> str:
    lines = OLD.split("\n")
    return "\n".join([*lines[:number], line, *lines[number:]])


@pytest.mark.parametrize(
    "new",
    [
        added(1, "#include <stdlib.h>"),
        added(2, "\n\n\n"),
        added(4, "   more"),
        added(6, "    if (1) \\"),
        added(9, "static int fresh;\nint *where(void) { return &fresh; }"),
        added(17, '           ""'),
        OLD.replace("/* a comment\n   that has\n   several lines */\n", ""),
        OLD.replace("   that has\n", "   that has\n   still\n").replace("{ LONG", "{\n\n LONG"),
        "\n" + OLD.replace("\nstatic void b", "\n\n\nstatic void b"),
    ],
    ids=["include", "blank", "comment", "macro", "declaration", "call", "shorter", "two", "top"],
)
def test_lines_keep_their_numbers(new, tmp_path):
    old_file, new_file, marked = (tmp_path / n for n in ("old.c", "new.c", "marked.c"))
    old_file.write_text(OLD)
    new_file.write_text(new)
    text = with_line_numbers_of(old_file, new_file)
    marked.write_text(text)
    before, after = output(old_file, tmp_path), output(marked, tmp_path)
    # The number of the changed place itself is its own; all others are as they were.
    assert len(before) == len(after)
    different = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert len(different) <= 1, different
    if "args" not in new.replace(OLD, "") or "LONG" not in new:
        assert different == []


def test_nothing_but_directives_is_added(tmp_path):
    old_file, new_file = tmp_path / "old.c", tmp_path / "new.c"
    old_file.write_text(OLD)
    new_file.write_text(added(9, "int x;"))
    text = with_line_numbers_of(old_file, new_file)
    kept = [line for line in text.split("\n") if not line.startswith("#line ")]
    assert "\n".join(kept) == new_file.read_text()
    assert kept != text.split("\n")


def test_an_unchanged_file_is_left_alone(tmp_path):
    old_file = tmp_path / "old.c"
    old_file.write_text(OLD)
    assert with_line_numbers_of(old_file, old_file) == OLD
