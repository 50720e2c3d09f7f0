# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on test hosts and machines over one kept SSH connection each, by paramiko.

A key exchange takes seconds in an emulated machine, a command over a connection that is there none.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import paramiko

from . import namespaces

PATIENCE = 20.0
#: For each step of making a connection: an emulated machine beside other work takes its time.
HANDSHAKE = 120.0


def connected(address: str, port: int, namespace: pathlib.Path | None = None) -> socket.socket:
    """A connection, made in that network namespace. Raises OSError."""
    found: list[socket.socket | OSError] = []

    def enter() -> None:
        try:
            if namespace is not None:
                # Of this thread only, which ends here; a socket stays where it was made.
                namespaces.setns(namespace)
            found.append(socket.create_connection((address, port), PATIENCE))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _read(receive: Callable[[int], bytes], output: bytearray) -> None:
    """All that comes, until the other side, or the channel, is closed."""
    while data := receive(1 << 16):
        output += data


def _patient(connection: socket.socket, **options: Any) -> paramiko.Transport:
    transport = paramiko.Transport(connection, **options)
    transport.handshake_timeout = HANDSHAKE
    return transport


class Remote:
    """One host, and the connection to it, made when it is first needed and again when it is lost.

    ``name`` is that of the host's key in ``known_hosts``; another key is refused.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        name: str,
        user: str,
        key: pathlib.Path,
        known_hosts: pathlib.Path,
    ) -> None:
        self._connect, self._name, self._user = connect, name, user
        self._key, self._known_hosts = key, known_hosts
        self._client: paramiko.SSHClient | None = None

    def _transport(self) -> paramiko.Transport:
        if self._client is not None:
            transport = self._client.get_transport()
            if transport is not None and transport.is_active():
                return transport
            self.close()
        client = paramiko.SSHClient()
        client.load_host_keys(str(self._known_hosts))
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.connect(
            self._name,
            username=self._user,
            key_filename=str(self._key),
            sock=self._connect(),
            allow_agent=False,
            look_for_keys=False,
            banner_timeout=HANDSHAKE,
            auth_timeout=HANDSHAKE,
            transport_factory=_patient,
        )
        self._client = client
        transport = client.get_transport()
        assert transport is not None
        return transport

    def run(
        self, command: str, stdin: bytes = b"", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """A shell command to its end. Raises subprocess.TimeoutExpired, paramiko.SSHException."""
        channel = self._transport().open_session(timeout=timeout)
        channel.exec_command(command)
        deadline = time.monotonic() + timeout
        output, errors = bytearray(), bytearray()
        with contextlib.closing(channel):
            workers = [
                threading.Thread(target=self._send, args=(channel, stdin), daemon=True),
                threading.Thread(target=_read, args=(channel.recv, output), daemon=True),
                threading.Thread(target=_read, args=(channel.recv_stderr, errors), daemon=True),
            ]
            for worker in workers:
                worker.start()
            for worker in workers[1:]:
                worker.join(max(deadline - time.monotonic(), 0))
                if worker.is_alive():
                    raise subprocess.TimeoutExpired(command, timeout, bytes(output), bytes(errors))
            code = channel.recv_exit_status()
        return subprocess.CompletedProcess(command, code, bytes(output), bytes(errors))

    @staticmethod
    def _send(channel: paramiko.Channel, data: bytes) -> None:
        # Who does not read his input to the end has closed it.
        with contextlib.suppress(OSError, paramiko.SSHException):
            if data:
                channel.sendall(data)
            channel.shutdown_write()

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None
