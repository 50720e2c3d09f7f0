# SPDX-License-Identifier: GPL-3.0-or-later
"""Text is mapped executable at once and never becomes so later.

systemd's MemoryDenyWriteExecute and PR_SET_MDWE deny exactly that: memory that is writable and
executable, and memory that becomes executable. Programs run under both denials here.
"""

from __future__ import annotations

import ctypes

import pytest
import sample_patch
from chosen_thread import PLACE, open_session
from proof.patching import Patching, only_way
from wfpatch.syscalls import (
    NOT_REPORTED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    mmap_anonymous,
    mprotect,
)

_PR_SET_MDWE, _REFUSE_EXEC_GAIN = 65, 1  # include/uapi/linux/prctl.h, Linux 6.3
NEW_VERSION = "int version(void);\n__attribute__((noipa)) int version(void) { return 42000; }\n"


def _deny() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0)


@pytest.fixture
def denied(program, start):
    """A program that may make no memory executable."""
    process = start(program("register_check"), 1, 2, preexec_fn=_deny)
    session = open_session(process.pid)
    call = mmap_anonymous(PLACE, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC)
    if session.call([call]) != [NOT_REPORTED]:
        pytest.skip("the kernel has no PR_SET_MDWE")
    return process


def test_what_is_denied(denied):
    """The way that the engine does not go: writable first, executable then."""
    session = open_session(denied.pid)
    assert session.call([mmap_anonymous(PLACE, 0x1000, PROT_READ | PROT_WRITE)]) == [PLACE]
    assert session.call([mprotect(PLACE, 0x1000, PROT_READ | PROT_EXEC)]) == [NOT_REPORTED]


@pytest.mark.parametrize(
    ("way", "policy"),
    [("byte", "auto"), ("swap", "auto"), ("hold", "auto"), ("byte", "global")],
)
def test_a_patch_needs_none_of_it(denied, program, tmp_path, monkeypatch, way, policy):
    only_way(monkeypatch, way)
    patching = Patching(tmp_path, denied.pid)
    elf = sample_patch.build(program("register_check"), NEW_VERSION, ["version"])
    patching.add("fix", elf, policy=policy)
    for _ in range(2):
        patching.patched("fix")
        with open(f"/proc/{denied.pid}/maps", encoding="ascii") as file:
            assert not [line for line in file if "wx" in line.split()[1]]
        assert denied.ask("report").split()[3:8:4] == ["0", "42000"]
        patching.reverted("fix")
    assert denied.ask("report").split()[3:8:4] == ["0", "41000"]
