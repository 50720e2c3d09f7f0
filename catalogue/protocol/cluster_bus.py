# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages of redis' cluster bus, as far as the provoke scripts need them.

Layout after redis 7.0's cluster.h (clusterMsg, clusterMsgPingExt), all numbers big endian.
"""

from __future__ import annotations

import socket
import struct

PING, PONG = 0, 1
EXTENSION_HOSTNAME = 0
_HEADER = struct.Struct(">4sIHHHHQQQ40s2048s40s46sH30sHHHB3s")
_HAS_EXTENSIONS = 1 << 2
_STRANGER = b"0" * 40  # a node that no cluster knows


def extension(data: bytes) -> bytes:
    """A hostname extension; the data should be a multiple of 8 bytes long."""
    return struct.pack(">IHH", 8 + len(data), EXTENSION_HOSTNAME, 0) + data


def ping(extensions: bytes, count: int = 1) -> bytes:
    """A PING of an unknown node with ``count`` extensions and no gossip."""
    head = _HEADER.pack(
        *(b"RCmb", _HEADER.size + len(extensions), 1, 0, PING, 0, 0, 0, 0, _STRANGER),
        *(bytes(2048), bytes(40), bytes(46), count, bytes(30), 0, 0, 0, 0),
        bytes([_HAS_EXTENSIONS, 0, 0]),
    )
    return head + extensions


class ClusterBus:
    """A connection to a node's bus. Every call may raise OSError."""

    def __init__(self, host: str, port: int, timeout: float = 10.0) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> ClusterBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def send(self, *messages: bytes) -> None:
        self.socket.sendall(b"".join(messages))

    def pong(self) -> None:
        """Waits for a PONG. Raises ConnectionError when something else comes."""
        head = self.stream.read(14)
        if len(head) < 14 or head[:4] != b"RCmb":
            raise ConnectionError("the node closed the connection")
        _, total, _, _, kind = struct.unpack(">4sIHHH", head[:14])
        if len(self.stream.read(total - 14)) != total - 14 or kind != PONG:
            raise ConnectionError(f"no PONG but a message of type {kind}")

    def has_answer(self) -> bool:
        """Whether a further PONG has come."""
        self.socket.settimeout(0.2)
        try:
            self.pong()
        except TimeoutError:
            return False
        return True
