# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts of programs from the kernel's process connector (Documentation/driver-api/connector.rst,
include/uapi/linux/cn_proc.h): netlink, one message for each exec, wherever on the host."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct

from .starts import Starts, Unavailable

_NETLINK_CONNECTOR = 11
_CN_IDX_PROC, _CN_VAL_PROC = 1, 1
_PROC_CN_MCAST_LISTEN = 1
_PROC_EVENT_NONE, _PROC_EVENT_EXEC = 0, 2
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_RECEIVE_BUFFER = 4 << 20
#: How long the kernel may take to say that it heard us, in seconds.
_ANSWER = 1.0
#: PROC_PID_INIT_INO and PROC_USER_INIT_INO (include/linux/proc_ns.h). To others the kernel does not
#: listen (cn_proc_mcast_ctl(), drivers/connector/cn_proc.c), and where somebody else has it speak,
#: the process ids would be those of the first namespace.
_FIRST_NAMESPACES = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}

# struct nlmsghdr, struct cn_msg, struct proc_event up to the process id of an exec
_NLMSG = struct.Struct("=IHHII")
_CN_MSG = struct.Struct("=IIIIHH")
_EVENT = struct.Struct("=IIQ")
_EXEC = struct.Struct("=ii")
_WHAT = _NLMSG.size + _CN_MSG.size
_PIDS = _WHAT + _EVENT.size

# struct sock_filter: take only events of two kinds, so that forks, ends and changes of user wake
# nobody. Classic filters load words in network order, hence the swapped constants.
_LD_WORD, _JEQ, _RET = 0x20, 0x15, 0x06
_FILTER = (
    (_LD_WORD, 0, 0, _WHAT),
    (_JEQ, 1, 0, socket.htonl(_PROC_EVENT_EXEC)),
    (_JEQ, 0, 1, socket.htonl(_PROC_EVENT_NONE)),
    (_RET, 0, 0, 0xFFFFFFFF),
    (_RET, 0, 0, 0),
)


def _attach_filter(connection: socket.socket) -> None:
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _FILTER)
    buffer = ctypes.create_string_buffer(program)
    pointer = struct.pack("@HL", len(_FILTER), ctypes.addressof(buffer))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


class Connector(Starts):
    """The process connector; raises Unavailable with the reason where it says nothing to us."""

    name = "connector"
    early = False

    def __init__(self) -> None:
        for kind, inode in _FIRST_NAMESPACES.items():
            if os.stat(f"/proc/self/ns/{kind}").st_ino != inode:
                raise Unavailable(f"the process connector does not serve a {kind} namespace")
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_CONNECTOR)
        except OSError as error:
            raise Unavailable(
                f"the kernel has no process connector here: {error.strerror}"
            ) from None
        try:
            self._listen()
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"the process connector refuses: {error.strerror}") from None
        except Unavailable:
            self._socket.close()
            raise

    def _listen(self) -> None:
        self._socket.bind((0, _CN_IDX_PROC))
        _attach_filter(self._socket)
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        payload = struct.pack("=I", _PROC_CN_MCAST_LISTEN)
        message = _CN_MSG.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(payload), 0) + payload
        own = self._socket.getsockname()[0]
        self._socket.send(_NLMSG.pack(_NLMSG.size + len(message), 3, 0, 0, own) + message)
        if not select.select([self._socket], [], [], _ANSWER)[0]:
            raise Unavailable("the process connector does not answer")
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def read(self) -> tuple[set[int], bool]:
        """The processes that executed a program since, and whether some were missed."""
        found: set[int] = set()
        while True:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                return found, False
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return found, True
                raise
            if len(data) < _PIDS + _EXEC.size:
                continue
            what, _, _ = _EVENT.unpack_from(data, _WHAT)
            if what == _PROC_EVENT_EXEC:
                found.add(_EXEC.unpack_from(data, _PIDS)[1])

    def close(self) -> None:
        """End it."""
        self._socket.close()
