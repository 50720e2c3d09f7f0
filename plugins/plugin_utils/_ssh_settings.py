# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""How ssh would reach a host, from the host's own connection variables: OpenSSH is asked with
`ssh -G`, which reads the very arguments and files that Ansible's connection uses.
"""

from __future__ import annotations

import shlex
import subprocess
import typing as t
from dataclasses import dataclass

#: Options of Ansible's connection plugins that are arguments for ssh as they stand.
ARGUMENTS = ("ssh_args", "ssh_common_args", "ssh_extra_args")
NONE = ("", "none")


class CannotStream(Exception):
    """There will be no channel of its own to this host; the message says why."""


@dataclass(frozen=True)
class SshSettings:
    """What a client needs to know. ``key_name``: what the host's key is listed under."""

    host: str
    port: int
    user: str
    key_name: str
    key_port: int
    known_hosts: tuple[str, ...]
    identities: tuple[str, ...]
    agent: bool
    password: str | None
    timeout: float
    proxy: str | None
    passes_socket: bool


def option(connection: t.Any, name: str) -> t.Any:
    """An option of a connection plugin, None where the plugin does not have it."""
    try:
        return connection.get_option(name)
    except (KeyError, AttributeError):
        return None


def effective(program: str, arguments: t.Sequence[str], host: str) -> dict[str, list[str]]:
    """ssh's own settings for the host, by keyword. Raises CannotStream."""
    command = [program, *arguments, "-G", "--", host]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CannotStream(f"{program} does not say how it reaches {host}: {exc}") from exc
    if done.returncode:
        raise CannotStream(f"{program} does not say how it reaches {host}: {done.stderr.strip()}")
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _space, value = line.partition(" ")
        found.setdefault(keyword, []).append(value)
    return found


def ssh_arguments(connection: t.Any) -> list[str]:
    """What Ansible's connection gives to ssh, as far as it decides where and as whom."""
    words: list[str] = []
    for name in ARGUMENTS:
        words += shlex.split(option(connection, name) or "")
    for name, keyword in (
        ("port", "Port"),
        ("remote_user", "User"),
        ("private_key_file", "IdentityFile"),
        ("proxy_command", "ProxyCommand"),
    ):
        value = option(connection, name)
        if value:
            words += ["-o", f"{keyword}={value}"]
    return words


def config_file(words: t.Sequence[str]) -> list[str]:
    """The argument -F, which ssh hands on to the ssh of a jump host."""
    for position, word in enumerate(words):
        if word == "-F" and position + 1 < len(words):
            return ["-F", words[position + 1]]
        if word.startswith("-F"):
            return [word]
    return []


def proxy_of(
    program: str, words: t.Sequence[str], found: dict[str, list[str]], host: str, port: int
) -> str | None:
    """The command that connects to the host, if it is not reached directly."""

    def first(keyword: str) -> str:
        return found.get(keyword, [""])[0]

    if first("proxyjump") not in NONE:
        *before, last = first("proxyjump").split(",")
        through = ["-J", ",".join(before)] if before else []
        target = last if last.startswith("ssh://") else f"ssh://{last}"
        return shlex.join(
            [program, "-o", "BatchMode=yes", *config_file(words), *through]
            + ["-W", f"[{host}]:{port}", target]
        )
    command = first("proxycommand")
    if command in NONE:
        return None
    tokens = {"%h": host, "%p": str(port), "%r": first("user"), "%n": host, "%%": "%"}
    parts = command.split("%%")
    for token, value in tokens.items():
        parts = [part.replace(token, value) for part in parts]
    return "%".join(parts)


def ssh_settings(connection: t.Any) -> SshSettings:
    """The settings for the host of a connection. Raises CannotStream where that is not by ssh."""
    kind = str(getattr(connection, "transport", ""))
    if kind not in ("ssh", "paramiko", "paramiko_ssh"):
        raise CannotStream(f"the connection is {kind or 'unknown'}, not ssh")
    host = str(option(connection, "host") or "")
    if not host or host.startswith("-"):
        raise CannotStream(f"{host!r} is no host")
    program = str(option(connection, "ssh_executable") or "ssh")
    words = ssh_arguments(connection)
    found = effective(program, words, host)

    def first(keyword: str, default: str = "") -> str:
        return found.get(keyword, [default])[0]

    name, port = first("hostname", host), int(first("port", "22"))
    alias = first("hostkeyalias")
    known = f"{first('userknownhostsfile')} {first('globalknownhostsfile')}"
    return SshSettings(
        host=name,
        port=port,
        user=first("user"),
        key_name=alias if alias not in NONE else name,
        # An alias is listed without a port, whatever the port is.
        key_port=22 if alias not in NONE else port,
        known_hosts=tuple(path for path in known.split() if path not in NONE),
        identities=tuple(found.get("identityfile", ())),
        agent=first("identitiesonly") != "yes" and first("identityagent") != "none",
        password=option(connection, "password") or None,
        timeout=float(option(connection, "timeout") or 10),
        proxy=proxy_of(program, words, found, name, port),
        passes_socket=first("proxyusefdpass") == "yes",
    )
