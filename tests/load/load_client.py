# SPDX-License-Identifier: GPL-3.0-or-later
"""Building and driving the load client from Python."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent


class LoadError(Exception):
    """The load client could not be built, started or asked."""


def build() -> pathlib.Path:
    """The compiled client, from the cache when these very sources were compiled before."""
    sources = sorted(path for path in HERE.iterdir() if path.suffix in (".c", ".h"))
    sources.append(HERE / "Makefile")
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    folder = pathlib.Path(os.environ.get("WFPATCH_CACHE") or "/var/cache/wfpatch") / "load"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"load-{digest[:16]}"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            new = path.with_suffix(".new")
            done = subprocess.run(
                ["make", "--silent", "--always-make", "-C", HERE, f"OUT={new}"],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise LoadError(f"the load client does not compile:\n{done.stderr}")
            new.rename(path)
    return path


class LoadClient:
    """A running load. Its verdict is a dict, as `load --help` and load.c describe it."""

    def __init__(self, process: subprocess.Popen[str], control: pathlib.Path) -> None:
        self.process = process
        self.control = control

    def phase(self, name: str) -> None:
        """Counts what is sent from now on under that name."""
        self._ask(f"phase {name}")

    def verdict_so_far(self) -> dict[str, Any]:
        """The verdict as it stands; the load goes on."""
        verdict: dict[str, Any] = json.loads(self._ask("verdict"))
        return verdict

    def stop(self, timeout: float = 30) -> dict[str, Any]:
        """Ends the load, waits for the last answers, returns the verdict."""
        if self.process.poll() is None:
            with contextlib.suppress(LoadError):
                self._ask("stop")
        return self.wait(timeout)

    def wait(self, timeout: float) -> dict[str, Any]:
        """Waits for the load's own end; returns the verdict.

        Raises LoadError when the exit code and the verdict do not agree, or there is none.
        """
        output, errors = self.process.communicate(timeout=timeout)
        try:
            verdict: dict[str, Any] = json.loads(output)
        except ValueError as error:
            raise LoadError(f"no verdict, exit code {self.process.returncode}: {errors}") from error
        if (self.process.returncode == 0) != (verdict["verdict"] == "pass"):
            raise LoadError(f"exit code {self.process.returncode}, yet {verdict['verdict']}")
        return verdict

    def _ask(self, text: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
                asker.bind(f"{folder}/s")
                asker.settimeout(10)
                try:
                    asker.sendto(text.encode(), str(self.control))
                    answer = asker.recv(1 << 20).decode()
                except OSError as error:
                    raise LoadError(f"the load client does not answer: {error}") from error
        if answer == "unknown\n":
            raise LoadError(f"the load client does not know {text!r}")
        return answer


@contextlib.contextmanager
def running(
    protocol: str, *options: str, prefix: Sequence[str] = (), seconds: int = 3600
) -> Iterator[LoadClient]:
    """A load for the length of a `with`; `options` go to the client (see load --help).

    `prefix` is a command line that runs the client somewhere else, such as a network namespace.
    Leaving the block ends it; call `stop` before for the verdict.
    """
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        control = pathlib.Path(folder) / "control"
        process = subprocess.Popen(
            [
                *prefix,
                str(build()),
                *(f"--control={control}", f"--seconds={seconds}"),
                *options,
                protocol,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            client = LoadClient(process, control)
            _wait_for_answers(client)
            yield client
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
            process.communicate()


def _wait_for_answers(client: LoadClient, timeout: float = 20) -> None:
    """Returns once the client is at work; LoadError when it ended before."""
    until = time.monotonic() + timeout
    while True:
        if client.process.poll() is not None:
            raise LoadError(f"the load ended at once: {client.process.communicate()[1]}")
        try:
            if client.control.exists() and client.verdict_so_far()["answered"]:
                return
        except LoadError:
            if time.monotonic() > until:
                raise
        if time.monotonic() > until:
            raise LoadError("the load did not begin")
        time.sleep(0.01)
