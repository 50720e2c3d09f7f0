# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts' network: a bridge in a network namespace of its own, unreachable from outside.

This machine's own network is not touched. Who wants to talk to a host enters that namespace, or
lets ssh do so for one connection (ssh_config's ProxyCommand).
"""

from __future__ import annotations

import ipaddress
import pathlib
import subprocess

NETWORK = ipaddress.ip_network("10.77.0.0/16")
BRIDGE = "fleet"


class NetworkError(Exception):
    """`ip` refused; the message is its own."""


def ip(*words: str, batch: str | None = None) -> None:
    """Runs ip(8), with commands on its input where `batch` has them."""
    command = ["ip", *words, *(["-batch", "-"] if batch is not None else [])]
    done = subprocess.run(command, input=batch or "", capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")


def address(number: int) -> str:
    """The address of host `number` (from 1)."""
    return str(NETWORK[256 + number])


def namespace_path(name: str) -> pathlib.Path:
    """Where ip-netns(8) keeps the namespace."""
    return pathlib.Path("/run/netns") / name


def create(name: str) -> None:
    """The namespace and the bridge in it."""
    ip("netns", "add", name)
    ip(
        *("-n", name),
        batch=f"""
link set lo up
link add {BRIDGE} type bridge
addr add {NETWORK[1]}/{NETWORK.prefixlen} dev {BRIDGE}
link set {BRIDGE} up
""",
    )


def remove(name: str) -> None:
    """Takes the namespace away; nothing happens when there is none."""
    if namespace_path(name).exists():
        ip("netns", "del", name)


def attach(name: str, number: int, pid: int) -> None:
    """Gives the network namespace of `pid` an eth0 on the bridge, and its loopback."""
    ip(
        *("-n", name),
        batch=f"""
link add h{number} type veth peer name eth0 netns {pid}
link set h{number} master {BRIDGE} up
""",
    )
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"]
    lines = f"""
link set lo up
addr add {address(number)}/{NETWORK.prefixlen} dev eth0
link set eth0 up
"""
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"network of host {number}: {done.stderr.strip()}")
