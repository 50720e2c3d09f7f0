# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A channel of its own to a host, over which the applier tells what it does while it does it.

It only looks on: the work is asked for over Ansible's connection, and whatever becomes of this
channel changes nothing of that.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import socket
import subprocess
import threading
import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._ssh_settings import (
    CannotStream,
    SshSettings,
)

try:
    import paramiko
except ImportError as exc:
    PARAMIKO_ERROR: ImportError | None = exc
else:
    PARAMIKO_ERROR = None

#: What the applier says first: that it is there, and may read what is told.
READY = '{"event": "follow"'
MAX_LINE = 1 << 16
#: What a host may say in one task before nobody listens any more.
MAX_LINES = 10_000
#: Seconds to wait for the last words once the work is done.
DRAIN = 3.0


def own_channel(connection: t.Any, command: t.Sequence[str]) -> tuple[str, str | None]:
    """The command line for a shell on the host, with become as the task has it, and the password
    to give it. Raises CannotStream where become asks for one on a terminal.
    """
    line = shlex.join(command)
    become = getattr(connection, "become", None)
    if become is None:
        return line, None
    password = become.get_option("become_pass")
    if password and become.name.rpartition(".")[2] != "sudo":
        raise CannotStream(f"become by {become.name} asks for its password on a terminal")
    return become.build_become_command(line, connection._shell), password


def connect_proxy(settings: SshSettings) -> t.Any:
    """What to speak ssh over, where a command connects."""
    command = ["/bin/sh", "-c", f"exec {settings.proxy}"]
    if not settings.passes_socket:
        return paramiko.ProxyCommand(shlex.join(command))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(settings.timeout)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs.fileno()):
            theirs.close()
            _data, descriptors, _flags, _address = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise OSError(f"{settings.proxy} handed no socket over")
    return socket.socket(fileno=descriptors[0])


class EventStream:
    """As a context manager: connected on entering, at its end when left."""

    def __init__(
        self,
        settings: SshSettings,
        command: str,
        password: str | None,
        hear: t.Callable[[str], None],
    ) -> None:
        if PARAMIKO_ERROR is not None:
            raise CannotStream("the Python that runs Ansible has no paramiko")
        self._settings, self._command, self._password = settings, command, password
        self._hear = hear
        self._client = paramiko.SSHClient()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> t.Self:
        try:
            self._connect()
            _stdin, stdout, _stderr = self._run()
            self._lines = iter(lambda: stdout.readline(MAX_LINE), "")
            if not any(line.startswith(READY) for line in self._lines):
                raise CannotStream("the applier on the host does not tell what it does")
        except (paramiko.SSHException, OSError, EOFError) as exc:
            self._client.close()
            raise CannotStream(f"{type(exc).__name__}: {exc}") from exc
        except BaseException:
            self._client.close()
            raise
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._thread:
            self._thread.join(DRAIN)
        self._client.close()

    def _connect(self) -> None:
        settings = self._settings
        for path in settings.known_hosts:
            with contextlib.suppress(FileNotFoundError):
                self._client.load_system_host_keys(os.path.expanduser(path))
        # Whatever host_key_checking says: a host whose key is not known could be anybody.
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        keys = [os.path.expanduser(path) for path in settings.identities]
        if settings.proxy:
            channel = connect_proxy(settings)
        else:
            channel = socket.create_connection((settings.host, settings.port), settings.timeout)
        self._client.connect(
            settings.key_name,
            port=settings.key_port,
            username=settings.user,
            password=settings.password,
            key_filename=[path for path in keys if os.path.exists(path)],
            sock=channel,
            allow_agent=settings.agent,
            look_for_keys=False,
            timeout=settings.timeout,
            banner_timeout=settings.timeout,
            auth_timeout=settings.timeout,
        )

    def _run(self) -> tuple[t.Any, t.Any, t.Any]:
        found = self._client.exec_command(self._command, timeout=self._settings.timeout)
        if self._password:
            found[0].write(f"{self._password}\n")
            found[0].flush()
        return found

    def _listen(self) -> None:
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError, ValueError):
            for line in itertools.islice(self._lines, MAX_LINES):
                self._hear(line)
