# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend the engine's tests drive: WFPATCH_TEST_BACKEND, ``ptrace`` unless it is set.

The suite is one: tests/vm runs it with ``kernel`` in a virtual machine.
"""

from __future__ import annotations

import os

import pytest
from wfpatch.backend import Backend
from wfpatch.backend.selection import select_backend

NAME = os.environ.get("WFPATCH_TEST_BACKEND", "ptrace")

#: For tests of what only the ptrace backend does: stops, injected calls, its refusals.
ptrace_only = pytest.mark.skipif(NAME != "ptrace", reason="is about what only ptrace does")
kernel_only = pytest.mark.skipif(NAME != "kernel", reason="is about what only the kernel does")


def selected() -> Backend:
    """The backend to test."""
    return select_backend(NAME)
