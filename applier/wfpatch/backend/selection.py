# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend does the work."""

from __future__ import annotations

from wfpatch.backend import Backend
from wfpatch.backend.ptrace import PtraceBackend
from wfpatch.errors import Refused


def select_backend(name: str) -> Backend:
    """The backend of that name; ``auto`` takes what this host offers.

    Raises Refused("backend_unavailable").
    """
    if name in ("auto", "ptrace"):
        return PtraceBackend()
    raise Refused(
        "backend_unavailable",
        f"this applier has no backend {name!r}; use --backend ptrace or auto",
    )
