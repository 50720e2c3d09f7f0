# SPDX-License-Identifier: GPL-3.0-or-later
"""One host: its root, its pid 1 with sshd, and the services in it."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import namespaces
from .base_root import OPERATOR, SUITE

DESCRIPTIONS = pathlib.Path(__file__).resolve().parents[1] / "services.toml"
UNIT_STARTER = pathlib.Path(__file__).with_name("unit.py")
STARTER_IN_HOST = "/usr/local/sbin/start-unit"

#: pid 1 starts sshd and then reaps: a shell that waits collects every orphan, not only its own
#: children. It has no handlers, so nothing inside the host can end it.
INIT = """\
/usr/sbin/sshd -D -e &
while :; do sleep 1000000 & wait; done
"""
#: What pid 1 is called from the moment on at which the host's root is its own.
INIT_NAME = "wfpatch-fleet-init"


class ServiceError(Exception):
    """A service did not come up; the message ends with its log."""


@dataclass(frozen=True)
class Service:
    """One entry of services.toml."""

    name: str
    packages: tuple[str, ...]
    unit: str | None
    init: str | None
    pidfile: str | None
    ready: int
    suite: str
    configure: tuple[tuple[str, tuple[str, ...]], ...] = ()
    certificate: str | None = None


def describe(name: str) -> Service:
    """The service of that name; KeyError with the known names otherwise."""
    known = tomllib.loads(DESCRIPTIONS.read_text())
    if name not in known:
        raise KeyError(f"no service {name!r}; known: {', '.join(known)}")
    entry = known[name]
    configure = tuple((path, tuple(lines)) for path, lines in entry.get("configure", {}).items())
    return Service(
        name,
        tuple(entry["packages"]),
        entry.get("unit"),
        entry.get("init"),
        entry.get("pidfile"),
        entry["ready"],
        entry.get("suite", SUITE),
        configure,
        entry.get("certificate"),
    )


@dataclass(frozen=True)
class HostPlan:
    """What a host is made from; `key` is the path of its private host key."""

    name: str
    address: str
    root: pathlib.Path
    place: pathlib.Path
    key: pathlib.Path
    authorized: str
    services: Sequence[Service]


def prepare(plan: HostPlan, root: pathlib.Path, certificates: Mapping[str, bytes]) -> None:
    """Everything in the host's root that is its own."""
    (root / "etc/hostname").write_text(f"{plan.name}\n")
    (root / "etc/hosts").write_text(
        f"127.0.0.1 localhost\n::1 localhost\n{plan.address} {plan.name}\n"
    )
    shutil.copyfile(plan.key, root / "etc/ssh/ssh_host_ed25519_key")
    (root / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    (root / "run/sshd").mkdir(mode=0o755)
    folder = root / "home" / OPERATOR / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "authorized_keys").write_text(f"{plan.authorized}\n")
    owner = (root / "home" / OPERATOR).stat()
    for path in (folder, folder / "authorized_keys"):
        os.chown(path, owner.st_uid, owner.st_gid)
    starter = root / STARTER_IN_HOST.lstrip("/")
    shutil.copyfile(UNIT_STARTER, starter)
    starter.chmod(0o755)
    for service in plan.services:
        for name, lines in service.configure:
            with open(root / name.lstrip("/"), "a") as file:
                file.write("".join(f"{line}\n" for line in lines))
    for name, content in certificates.items():
        # Readable by the service whatever its user is; nothing outside reaches it.
        (root / name.lstrip("/")).write_bytes(content)


def make_certificates(plan: HostPlan) -> dict[str, bytes]:
    """Path in the host -> a new certificate, for the services that want one."""
    places = [s.certificate for s in plan.services if s.certificate is not None]
    if not places:
        return {}
    from .certificate import self_signed  # only services that speak TLS need what it needs

    return {place: self_signed(plan.name) for place in places}


def start(plan: HostPlan, record: Callable[[int], None]) -> int:
    """Starts the host's pid 1 and returns its pid as seen here; see namespaces.spawn_init."""
    mountpoint = plan.place / "root"
    mountpoint.mkdir(parents=True, exist_ok=True)

    certificates = make_certificates(plan)

    def become() -> None:
        namespaces.enter_overlay(
            plan.root, mountpoint, lambda root: prepare(plan, root, certificates)
        )
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "container": "wfpatch-fleet"}
        os.execve("/bin/sh", [INIT_NAME, "-c", INIT, plan.name], environment)

    return namespaces.spawn_init(plan.name, become, record, plan.place / "console.log")


def enter(pid: int, *words: str, network_only: bool = False) -> list[str]:
    """The command that runs `words` in the host as root, or here but in the host's network."""
    if network_only:
        return ["nsenter", f"--net=/proc/{pid}/ns/net", *words]
    # Its root is asked for by name: that of its mount namespace is another one where this runs in a
    # chroot, whose pivot_root leaves the namespace's own root alone.
    return ["nsenter", "--target", str(pid), "--all", "--root", *words]


def wait_for_port(pid: int, address: str, port: int, timeout: float) -> None:
    """Returns once something accepts connections there, seen from the host's own network."""
    probe = (
        "import socket, sys\nsocket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()"
    )
    command = enter(pid, "python3", "-I", "-S", "-c", probe, address, str(port), network_only=True)
    until = time.monotonic() + timeout
    while True:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if not done.returncode:
            return
        if time.monotonic() > until:
            last = done.stderr.strip().splitlines()[-1:]
            raise ServiceError(f"{address}:{port} does not answer after {timeout:g} s: {last}")
        time.sleep(0.05)


def wait_for_root(pid: int, timeout: float = 60.0) -> None:
    """Returns once pid 1 is in the host's own root; who enters before finds this machine's."""
    until = time.monotonic() + timeout
    command = pathlib.Path(f"/proc/{pid}/cmdline")
    while not command.read_bytes().startswith(INIT_NAME.encode()):
        if namespaces.start_time(pid) is None or time.monotonic() > until:
            raise ServiceError(f"pid 1 of a host, {pid} here, did not enter its root")
        time.sleep(0.01)


def start_service(pid: int, service: Service, timeout: float = 30.0) -> int:
    """Starts a service as its unit says; returns its main process' pid in the host."""
    words = ["/usr/bin/python3", "-I", STARTER_IN_HOST, str(service.unit), f"{timeout:g}"]
    if service.init:
        words = [service.init, "start"]
    command = enter(pid, *words)
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ServiceError(f"{service.name}: {done.stderr.strip() or done.stdout.strip()}")
    wait_for_port(pid, "127.0.0.1", service.ready, timeout)
    if service.pidfile:
        return int(pathlib.Path(f"/proc/{pid}/root{service.pidfile}").read_text())
    return int(done.stdout)


def answers_ssh(address: str, namespace: pathlib.Path) -> bool:
    """Whether sshd says hello; from a thread of its own that enters the fleet's network."""
    child = os.fork()
    if child == 0:
        try:
            namespaces.setns(namespace)
            with socket.create_connection((address, 22), 5) as connection:
                os._exit(0 if connection.recv(4) == b"SSH-" else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0
