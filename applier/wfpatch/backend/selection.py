# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend does the work."""

from __future__ import annotations

import errno

from wfpatch.backend import Backend, kernel_requests
from wfpatch.backend.kernel import KernelBackend
from wfpatch.backend.ptrace import PtraceBackend
from wfpatch.errors import Refused


def kernel_service_problem() -> str:
    """Why the kernel service cannot be used here; empty when it can."""
    try:
        info = kernel_requests.read_info()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "there is no /dev/wfpatch: the module is not loaded"
        return f"/dev/wfpatch does not answer ({error.strerror})"
    if info.uapi_version != kernel_requests.UAPI_VERSION:
        return (
            f"the module speaks version {info.uapi_version} of its interface, this applier "
            f"version {kernel_requests.UAPI_VERSION}"
        )
    return ""


def select_backend(name: str) -> Backend:
    """The backend of that name; ``auto`` takes ``kernel`` where the kernel service answers.

    Raises Refused("backend_unavailable").
    """
    if name == "ptrace":
        return PtraceBackend()
    problem = kernel_service_problem()
    if not problem:
        return KernelBackend()
    if name == "auto":
        return PtraceBackend()
    raise Refused(
        "backend_unavailable",
        f"{problem}; use --backend ptrace or auto",
    )
