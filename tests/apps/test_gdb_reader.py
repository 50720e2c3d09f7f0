# SPDX-License-Identifier: GPL-3.0-or-later
"""The independent reader is judged: on a process armed by hand it must see what is there."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

HERE = pathlib.Path(__file__).resolve().parent
READER = HERE / "gdb_reader"


@dataclass
class Armed:
    """The process, and the addresses it told."""

    process: subprocess.Popen[str]
    entry: int
    prefixed: int
    untouched: int
    new: int
    elsewhere: int

    def set_slot(self, row: int, address: int) -> None:
        """Redirects one row's slot behind everybody's back."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"slot {row} {address}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def function(self, **changes: Any) -> dict[str, Any]:
        """What a truthful applier says of answer()."""
        return {
            "name": "answer",
            "patch": "p",
            "entry": self.entry,
            "arming": "byte",
            "leads_to": "new",
            "address": self.new,
            **changes,
        }

    def read(self, *functions: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The reader's exit code and its findings."""
        result = {"processes": [{"pid": self.process.pid, "functions": list(functions)}]}
        done = subprocess.run(
            [sys.executable, READER, str(self.process.pid), "-"],
            input=json.dumps(result),
            capture_output=True,
            text=True,
        )
        assert done.stdout or done.returncode == 2, done.stderr
        return done.returncode, json.loads(done.stdout or "{}")


@pytest.fixture
def armed(tmp_path: pathlib.Path) -> Iterator[Armed]:
    program = tmp_path / "armed_by_hand"
    source = HERE / "programs" / "armed_by_hand.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-pthread", "-o", program, source], check=True)
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            *addresses, returned = map(int, process.stdout.readline().split())
            assert returned == 14, "calls must reach the code in the region"
            yield Armed(process, *addresses)
        finally:
            process.kill()


def test_the_reader_agrees_with_the_truth(armed: Armed) -> None:
    code, found = armed.read(armed.function())
    assert code == 0
    assert sorted(found["threads"].values()) == [0, 4096]
    assert set(found["functions"][0]["threads"].values()) == {armed.new}


def test_jumps_of_other_forms_are_followed(armed: Armed) -> None:
    """A prefix before the jump at the entry, an absolute jump at the landing."""
    code, found = armed.read(armed.function(entry=armed.prefixed))
    assert code == 0
    assert len(found["functions"][0]["jumps"]) == 2


def test_one_rows_slot_redirected_is_seen(armed: Armed) -> None:
    """Only the thread in row 1 is affected, and only it gives it away."""
    armed.set_slot(1, armed.elsewhere)
    code, found = armed.read(armed.function())
    assert code == 1
    assert set(found["functions"][0]["threads"].values()) == {armed.new, armed.elsewhere}
    armed.set_slot(1, armed.new)
    assert armed.read(armed.function())[0] == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"address": 1},
        {"leads_to": "unknown"},
        {"arming": None, "leads_to": "old", "address": 4096},
    ],
)
def test_a_lying_applier_is_contradicted(armed: Armed, lie: dict[str, Any]) -> None:
    assert armed.read(armed.function(**lie))[0] == 1


def test_an_entry_that_is_not_armed(armed: Armed) -> None:
    """untouched() runs as shipped; whoever says otherwise is wrong."""
    shipped = {"entry": armed.untouched, "arming": None, "leads_to": "old", "address": None}
    code, found = armed.read(armed.function(**shipped))
    assert (code, found["functions"][0]["as_shipped"]) == (0, True)
    assert armed.read(armed.function(entry=armed.untouched))[0] == 1


def test_nothing_to_compare_is_no_success(armed: Armed) -> None:
    assert armed.read()[0] == 2


def test_the_process_runs_on(armed: Armed) -> None:
    """gdb was there and left no trace."""
    armed.read(armed.function())
    armed.set_slot(0, armed.new)
    status = pathlib.Path(f"/proc/{armed.process.pid}/status").read_text()
    assert "\nTracerPid:\t0\n" in status
    assert armed.process.poll() is None
