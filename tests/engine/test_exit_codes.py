# SPDX-License-Identifier: GPL-3.0-or-later
"""The exit codes of the command line: what they are, and that the documents say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from wfpatch.cli import EXIT_CODES, EXIT_OF_REASON, exit_code, main
from wfpatch.errors import REASONS
from wfpatch.report import Result

OPERATORS = Path(__file__).resolve().parents[2] / "docs" / "operators.md"


def documented():
    rows = re.findall(r"^\| (\d) \| (.*) \|$", OPERATORS.read_text(), re.MULTILINE)
    return {int(code): text for code, text in rows}


def of_help():
    rows = re.findall(r"^  (\d)  (.*)$", EXIT_CODES, re.MULTILINE)
    return {int(code): text for code, text in rows}


def test_the_operators_page_and_the_help_say_the_same():
    assert documented() == of_help()
    assert sorted(of_help()) == list(range(8))


def test_every_code_that_a_reason_gives_is_documented():
    assert set(EXIT_OF_REASON) <= set(REASONS)
    assert set(EXIT_OF_REASON.values()) <= set(documented())


@pytest.mark.parametrize(
    ("state", "reason", "command", "code"),
    [
        ("patched", None, "apply", 0),
        ("patched", None, "verify", 0),
        ("fixed", None, "verify", 0),
        ("vulnerable", None, "status", 0),
        ("vulnerable", None, "verify", 3),
        ("not_affected", None, "verify", 7),
        ("not_affected", "no_matching_process", "apply", 7),
        ("blocked", None, "apply", 3),
        ("blocked", "old_code_mismatch", "plan", 3),
        ("pending", None, "apply", 4),
        ("partial", "stragglers", "apply", 4),
        ("unknown", "tampered", "status", 5),
        ("unknown", "header_corrupt", "verify", 5),
        ("blocked", "busy", "apply", 6),
        ("patched", "health_check_failed", "apply", 1),
        ("unknown", "target_exited", "apply", 1),
    ],
)
def test_exit_code_of_a_result(state, reason, command, code):
    assert exit_code(Result(False, state, reason=reason), command) == code


@pytest.mark.parametrize("words", [[], ["nosuch"], ["apply"], ["apply", "--pid", "x", "fix"]])
def test_wrong_usage(words, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("wfpatch: usage: ")
    assert main(["--json", *words]) == 2
    assert json.loads(capsys.readouterr().out)["reason"] == "usage"


def test_messages_are_escaped(tmp_path, capsys):
    """An id that holds escape sequences comes back as text."""
    words = ["--store", str(tmp_path), "apply", "\x1b[2Jx"]
    assert main(words) == 2
    assert "\x1b" not in capsys.readouterr().err
