# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest's YAML means one thing only, and every value knows its line."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._manifest_yaml import (
    MAX_SIZE,
    read_manifest_yaml,
)


def test_lines_of_keys_and_items():
    document = read_manifest_yaml("---\n# comment\na:\n  - x\n\n  - b: 1\n    c: null\nd: {e: f}\n")
    assert document.problems == []
    assert document.data == {"a": ["x", {"b": 1, "c": None}], "d": {"e": "f"}}
    assert document.line(("a",)) == 3
    assert document.line(("a", 1, "c")) == 7
    assert document.line(("d", "e")) == 8
    assert document.line(("a", 1, "nothing", "there")) == 6


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-01-15", "2026-01-15"),
        ("5:7.0.15-1~deb12u7", "5:7.0.15-1~deb12u7"),
        ("1.6.18-1", "1.6.18-1"),
        ('"1.10"', "1.10"),
        ("'no'", "no"),
        ("17", 17),
        ("-3", -3),
        ("true", True),
        ("~", None),
        ("", None),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("0123456789abcdef0123456789abcdef01234567", "0123456789abcdef0123456789abcdef01234567"),
    ],
)
def test_plain_scalars(text, value):
    document = read_manifest_yaml(f"a: {text}\n")
    assert document.problems == []
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


@pytest.mark.parametrize(
    "text",
    ["1.10", "1e3", "017", "0x1f", "0o17", "1_000", "1:30", ".inf", ".nan", "yes", "No", "off"]
    + ["TRUE", "Null", "+1", "-.5"],
)
def test_what_two_readers_read_differently_is_refused(text):
    problems = read_manifest_yaml(f"x: z\na: {text}\n").problems
    assert [(problem.line, problem.path) for problem in problems] == [(2, ("a",))]
    assert "quotes" in problems[0].message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "second time"),
        ("a: &x [1]\nb: *x\n", 1, "alias"),
        ("a: 1\nb: !!python/name:os.system ''\n", 2, "tag"),
        ("a: !!set {b}\n", 1, "tag"),
        ("[1]: 2\n", 1, "word"),
        ("a: [1\nb: 2\n", 2, "not YAML"),
        ("a: 1\n--- \nb: 1\n", 2, "not YAML"),
        ("a: b\x01\n", 1, "not YAML"),
        ("", 1, "empty"),
        ("# only a comment\n", 1, "empty"),
        ("a: " + "[" * 5000 + "]" * 5000, 1, "deep"),
        ("a: " + "x" * MAX_SIZE, 1, "larger"),
    ],
)
def test_what_a_manifest_may_not_do(text, line, words):
    problems = read_manifest_yaml(text).problems
    assert problems
    assert problems[0].line == line
    assert words in problems[0].message


def test_many_aliases_do_not_multiply():
    text = "a: &a [x, x]\n" + "".join(
        f"{new}: &{new} [*{old}, *{old}, *{old}]\n"
        for old, new in zip("abcdefghijklmn", "bcdefghijklmno", strict=True)
    )
    assert len(read_manifest_yaml(text).problems) == 3 * 14
