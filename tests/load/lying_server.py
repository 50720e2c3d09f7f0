# SPDX-License-Identifier: GPL-3.0-or-later
"""A server in front of the real one that passes everything on, but for one planted fault."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

#: What becomes of some bytes of an answer: other bytes, or None to close the connection.
Fault = Callable[[bytes], "bytes | None"]


class LyingServer:
    """Listens on a port of loopback; `plant` sets the fault for the next answer that passes."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.fault: Fault | None = None
        self.planted = threading.Event()
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def plant(self, fault: Fault) -> None:
        """The fault befalls exactly one piece of one answer; `planted` is set when it has."""
        with self.lock:
            self.planted.clear()
            self.fault = fault

    def close(self) -> None:
        """Ends all connections and threads."""
        self.ended.set()
        for thread in list(self.threads):
            thread.join(10)
        self.listener.close()

    def _accept(self) -> None:
        while not self.ended.is_set():
            if select.select([self.listener], [], [], 0.1)[0]:
                client, _ = self.listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self.threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.upstream) as server:
            while not self.ended.is_set():
                for ready in select.select([client, server], [], [], 0.1)[0]:
                    try:
                        data: bytes | None = ready.recv(65536)
                        if ready is server and data:
                            data = self._spoil(data)
                        if not data:
                            return
                        (server if ready is client else client).sendall(data)
                    except ConnectionError:
                        return

    def _spoil(self, data: bytes) -> bytes | None:
        with self.lock:
            fault, self.fault = self.fault, None
        if not fault:
            return data
        self.planted.set()
        return fault(data)
