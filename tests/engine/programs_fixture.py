# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiling and running the test programs of tests/engine/programs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent / "programs"
COMPILE = ["gcc", "-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-pthread"]


class ProgramCache:
    """Compiles a program once per source content and flags, into the cache directory."""

    def __init__(self, fallback: Path) -> None:
        wanted = Path(os.environ.get("WFPATCH_CACHE", "/var/cache/wfpatch")) / "test-programs"
        try:
            wanted.mkdir(parents=True, exist_ok=True)
            self.directory = wanted if os.access(wanted, os.W_OK) else fallback
        except OSError:
            self.directory = fallback

    def build(self, name: str, *flags: str, shared: bool = False) -> Path:
        """The executable (or shared library) of programs/<name>.c."""
        source = PROGRAMS / f"{name}.c"
        command = [*COMPILE, *(["-shared", "-fPIC"] if shared else []), *flags]
        key = hashlib.sha256()
        key.update("\0".join(command).encode())
        for part in [source, *sorted(PROGRAMS.glob("*.h"))]:
            key.update(part.read_bytes())
        target = self.directory / f"{name}-{key.hexdigest()[:16]}{'.so' if shared else ''}"
        if not target.exists():
            partial = target.with_name(f"{target.name}.{os.getpid()}")
            libraries = [flag for flag in flags if flag.startswith("-l")]
            others = [flag for flag in command if not flag.startswith("-l")]
            subprocess.run([*others, "-o", str(partial), str(source), *libraries], check=True)
            partial.rename(target)
        return target


class RunningProgram:
    """A test program with its output as lines and its input for commands."""

    def __init__(
        self,
        *arguments: object,
        env: dict[str, str] | None = None,
        ready: str | None = "ready",
        timeout: float = 60.0,
        **options: object,
    ) -> None:
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            **options,
        )
        self.pid = self.process.pid
        self._pending = b""
        if ready is not None:
            line = self.line(timeout)
            assert line.startswith(ready), f"{arguments[0]} said {line!r}, not {ready!r}"
            self.ready_line = line

    def line(self, timeout: float = 60.0) -> str:
        """The next line of output; "" at its end. AssertionError when none comes in time."""
        output = self.process.stdout
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            readable, _, _ = select.select([output], [], [], max(left, 0))
            assert readable, f"no line from process {self.pid} within {timeout} s"
            data = os.read(output.fileno(), 65536)
            if not data:
                line, self._pending = self._pending, b""
                return line.decode()
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    def say(self, text: str) -> None:
        """Send one line to the program's input."""
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, text: str, timeout: float = 60.0) -> str:
        """Send one line and return the next line of output."""
        self.say(text)
        return self.line(timeout)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def states(self) -> dict[int, str]:
        """Kernel state letter of each thread."""
        result = {}
        for tid in os.listdir(f"/proc/{self.pid}/task"):
            try:
                text = Path(f"/proc/{self.pid}/task/{tid}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            result[int(tid)] = text.rpartition(")")[2].split()[0]
        return result

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)


def reap(running: RunningProgram) -> None:
    """End a test program and wait for it."""
    process = running.process
    if process.poll() is None:
        process.kill()
        process.send_signal(signal.SIGCONT)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    process.wait(30)
