# SPDX-License-Identifier: GPL-3.0-or-later
"""The vector state in a signal frame: an XSAVE image with the kernel's marks.

The kernel loads the extended state from a frame only if its software-reserved bytes (offset 464 of
the legacy area: magic, sizes, features) and the second magic behind the image fit, and if the size
does not exceed what the *task* has (check_xstate_in_sigframe(), arch/x86/kernel/fpu/signal.c). A
wrong size loses everything above SSE silently. The size of a task without AMX is taken from a frame
the kernel makes for this process: offsets of features differ between processors, and only the
kernel knows which it uses.
"""

from __future__ import annotations

import ctypes
import signal
import struct
from dataclasses import dataclass

from wfpatch.errors import Refused
from wfpatch.libc import C

XSAVE_ALIGNMENT = 64
_MAGIC1 = 0x46505853  # FP_XSTATE_MAGIC1, arch/x86/include/uapi/asm/sigcontext.h
_MAGIC2 = 0x46505845
_SOFTWARE_BYTES = 464
_HEADER = 512
_MINIMUM = _HEADER + 64
_SOFTWARE = struct.Struct("<IIQI28x")
_UC_FPSTATE = 224  # offset of the pointer in struct ucontext


@dataclass(frozen=True)
class XStateLayout:
    """What the kernel saves for a task with default features: size in bytes, feature mask."""

    size: int
    features: int


def signal_image(raw: bytes, layout: XStateLayout) -> bytes:
    """The image to put into a frame, from what PTRACE_GETREGSET gave.

    ``raw`` may be longer than the task's own image (it has room for AMX); longer than the layout is
    used only if a feature beyond the default ones is live. Raises ValueError on an image that is
    none.
    """
    if len(raw) < _MINIMUM:
        raise ValueError(f"an XSAVE image of {len(raw)} bytes")
    live, compaction = struct.unpack_from("<QQ", raw, _HEADER)
    if compaction:
        raise ValueError("an XSAVE image in compacted format")
    size, features = min(layout.size, len(raw)), layout.features
    if live & ~features:
        size, features = len(raw), features | live
    image = bytearray(raw[:size])
    _SOFTWARE.pack_into(image, _SOFTWARE_BYTES, _MAGIC1, size + 4, features, size)
    return bytes(image) + struct.pack("<I", _MAGIC2)


class _SignalSet(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint64 * 16)]


class _Action(ctypes.Structure):
    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", _SignalSet),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_SA_SIGINFO = 4
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def layout_of_this_host() -> XStateLayout:
    """The layout, read from the frame of a signal this process sends to itself.

    Raises Refused("kernel_unsupported") on a processor or kernel without XSAVE.
    """
    found: list[tuple[int, int, int]] = []

    def handler(_number: int, _info: int | None, context: int | None) -> None:
        if context:
            image = ctypes.c_uint64.from_address(context + _UC_FPSTATE).value
            if image:
                data = ctypes.string_at(image + _SOFTWARE_BYTES, _SOFTWARE.size)
                magic, _extended, features, size = _SOFTWARE.unpack(data)
                found.append((magic, features, size))

    callback = _HANDLER(handler)
    number = signal.SIGRTMAX
    action = _Action(ctypes.cast(callback, ctypes.c_void_p).value, _SignalSet(), _SA_SIGINFO, None)
    previous = _Action()
    if C.sigaction(number, ctypes.byref(action), ctypes.byref(previous)) != 0:
        raise Refused("kernel_unsupported", f"no handler for signal {number} can be set")
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    try:
        getattr(C, "raise")(number)  # synchronous: delivered before it returns
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        C.sigaction(number, ctypes.byref(previous), None)
    if not found or found[0][0] != _MAGIC1 or found[0][2] < _MINIMUM:
        raise Refused(
            "kernel_unsupported",
            "the processor or the kernel has no XSAVE: a signal frame cannot restore a thread's"
            " vector state",
        )
    return XStateLayout(size=found[0][2], features=found[0][1])
