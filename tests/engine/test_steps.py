# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that changes a process passes steps.step: proven over the source of the applier."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wfpatch

PACKAGE = Path(wfpatch.__file__).parent
PTRACE = PACKAGE / "backend" / "ptrace_requests.py"
MEMORY = PACKAGE / "memory.py"
KERNEL = PACKAGE / "backend" / "kernel_requests.py"
#: Asks a file system for an attribute of its own file.
AUDIT = PACKAGE / "audit.py"
WRITES = ("write", "pwrite", "pwritev", "sendfile", "splice")
HARMLESS = ("INFO", "ATTACH", "CANCEL", "LIST")
FORBIDDEN = {
    # by number as well as by name: include/uapi/linux/ptrace.h
    "ATTACH": 16,
    "SINGLESTEP": 9,
    "SYSCALL": 24,
    "POKEDATA": 5,
    "POKETEXT": 4,
    "SETOPTIONS": 0x4200,
    "TRACEME": 0,
}


def sources():
    return sorted(PACKAGE.rglob("*.py"))


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            yield (
                function.attr
                if isinstance(function, ast.Attribute)
                else getattr(function, "id", ""),
                node,
            )


def violations(path, text):
    """Uses of ptrace and writes into a process in ``text`` that do not pass step()."""
    name = path.relative_to(PACKAGE).as_posix()
    tree = ast.parse(text)
    found = []
    passed = {
        id(argument) for called, node in calls(tree) if called == "step" for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in ("ptrace", "process_vm_writev") and path != PTRACE:
                found.append(f"{name}:{node.lineno} {node.attr}")
            if node.attr == "ioctl" and path not in (KERNEL, AUDIT):
                found.append(f"{name}:{node.lineno} {node.attr}")
            of_os = isinstance(node.value, ast.Name) and node.value.id == "os"
            if of_os and node.attr in WRITES and path == MEMORY and id(node) not in passed:
                found.append(f"{name}:{node.lineno} {node.attr} outside of step()")
        # The file that is a process's memory is opened in one place, which keeps its descriptor.
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.endswith("/mem") and path != MEMORY:
                found.append(f"{name}:{node.lineno} {node.value!r}")
    for called, node in calls(tree):
        if called == "_ptrace":
            found.append(f"{name}:{node.lineno} ptrace called outside of step()")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_touches_a_process_but_through_step(path):
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import ctypes\nctypes.CDLL(None).ptrace(17, 1, 0, 0)\n",
        "from wfpatch.libc import C\nC.process_vm_writev(1)\n",
        "f = open('/proc/1/mem', 'wb')\n",
        "import fcntl\nfcntl.ioctl(3, 1)\n",
        "f = open(f'/proc/{pid}/mem', 'wb')\n",
    ],
)
def test_a_planted_violation_is_found(planted):
    assert violations(PACKAGE / "planted.py", planted) != []


def test_a_write_to_memory_outside_of_step_is_found():
    text = MEMORY.read_text()
    assert "step(" in text
    planted = text.replace("step(", "(lambda _, function, *rest: function(*rest))(")
    assert violations(MEMORY, planted) != []


def test_ptrace_requests_calls_ptrace_through_step_only():
    tree = ast.parse(PTRACE.read_text())
    direct = [node for called, node in calls(tree) if called == "_ptrace"]
    assert direct == []
    stepped = [
        node
        for called, node in calls(tree)
        if called == "step"
        and any(isinstance(a, ast.Name) and a.id == "_ptrace" for a in node.args)
    ]
    assert len(stepped) == 2  # _request, and PEEKDATA with its own way of reporting errors


def test_the_kernel_services_requests_that_change_something_pass_step(monkeypatch):
    from wfpatch.backend import kernel_requests

    passed = []
    monkeypatch.setattr(
        kernel_requests, "step", lambda name, function, *arguments: passed.append(name) or 0
    )
    monkeypatch.setattr(kernel_requests.fcntl, "ioctl", lambda *arguments: 0)
    names = ("INFO", "ATTACH", "LOAD", "UNLOAD", "ARM", "VISIT", "CANCEL", "LIST", "THREAD")
    for name in names:
        kernel_requests.request(3, getattr(kernel_requests, name), kernel_requests.Info())
    # What only asks, or begins and ends a visit, changes nothing.
    assert passed == [f"kernel {name.lower()}" for name in names if name not in HARMLESS]


def test_no_deadly_request_is_there():
    from wfpatch.backend import ptrace_requests

    for name, number in FORBIDDEN.items():
        assert not hasattr(ptrace_requests, name)
        numbers = {
            value
            for key, value in vars(ptrace_requests).items()
            if key.isupper()
            and isinstance(value, int)
            and not key.startswith(("_", "NT_", "EVENT"))
        }
        assert number not in numbers


DRIVER = """
import sys
from wfpatch.backend.steps import step
for name in ("a", "b", "c"):
    print(step(name, str.upper, name), flush=True)
"""


def run(**environment):
    return subprocess.run(
        [sys.executable, "-c", DRIVER],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
    )


def test_steps_are_recorded_with_their_numbers(tmp_path):
    record = tmp_path / "steps"
    assert run(WFPATCH_STEPS=str(record)).returncode == 0
    assert record.read_text() == "1 a\n2 b\n3 c\n"


@pytest.mark.parametrize(
    ("at", "output"), [("1", ""), ("2", "A\n"), ("3", "A\nB\n"), ("3+", "A\nB\n"), ("1+", "")]
)
def test_killed_before_and_after_a_step(at, output):
    done = run(WFPATCH_KILL_AT=at)
    assert (done.returncode, done.stdout) == (-9, output)
    assert run().stdout == "A\nB\nC\n"
