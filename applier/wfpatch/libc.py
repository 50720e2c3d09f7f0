# SPDX-License-Identifier: GPL-3.0-or-later
"""The C library's entry points that Python's standard library lacks.

Only queries live here. ``ptrace`` is bound in backend/ptrace_requests.py, where every request
passes the step counter.
"""

from __future__ import annotations

import ctypes
import errno
import os

C = ctypes.CDLL(None, use_errno=True)

_syscall = C.syscall
_syscall.restype = ctypes.c_long

_NR_KCMP = 312
_KCMP_VM = 1  # include/uapi/linux/kcmp.h


def same_memory(first: int, second: int) -> bool:
    """Whether two tasks share one address space (kcmp(2), KCMP_VM).

    Raises OSError: ESRCH when one is gone, EPERM without ptrace access, ENOSYS without CONFIG_KCMP.
    """
    result = int(
        _syscall(
            ctypes.c_long(_NR_KCMP),
            ctypes.c_long(first),
            ctypes.c_long(second),
            ctypes.c_long(_KCMP_VM),
            ctypes.c_long(0),
            ctypes.c_long(0),
        )
    )
    if result < 0:
        number = ctypes.get_errno() or errno.EINVAL
        raise OSError(number, os.strerror(number))
    return result == 0
