# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of memcached's text protocol, as far as the provoke scripts need it."""

from __future__ import annotations

import socket


class MemcachedClient:
    """A connection. Every call may raise OSError; ConnectionError when the server closed it."""

    def __init__(self, host: str, port: int, timeout: float = 10.0) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> MemcachedClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def line(self) -> str:
        """The next line of an answer, without its end."""
        data = self.stream.readline()
        if not data.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        return data[:-2].decode("latin-1")

    def command(self, text: str) -> str:
        """One command line and the first line of its answer."""
        self.socket.sendall(text.encode() + b"\r\n")
        return self.line()

    def store(self, key: str, value: str, lifetime: int = 60) -> str:
        """`set` with the answer to it; the lifetime is in seconds."""
        return self.command(f"set {key} 0 {lifetime} {len(value)}\r\n{value}")
