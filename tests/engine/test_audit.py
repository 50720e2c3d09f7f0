# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit log: a whole line for each change, whoever is killed while it is written."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import struct
import subprocess
import sys
import time

import pytest
from watched.world import Watch, Watched, ended
from wfpatch.audit import DEFAULT_LOG, MAX_LINE, AuditLog, log_of, seal
from wfpatch.host import Options
from wfpatch.store import DEFAULT_STORE

WRITER = """
import sys, itertools
from pathlib import Path
from wfpatch.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), "test")
for number in itertools.count():
    log.note("try", number=number, text="x" * (number * 37 % 1500))
"""


def lines(path):
    """The log's lines, each of which must be whole."""
    text = path.read_bytes()
    assert text.endswith((b"\n", b" "))
    return [json.loads(line) for line in text.split(b"\n") if line.strip()]


@pytest.fixture
def world(tmp_path):
    return Watched(tmp_path)


def test_where_it_is(tmp_path):
    assert log_of(DEFAULT_STORE) == DEFAULT_LOG
    assert log_of(tmp_path) == tmp_path / "audit.log"


def test_who_what_when_digest_result(world, start):
    running = start(world.program)
    begun = time.time()
    for verb in ("apply", "apply", "revert"):
        assert world.signed.run(verb, "fix-answer").code == 0
    path = log_of(world.signed.path)
    assert path.stat().st_mode & 0o777 == 0o600
    applied, wanted, reverted, unwanted = lines(path)
    digest = world.signed.store().bundle("fix-answer").digest
    for line, what, state in ((applied, "apply", "patched"), (reverted, "revert", "vulnerable")):
        assert (line["what"], line["patch"], line["digest"]) == (what, "fix-answer", digest)
        assert (line["state"], line["reason"], line["changed"]) == (state, None, True)
        assert (line["pid"], line["comm"], line["exe"]) == (
            running.pid,
            "service",
            str(world.program),
        )
        assert (line["user"], line["by"], line["signer"]) == (
            getpass.getuser(),
            "command",
            "tests@wfpatch",
        )
        stamp = time.mktime(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S"))
        assert abs(stamp - time.mktime(time.gmtime(begun))) < 600
    assert (wanted["what"], wanted["added"], wanted["removed"]) == ("want", ["fix-answer"], [])
    assert (unwanted["what"], unwanted["added"], unwanted["removed"]) == (
        "want",
        [],
        ["fix-answer"],
    )


def test_what_was_refused_is_in_it(world, start):
    running = start(world.program)
    world.signed.add(
        "no-fix",
        world.signed.folder("fix-answer").joinpath("patch.elf").read_bytes(),
        requires=["nothing"],
    )
    assert world.signed.run("apply", "no-fix", "--pid", running.pid).code == 3
    (line,) = lines(log_of(world.signed.path))
    assert (line["what"], line["reason"], line["changed"]) == (
        "apply",
        "required_patch_missing",
        False,
    )
    assert "nothing" in line["message"]


def test_the_watch_is_named(world, start):
    world.want("fix-answer")
    watching = Watch(world.signed, "--starts", "polling")
    try:
        running = start(world.program)
        watching.until("patched", running.pid)
    finally:
        ended(watching)
    (line,) = lines(log_of(world.signed.path))
    assert (line["by"], line["what"], line["pid"]) == ("watch", "apply", running.pid)


def test_no_line_crosses_a_page(tmp_path):
    path = tmp_path / "log"
    log = AuditLog(path, "test")
    for number in range(60):
        log.note("try", number=number, text="x" * (number * 97 % 2000))
    log.note("long", message="\x1b" * 4000, exe="e" * 4000)
    offset = 0
    for line in path.read_bytes().splitlines(keepends=True):
        begin, end = offset + len(line) - len(line.lstrip(b" ")), offset + len(line)
        assert begin // MAX_LINE == (end - 1) // MAX_LINE, (begin, end)
        offset = end
    found = lines(path)
    assert [line["number"] for line in found[:-1]] == list(range(60))
    assert found[-1]["what"] == "long" and found[-1]["exe"].startswith("eee")


def test_somebody_elses_half_line_stays_alone(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"what":"ha')
    AuditLog(path, "test").note("whole")
    half, whole = path.read_bytes().splitlines()
    assert half == b'{"what":"ha'
    assert json.loads(whole)["what"] == "whole"


def test_killed_writers_leave_whole_lines(tmp_path):
    path = tmp_path / "log"
    for turn in range(6):
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(3)]
        size = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 30
        while not path.exists() or path.stat().st_size < size + 20000 * (1 + turn % 3):
            assert time.monotonic() < deadline and all(w.poll() is None for w in writers)
        for writer in writers:
            writer.kill()
        for writer in writers:
            writer.wait(10)
    found = lines(path)
    assert len(found) > 50 and {line["what"] for line in found} == {"try"}


def test_a_log_that_cannot_be_written_keeps_no_patch_back(world, start):
    running = start(world.program)
    log_of(world.signed.path).mkdir(parents=True)
    result = world.host().apply(["fix-answer"], Options(pids=(running.pid,)))
    assert (result.state, result.reason) == ("patched", None)
    assert any("audit log" in warning for warning in result.warnings)


def test_a_link_is_not_followed(tmp_path):
    path, other = tmp_path / "log", tmp_path / "other"
    path.symlink_to(other)
    log = AuditLog(path, "test")
    log.note("try")
    assert log.problem and not other.exists()


def test_a_sealed_file_can_only_be_appended_to(tmp_path):
    path = tmp_path / "log"
    log = AuditLog(path, "test")
    log.note("first")
    with open(path, "rb") as file:
        if not seal(file.fileno()):
            pytest.skip("the file system has no such attribute")
        try:
            log.note("second")
            assert not log.problem
            for attempt in (path.unlink, lambda: os.truncate(path, 0)):
                with pytest.raises(PermissionError):
                    attempt()
            with pytest.raises(PermissionError):
                path.write_bytes(b"")
            assert [line["what"] for line in lines(path)] == ["first", "second"]
        finally:
            with contextlib.suppress(OSError):
                fcntl.ioctl(file.fileno(), 0x40086602, struct.pack("@l", 0))
