# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of redis' RESP 2 protocol: one command, one reply."""

from __future__ import annotations

import socket
from typing import Union

Reply = Union[bytes, int, None, list["Reply"], "ErrorReply"]


class ErrorReply(Exception):
    """The server answered with an error; `str()` of it is the text."""


class ConnectionLost(ConnectionError):
    """The server closed the connection or does not listen any more."""


def request(*words: bytes | str) -> bytes:
    """A command as it goes over the wire."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    data = b"*%d\r\n" % len(parts)
    return data + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class RedisClient:
    """A connection. Every call may raise ConnectionLost, or TimeoutError."""

    def __init__(self, host: str, port: int, timeout: float = 10.0) -> None:
        try:
            self.socket = socket.create_connection((host, port), timeout)
        except ConnectionError as error:
            raise ConnectionLost(f"cannot connect to {host}:{port}: {error}") from error
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> RedisClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; harmless when it is gone."""
        self.stream.close()
        self.socket.close()

    def send(self, *words: bytes | str) -> None:
        """Sends a command and does not wait for its reply."""
        try:
            self.socket.sendall(request(*words))
        except ConnectionError as error:
            raise ConnectionLost(str(error)) from error

    def receive(self) -> Reply:
        """The next reply; an error reply is returned, not raised."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return ErrorReply(rest.decode("utf-8", "replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._exactly(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.receive() for _ in range(int(rest))]
        raise ConnectionLost(f"not a RESP reply: {line!r}")

    def call(self, *words: bytes | str) -> Reply:
        """One command and its reply; an error reply is returned, not raised."""
        self.send(*words)
        return self.receive()

    def _line(self) -> bytes:
        try:
            line = self.stream.readline()
        except ConnectionError as error:
            raise ConnectionLost(str(error)) from error
        if not line.endswith(b"\r\n"):
            raise ConnectionLost("the server closed the connection")
        return line[:-2]

    def _exactly(self, count: int) -> bytes:
        try:
            data = self.stream.read(count)
        except ConnectionError as error:
            raise ConnectionLost(str(error)) from error
        if len(data) != count:
            raise ConnectionLost("the server closed the connection")
        return data
