# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demonstration says while it runs, and the failure that ends it."""

from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

BEGAN = time.monotonic()


class Failure(Exception):
    """Something was not as it must be."""


def step(text: str) -> None:
    """Announces the next step."""
    print(f"\n=== {time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def say(text: str) -> None:
    """One fact."""
    print(f"    {text}", flush=True)


def expect(condition: bool, text: str) -> None:
    """A fact that must hold: said when it does, else the end of the demonstration."""
    if not condition:
        raise Failure(text)
    say(f"ok: {text}")


def show(
    command: Sequence[str], log: pathlib.Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs a command, showing its output line by line and keeping it; its exit code and output."""
    say("$ " + shlex.join(command))
    lines = []
    with (
        open(log, "w") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        ) as process,
    ):
        assert process.stdout
        try:
            for line in process.stdout:
                sys.stdout.write(f"      {line}")
                sys.stdout.flush()
                file.write(line)
                lines.append(line)
        except BaseException:
            process.terminate()
            raise
    return process.returncode, "".join(lines)
