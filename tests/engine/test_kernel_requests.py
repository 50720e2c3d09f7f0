# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel service's uapi as Python sees it; the service itself is tested in tests/vm."""

from __future__ import annotations

import ctypes
import errno
import re
import subprocess

import pytest
from conftest import ROOT
from wfpatch import arm
from wfpatch.backend import Poke, Survey, kernel_requests, selection
from wfpatch.backend.kernel import KernelSession, _as_refusal
from wfpatch.errors import REASONS, Failed, Refused

HEADER = ROOT / "kmod" / "include" / "uapi" / "wfpatch.h"
STRUCTURES = {
    "wfpatch_info": kernel_requests.Info,
    "wfpatch_attach": kernel_requests.Attach,
    "wfpatch_map": kernel_requests.Map,
    "wfpatch_write": kernel_requests.Write,
    "wfpatch_poke": kernel_requests.Poke,
    "wfpatch_move": kernel_requests.Move,
    "wfpatch_arm": kernel_requests.Arm,
    "wfpatch_range": kernel_requests.Range,
    "wfpatch_stack": kernel_requests.Stack,
    "wfpatch_visit": kernel_requests.Visit,
    "wfpatch_listed": kernel_requests.Listed,
    "wfpatch_list": kernel_requests.List,
    "wfpatch_word": kernel_requests.Word,
    "wfpatch_thread": kernel_requests.Thread,
}
CONSTANTS = {
    "UAPI_VERSION",
    "ROWS",
    "MAP_WRITE",
    "MAP_EXEC",
    "KIND_OLD",
    "KIND_PENDING",
    "KIND_SIGNAL",
    "VISIT_MIGRATE",
    "VISIT_ONCE",
    "STATE_CLEAR",
    "REASON_UNSEEN",
    "REASON_RANGE",
    "REASON_STACK",
    "REASON_SIGNAL",
    "REASON_FAULT",
    "REASON_LIMIT",
    "REASON_GS",
    "REASON_CLONE",
    "REASON_MODE",
    "THREAD_MOVE",
    "THREAD_EXPECT",
    "THREAD_WORDS",
    "THREAD_FRAME",
    "MAX_WORDS",
    "MAX_WRITE",
    "SEEN_ASLEEP",
}
REQUESTS = ("INFO", "ATTACH", "LOAD", "UNLOAD", "ARM", "VISIT", "CANCEL", "LIST", "THREAD", "WRITE")


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    """What a C compiler makes of the header: name -> number."""
    lines = []
    for name, structure in STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field in structure._fields_:
            member = field[0].rstrip("_")
            if structure is kernel_requests.Thread and member == "registers":
                lines.append(
                    f'printf("{name}.{field[0]} %zu\\n", offsetof(struct {name}, registers));'
                )
                continue
            lines.append(f'printf("{name}.{field[0]} %zu\\n", offsetof(struct {name}, {member}));')
    for name in sorted(CONSTANTS):
        lines.append(f'printf("{name} %llu\\n", (unsigned long long)WFPATCH_{name});')
    for name in REQUESTS:
        lines.append(f'printf("IOC_{name} %lu\\n", (unsigned long)WFPATCH_IOC_{name});')
    directory = tmp_path_factory.mktemp("uapi")
    source = directory / "uapi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <uapi/wfpatch.h>\n"
        "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    program = directory / "uapi"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-I", HEADER.parents[1], "-o", program, source], check=True
    )
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in output.splitlines())}


def test_structures_are_laid_out_as_in_the_header(header):
    for name, structure in STRUCTURES.items():
        assert ctypes.sizeof(structure) == header[name]
        for field in structure._fields_:
            offset = getattr(structure, field[0]).offset
            assert offset == header[f"{name}.{field[0]}"], f"{name}.{field[0]}"


def test_every_structure_of_the_header_is_bound():
    named = set(re.findall(r"(?m)^struct (wfpatch_\w+) \{", HEADER.read_text()))
    assert named - {"wfpatch_registers"} == set(STRUCTURES)


def test_constants_and_requests_are_those_of_the_header(header):
    for name in CONSTANTS:
        assert getattr(kernel_requests, name) == header[name], name
    for name in REQUESTS:
        assert getattr(kernel_requests, name) == header[f"IOC_{name}"], name


def test_every_reason_of_the_header_has_words():
    from wfpatch.backend import kernel

    numbers = {
        int(number)
        for name, number in re.findall(
            r"(?m)^#define WFPATCH_REASON_(\w+)\s+(\d+)", HEADER.read_text()
        )
        if name != "NONE"
    }
    assert numbers == set(kernel._REASONS)


def as_intervals(ranges):
    return [(item.low, item.high, item.kind) for item in ranges]


def test_ranges_ascend_and_the_first_kind_counts_where_they_overlap():
    made = kernel_requests.ranges(
        ((2, [(50, 60), (10, 20), (20, 25)]), (1, [(5, 12), (15, 55), (70, 80), (100, 90)]))
    )
    assert as_intervals(made) == [(5, 9, 1), (10, 25, 2), (26, 49, 1), (50, 60, 2), (70, 80, 1)]


def test_ranges_cover_what_they_were_given_and_overlap_nowhere():
    import random

    random.seed(7)
    for _ in range(200):
        kinds = [
            (kind, [(low, low + random.randrange(9)) for low in random.sample(range(90), 6)])
            for kind in (2, 1, 4)
        ]
        made = as_intervals(kernel_requests.ranges(kinds))
        assert made == sorted(made)
        assert all(made[i][1] < made[i + 1][0] for i in range(len(made) - 1))
        for word in range(110):
            wanted = next(
                (kind for kind, spans in kinds if any(a <= word <= b for a, b in spans)), None
            )
            assert next((kind for a, b, kind in made if a <= word <= b), None) == wanted


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ESRCH, "target_exited"),
        (errno.EBUSY, "busy"),
        (errno.EPERM, "no_permission"),
        (errno.EACCES, "no_permission"),
        (errno.EOPNOTSUPP, "not_64bit"),
        (errno.ENOMEM, "kernel_service_failed"),
        (errno.EFAULT, "kernel_service_failed"),
        (errno.EINVAL, "kernel_service_failed"),
        (errno.E2BIG, "kernel_service_failed"),
        (errno.ENOTTY, "kernel_service_failed"),
        (errno.EINTR, "kernel_service_failed"),
    ],
)
def test_each_errno_is_a_reason_code(number, reason):
    error = _as_refusal(OSError(number, "words"), 42, "arming")
    assert error.reason == reason
    assert reason in REASONS
    assert "42" in error.message


def test_auto_falls_back_where_no_kernel_service_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_requests, "DEVICE", str(tmp_path / "none"))
    assert selection.select_backend("auto").name == "ptrace"
    with pytest.raises(Refused, match="not loaded") as caught:
        selection.select_backend("kernel")
    assert caught.value.reason == "backend_unavailable"


def test_another_version_of_the_interface_is_not_used(monkeypatch):
    other = kernel_requests.Info(uapi_version=kernel_requests.UAPI_VERSION + 1)
    monkeypatch.setattr(kernel_requests, "read_info", lambda: other)
    assert selection.select_backend("auto").name == "ptrace"
    with pytest.raises(Refused, match="version 2"):
        selection.select_backend("kernel")


class Answers:
    """A kernel service that answers each request with an errno."""

    def __init__(self, monkeypatch, number):
        monkeypatch.setattr(kernel_requests, "attach", lambda pid: 9999)
        monkeypatch.setattr(kernel_requests, "request", self)
        self.number = number

    def __call__(self, fd, number, arguments=None):
        if number == kernel_requests.ARM:
            places = (kernel_requests.Poke * arguments.n_pokes).from_address(arguments.pokes)
            places[-1].result = -self.number
        raise OSError(self.number, "planted")


@pytest.fixture
def session():
    process = subprocess.Popen(["sleep", "600"])
    made = KernelSession(process.pid)
    yield made
    made._fd = -1
    made.close()
    process.kill()
    process.wait()


def test_bytes_that_are_others_are_refused(monkeypatch, session):
    Answers(monkeypatch, errno.EILSEQ)
    with pytest.raises(Refused) as caught:
        session.poke([Poke(0x1000, b"\x90", b"\xe9", 0x2000)])
    assert caught.value.reason == "old_code_mismatch"


def test_a_thread_that_stays_inside_is_said(monkeypatch, session):
    Answers(monkeypatch, errno.EAGAIN)
    pokes = [Poke(0x1000, b"\x90", b"\xe9", 0x2000)]
    assert session.poke(pokes) == "thread 0 (0x0)"
    monkeypatch.setattr(arm, "POKE_TIMEOUT", 0.02)
    with pytest.raises(Failed) as caught:
        arm.poke_until_done(session, pokes, {})
    assert caught.value.reason == "code_busy"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOENT, "thread_gone"),
        (errno.EAGAIN, "thread_unstoppable"),
        (errno.ESTALE, "thread_unstoppable"),
        (errno.EOPNOTSUPP, "thread_unstoppable"),
    ],
)
def test_a_thread_that_cannot_be_seen_is_named(monkeypatch, session, number, reason):
    Answers(monkeypatch, number)
    with pytest.raises(Failed) as caught, session.visit(session.pid, "observe"):
        pass
    assert caught.value.reason == reason


def test_a_survey_that_fails_is_no_crash(monkeypatch, session):
    Answers(monkeypatch, errno.ENOMEM)
    with pytest.raises(Failed) as caught:
        session.survey(Survey())
    assert caught.value.reason == "kernel_service_failed"
