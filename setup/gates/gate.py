# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gate is, and the tree it looks at."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a gate found: how many things it checked, and what is wrong, a line each.

    A gate that checked nothing has failed: it would say the same of a tree full of faults.
    """

    checked: int
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.checked > 0 and not self.problems


@dataclasses.dataclass(frozen=True)
class Tree:
    """A checkout and its tracked files that exist, relative to it."""

    top: pathlib.Path
    files: tuple[pathlib.Path, ...]

    @classmethod
    def read(cls, top: pathlib.Path) -> Tree:
        told = subprocess.run(
            ["git", "-C", str(top), "ls-files", "-z", "--cached"], check=True, capture_output=True
        ).stdout
        names = (pathlib.Path(os.fsdecode(name)) for name in told.split(b"\0") if name)
        return cls(top, tuple(sorted(name for name in names if (top / name).is_file())))

    def below(self, *directories: str) -> tuple[pathlib.Path, ...]:
        """The files in any of these directories."""
        wanted = tuple(pathlib.PurePath(directory) for directory in directories)
        return tuple(f for f in self.files if any(d in f.parents for d in wanted))

    def run(self, *command: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
        """Run a tool at the tree's top; its output and errors come together, as it ordered them."""
        tools = pathlib.Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "WFPATCH_VENV": sys.prefix,
            "NO_COLOR": "1",
        }
        return subprocess.run(
            [str(word) for word in command],
            cwd=self.top,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@dataclasses.dataclass(frozen=True)
class Gate:
    """A named check of a tree; ``unit`` says what it counts."""

    name: str
    unit: str
    check: Callable[[Tree], Outcome]


def told(done: subprocess.CompletedProcess[str]) -> tuple[str, ...]:
    """A failed tool's words as problems; none if it was content."""
    if done.returncode == 0:
        return ()
    lines: Sequence[str] = [line for line in done.stdout.splitlines() if line.strip()]
    return tuple(lines) or (f"{done.args[0]} exited with {done.returncode} and said nothing",)
