# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys made on the spot, and the files with which ssh and Ansible reach the hosts."""

from __future__ import annotations

import json
import pathlib
import shlex
import subprocess

from .base_root import OPERATOR
from .state import FleetState, HostRecord

CONNECT = pathlib.Path(__file__).resolve().parents[1] / "connect"


def make_key(path: pathlib.Path, comment: str) -> str:
    """A new Ed25519 key without passphrase; returns the public half's line."""
    for old in (path, path.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True
    )
    return path.with_suffix(".pub").read_text().strip()


def write_known_hosts(place: pathlib.Path, keys: dict[str, str]) -> None:
    """One line for each address and host name."""
    lines = (f"{name} {' '.join(key.split()[:2])}\n" for name, key in keys.items())
    (place / "known_hosts").write_text("".join(lines))


def write_ssh_config(place: pathlib.Path, fleet: FleetState, namespace: pathlib.Path) -> None:
    """For `ssh -F`. The proxy command enters the fleet's network and hands ssh the socket."""
    # Debian's own interpreter: ssh may run in a root that does not have this process' one.
    proxy = shlex.join(["/usr/bin/python3", "-I", "-S", str(CONNECT), str(namespace)])
    text = "# SPDX-License-Identifier: GPL-3.0-or-later\n"
    for host in fleet.hosts:
        text += f"Host {host.name}\n    HostName {host.address}\n    HostKeyAlias {host.name}\n"
    text += f"""Host *
    User {OPERATOR}
    IdentityFile {place / "operator_key"}
    IdentitiesOnly yes
    UserKnownHostsFile {place / "known_hosts"}
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    UpdateHostKeys no
    BatchMode yes
    ConnectTimeout 20
    ProxyCommand {proxy} %h %p
    ProxyUseFdpass yes
"""
    (place / "ssh_config").write_text(text)


def end_connections(place: pathlib.Path) -> None:
    """Ends the connections that Ansible's ssh keeps open, and with them their processes.

    They would outlive the hosts, and keep the fleet's network namespace.
    """
    for control in (place / "control").glob("*"):
        if control.is_socket():
            subprocess.run(
                ["ssh", "-o", f"ControlPath={control}", "-O", "exit", "fleet"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
            )


def write_inventory(place: pathlib.Path, fleet: FleetState) -> None:
    """All hosts in the group `fleet`, and one group for each service."""

    def group(hosts: list[HostRecord]) -> str:
        return "".join(f"        {host.name}:\n" for host in hosts)

    lines = "# SPDX-License-Identifier: GPL-3.0-or-later\n---\nall:\n  vars:\n"
    variables: dict[str, str | int] = {
        "ansible_user": OPERATOR,
        "ansible_ssh_private_key_file": str(place / "operator_key"),
        "ansible_ssh_common_args": f"-F {shlex.quote(str(place / 'ssh_config'))}",
        # Of its own: another fleet's hosts have the same addresses.
        "ansible_control_path_dir": str(place / "control"),
        # A hundred hosts on two processors answer late; ssh and sudo get the time.
        "ansible_timeout": 120,
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    lines += "".join(f"    {name}: {json.dumps(value)}\n" for name, value in variables.items())
    lines += "  hosts:\n"
    for host in fleet.hosts:
        lines += f"    {host.name}:\n      ansible_host: {host.address}\n"
    lines += f"  children:\n    fleet:\n      hosts:\n{group(fleet.hosts)}"
    for service in fleet.services:
        running = [host for host in fleet.hosts if service in host.services]
        lines += f"    {service.replace('-', '_')}:\n      hosts:\n{group(running)}"
    (place / "inventory.yml").write_text(lines)
