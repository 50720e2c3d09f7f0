# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel service's uapi (kmod/include/uapi/wfpatch.h), bound to Python.

Requests that change a process pass the step gate, as ptrace requests do.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterable

from wfpatch.backend.ptrace_requests import UserRegisters
from wfpatch.backend.steps import step

DEVICE = "/dev/wfpatch"
UAPI_VERSION = 1
ROWS = 64

MAP_WRITE = 1
MAP_EXEC = 2

KIND_OLD = 1
KIND_PENDING = 2
KIND_SIGNAL = 4

VISIT_MIGRATE = 1
VISIT_ONCE = 2

STATE_CLEAR = 1

REASON_UNSEEN = 1
REASON_RANGE = 2
REASON_STACK = 3
REASON_SIGNAL = 4
REASON_FAULT = 5
REASON_LIMIT = 6
REASON_GS = 7
REASON_CLONE = 8
REASON_MODE = 9

THREAD_MOVE = 1
THREAD_EXPECT = 2
THREAD_WORDS = 4
THREAD_FRAME = 8
MAX_WORDS = 1024

SEEN_ASLEEP = 1

_U8 = ctypes.c_uint8
_U32 = ctypes.c_uint32
_S32 = ctypes.c_int32
_U64 = ctypes.c_uint64

POKE_LENGTH = 16
MAX_WRITE = 1 << 20


class Info(ctypes.Structure):
    """struct wfpatch_info."""

    _fields_ = (
        ("size", _U32),
        ("uapi_version", _U32),
        ("features", _U64),
        ("version", ctypes.c_char * 32),
    )


class Attach(ctypes.Structure):
    """struct wfpatch_attach."""

    _fields_ = (("size", _U32), ("flags", _U32), ("pid", _S32), ("reserved", _U32))


class Map(ctypes.Structure):
    """struct wfpatch_map."""

    _fields_ = (
        ("size", _U32),
        ("flags", _U32),
        ("fd", _S32),
        ("reserved", _U32),
        ("address", _U64),
        ("length", _U64),
        ("offset", _U64),
    )


class Write(ctypes.Structure):
    """struct wfpatch_write."""

    _fields_ = (
        ("size", _U32),
        ("flags", _U32),
        ("address", _U64),
        ("data", _U64),
        ("length", _U64),
    )


class Poke(ctypes.Structure):
    """struct wfpatch_poke."""

    _fields_ = (
        ("address", _U64),
        ("redirect", _U64),
        ("length", _U32),
        ("result", _S32),
        ("before", _U8 * POKE_LENGTH),
        ("after", _U8 * POKE_LENGTH),
    )


class Move(ctypes.Structure):
    """struct wfpatch_move."""

    _fields_ = (("from_", _U64), ("to", _U64))


class Arm(ctypes.Structure):
    """struct wfpatch_arm."""

    _fields_ = (
        ("size", _U32),
        ("flags", _U32),
        ("pokes", _U64),
        ("moves", _U64),
        ("n_pokes", _U32),
        ("n_moves", _U32),
        ("deadline_ms", _U32),
        ("straggler", _S32),
        ("straggler_word", _U64),
    )


class Range(ctypes.Structure):
    """struct wfpatch_range."""

    _fields_ = (("low", _U64), ("high", _U64), ("kind", _U32), ("reserved", _U32))


class Stack(ctypes.Structure):
    """struct wfpatch_stack."""

    _fields_ = (("fs_base", _U64), ("low", _U64), ("high", _U64))


class Visit(ctypes.Structure):
    """struct wfpatch_visit."""

    _fields_ = (
        ("size", _U32),
        ("flags", _U32),
        ("eventfd", _S32),
        ("deadline_ms", _U32),
        ("ranges", _U64),
        ("stacks", _U64),
        ("n_ranges", _U32),
        ("n_stacks", _U32),
        ("left_rows", _U64),
        ("from_rows", _U64),
        ("target", _U32),
        ("scan_limit", _U32),
    )


class Listed(ctypes.Structure):
    """struct wfpatch_listed."""

    _fields_ = (
        ("tid", _S32),
        ("tgid", _S32),
        ("state", _U32),
        ("reason", _U32),
        ("flags", _U32),
        ("row", _U32),
        ("gs_base", _U64),
        ("fs_base", _U64),
        ("ip", _U64),
        ("sp", _U64),
        ("hit_at", _U64),
        ("hit_word", _U64),
        ("start_time", _U64),
        ("switches", _U64),
        ("comm", ctypes.c_char * 16),
    )
    tid: int
    state: int
    reason: int
    gs_base: int
    hit_word: int
    start_time: int


class List(ctypes.Structure):
    """struct wfpatch_list."""

    _fields_ = (
        ("size", _U32),
        ("state", _U32),
        ("threads", _U64),
        ("n_threads", _U32),
        ("entry_size", _U32),
    )


class Word(ctypes.Structure):
    """struct wfpatch_word."""

    _fields_ = (("address", _U64), ("value", _U64))


class Thread(ctypes.Structure):
    """struct wfpatch_thread."""

    _fields_ = (
        ("size", _U32),
        ("flags", _U32),
        ("tid", _S32),
        ("deadline_ms", _U32),
        ("stack", _U64),
        ("stack_high", _U64),
        ("stack_room", _U32),
        ("stack_length", _U32),
        ("seen", _U32),
        ("new_row", _U32),
        ("switches", _U64),
        ("registers", UserRegisters),
    )
    tid: int
    stack_length: int
    seen: int
    switches: int
    registers: UserRegisters


def _ioc(direction: int, number: int, structure: type[ctypes.Structure] | None) -> int:
    """A request's number: include/uapi/asm-generic/ioctl.h."""
    size = ctypes.sizeof(structure) if structure is not None else 0
    return direction << 30 | size << 16 | 0xB7 << 8 | number


_WRITE, _BOTH = 1, 3
INFO = _ioc(_BOTH, 0, Info)
ATTACH = _ioc(_WRITE, 1, Attach)
LOAD = _ioc(_WRITE, 16, Map)
UNLOAD = _ioc(_WRITE, 17, Map)
ARM = _ioc(_BOTH, 18, Arm)
VISIT = _ioc(_WRITE, 19, Visit)
CANCEL = _ioc(0, 20, None)
LIST = _ioc(_BOTH, 21, List)
THREAD = _ioc(_BOTH, 22, Thread)
WRITE = _ioc(_WRITE, 23, Write)

#: Those that change the process.
_STEPS = {
    LOAD: "kernel load",
    UNLOAD: "kernel unload",
    ARM: "kernel arm",
    VISIT: "kernel visit",
    THREAD: "kernel thread",
    WRITE: "kernel write",
}


def request(fd: int, number: int, arguments: ctypes.Structure | None = None) -> int:
    """One ioctl; its result. Raises OSError."""
    if arguments is None:
        return fcntl.ioctl(fd, number, 0)
    if number in _STEPS:
        changed: int = step(_STEPS[number], fcntl.ioctl, fd, number, arguments)
        return changed
    result: int = fcntl.ioctl(fd, number, arguments)
    return result


def read_info() -> Info:
    """What answers at the device. Raises OSError where nothing does."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        info = Info(size=ctypes.sizeof(Info))
        request(fd, INFO, info)
        return info
    finally:
        os.close(fd)


def attach(pid: int) -> int:
    """A session's file descriptor. Raises OSError."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return request(fd, ATTACH, Attach(size=ctypes.sizeof(Attach), pid=pid))
    finally:
        os.close(fd)


def ranges(kinds: Iterable[tuple[int, Iterable[tuple[int, int]]]]) -> ctypes.Array[Range]:
    """Closed intervals by kind -> ascending ranges that do not overlap.

    Where kinds overlap, the one that is named first counts.
    """
    covered: list[tuple[int, int]] = []
    made: list[tuple[int, int, int]] = []
    for kind, intervals in kinds:
        fresh = _without(_merged(intervals), covered)
        made += [(low, high, kind) for low, high in fresh]
        covered = _merged((*covered, *fresh))
    made.sort()
    return (Range * len(made))(*(Range(low, high, kind) for low, high, kind in made))


def _merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending, with those that overlap made one."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(interval for interval in intervals if interval[0] <= interval[1]):
        if result and low <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(high, result[-1][1]))
        else:
            result.append((low, high))
    return result


def _without(
    intervals: list[tuple[int, int]], covered: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """What of ``intervals`` is not ``covered``; both as _merged() gives them."""
    result = []
    at = 0
    for first, high in intervals:
        low = first
        while at and covered[at - 1][1] >= low:
            at -= 1
        while at < len(covered) and covered[at][0] <= high:
            start, end = covered[at]
            if end >= low:
                if start > low:
                    result.append((low, start - 1))
                low = end + 1
            at += 1
        if low <= high:
            result.append((low, high))
    return result
