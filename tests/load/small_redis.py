# SPDX-License-Identifier: GPL-3.0-or-later
"""The few redis commands of the load client, served from memory: a server to try the client on.

It is written from the protocol's description and shares nothing with the client's model.
"""

from __future__ import annotations

import socketserver
import struct
import threading


def bulk(value: bytes | None) -> bytes:
    """A bulk string, or the null one."""
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


class SmallRedis(socketserver.ThreadingTCPServer):
    """Listens on a port of loopback from the start."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.strings: dict[bytes, bytes] = {}
        self.hashes: dict[tuple[bytes, bytes], int] = {}
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}).start()

    def close(self) -> None:
        """Stops listening."""
        self.shutdown()
        self.server_close()

    def answer(self, words: list[bytes]) -> bytes:
        """The reply to one command."""
        command, keys = words[0], words[1:]
        if command == b"SET":
            self.strings[keys[0]] = keys[1]
            return b"+OK\r\n"
        if command == b"RESTORE":
            dump = keys[2]
            length = struct.unpack(">H", dump[1:3])[0] & 0x3FFF
            self.strings[keys[0]] = dump[3 : 3 + length]
            return b"+OK\r\n"
        if command == b"GET":
            return bulk(self.strings.get(keys[0]))
        if command == b"MGET":
            return b"*%d\r\n" % len(keys) + b"".join(bulk(self.strings.get(key)) for key in keys)
        if command == b"STRLEN":
            return b":%d\r\n" % len(self.strings.get(keys[0], b""))
        if command == b"DEL":
            return b":%d\r\n" % (self.strings.pop(keys[0], None) is not None)
        if command == b"INCR":
            number = int(self.strings.get(keys[0], b"0")) + 1
            self.strings[keys[0]] = b"%d" % number
            return b":%d\r\n" % number
        if command == b"HINCRBY":
            field = (keys[0], keys[1])
            self.hashes[field] = self.hashes.get(field, 0) + int(keys[2])
            return b":%d\r\n" % self.hashes[field]
        return b"-ERR unknown command\r\n"


class _Connection(socketserver.StreamRequestHandler):
    server: SmallRedis

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2])
            self.wfile.write(self.server.answer(words))
