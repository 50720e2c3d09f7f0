# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole fleet: up, down, what is there, and commands on its hosts."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence

from . import access, base_root, host, namespaces, network, remote, state
from .base_root import OPERATOR

MAXIMUM = 100


class FleetError(Exception):
    """A fleet is there already, or is not there, or has no such host."""


class Fleet:
    """A running fleet, as its state says."""

    def __init__(self, name: str) -> None:
        found = state.load(name)
        if not found or not found.up:
            raise FleetError(f"no fleet {name!r} is up")
        self.state = found
        self.place = state.folder(name)

    @property
    def inventory(self) -> pathlib.Path:
        """An inventory for ansible-playbook."""
        return self.place / "inventory.yml"

    @property
    def ssh_config(self) -> pathlib.Path:
        """For `ssh -F`."""
        return self.place / "ssh_config"

    @property
    def namespace(self) -> pathlib.Path:
        """The network namespace from which all hosts can be reached."""
        return network.namespace_path(self.state.namespace)

    @property
    def hosts(self) -> list[state.HostRecord]:
        return self.state.hosts

    def host(self, name: str) -> state.HostRecord:
        """The host of that name."""
        for record in self.state.hosts:
            if record.name == name:
                return record
        raise FleetError(f"no host {name!r} in fleet {self.state.name!r}")

    def inside(self, name: str, *words: str) -> list[str]:
        """The command line that runs `words` as root in all namespaces of the host."""
        return host.enter(self.host(name).pid, *words)

    def in_network(self, name: str, *words: str) -> list[str]:
        """The command line that runs `words` here, but in the host's network, loopback included."""
        return host.enter(self.host(name).pid, *words, network_only=True)

    def run(self, name: str, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs `words` as root in the host."""
        return subprocess.run(
            self.inside(name, *words),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def ssh(self, name: str, command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a shell command as the unprivileged user, over SSH."""
        address = self.host(name).address
        there = remote.Remote(
            lambda: remote.connected(address, 22, self.namespace),
            name,
            OPERATOR,
            self.place / "operator_key",
            self.place / "known_hosts",
        )
        with contextlib.closing(there):
            done = there.run(command, timeout=timeout)
        return subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def root(self, name: str) -> pathlib.Path:
        """The host's root directory, seen from here."""
        return pathlib.Path(f"/proc/{self.host(name).pid}/root")

    def outer_pid(self, name: str, pid: int) -> int:
        """The pid here of the process that has `pid` in the host."""
        wanted = namespaces.pid_namespace(self.host(name).pid)
        for candidate in pathlib.Path("/proc").iterdir():
            if not candidate.name.isdigit():
                continue
            number = int(candidate.name)
            if namespaces.pid_namespace(number) == wanted and namespaces.inner_pid(number) == pid:
                return number
        raise FleetError(f"no process {pid} in {name}")

    def start_twin(self, name: str, service: str) -> int:
        """Starts a service in a host that does not run it yet; returns its pid in the host."""
        record = self.host(name)
        return host.start_service(record.pid, host.describe(service))


def up(
    count: int,
    services: Sequence[str] = (),
    name: str = "fleet",
    packages: Sequence[str] = (),
    started: Sequence[str] | None = None,
) -> Fleet:
    """Brings up `count` hosts that run the services.

    `packages` are installed besides those of the services; of the services only those in `started`
    are started, by default all. On any failure everything is torn down again.

    Raises FleetError when a fleet of that name is there or `count` is out of range, and what the
    steps raise: base_root.RootError, network.NetworkError, host.ServiceError, OSError.
    """
    if not 1 <= count <= MAXIMUM:
        raise FleetError(f"a fleet has 1 to {MAXIMUM} hosts, not {count}")
    described = [host.describe(service) for service in services]
    wanted = [package for service in described for package in service.packages] + list(packages)
    suites = {service.suite for service in described} or {base_root.SUITE}
    if len(suites) > 1:
        raise FleetError(f"these services want different releases: {', '.join(sorted(suites))}")
    root = base_root.with_packages(wanted, suites.pop())
    with state.locked(name) as place:
        if state.load(name):
            raise FleetError(f"fleet {name!r} is there already; take it down first")
        fleet = state.FleetState(name, f"wfpatch-{name}", list(services))
        state.save(fleet)
        try:
            network.remove(fleet.namespace)
            network.create(fleet.namespace)
            _start_hosts(fleet, count, root, place, described)
            for record in fleet.hosts:
                host.wait_for_root(record.pid)
                for service in described:
                    if started is None or service.name in started:
                        record.services[service.name] = host.start_service(record.pid, service)
            _wait_for_ssh(fleet)
            access.write_ssh_config(place, fleet, network.namespace_path(fleet.namespace))
            access.write_inventory(place, fleet)
            fleet.up = True
            state.save(fleet)
        except BaseException:
            _tear_down(name, place)
            raise
    return Fleet(name)


def _start_hosts(
    fleet: state.FleetState,
    count: int,
    root: pathlib.Path,
    place: pathlib.Path,
    services: Sequence[host.Service],
) -> None:
    authorized = access.make_key(place / "operator_key", "operator of a test fleet")
    known: dict[str, str] = {}
    for number in range(1, count + 1):
        name = f"host{number:02d}"
        own = place / "hosts" / name
        own.mkdir(parents=True, exist_ok=True)
        address = network.address(number)
        known[f"{name},{address}"] = access.make_key(own / "host_key", name)
        _start_host(
            fleet,
            number,
            host.HostPlan(name, address, root, own, own / "host_key", authorized, services),
        )
    access.write_known_hosts(place, known)


def _start_host(fleet: state.FleetState, number: int, plan: host.HostPlan) -> None:
    def record(pid: int) -> None:
        started = namespaces.start_time(pid)
        if started is None:
            raise OSError(f"{plan.name} ended at once; see {plan.place / 'console.log'}")
        fleet.hosts.append(state.HostRecord(plan.name, number, plan.address, pid, started))
        state.save(fleet)

    network.attach(fleet.namespace, number, host.start(plan, record))


def _wait_for_ssh(fleet: state.FleetState, timeout: float = 60.0) -> None:
    until = time.monotonic() + timeout
    for record in fleet.hosts:
        while not host.answers_ssh(record.address, network.namespace_path(fleet.namespace)):
            log = (state.folder(fleet.name) / "hosts" / record.name / "console.log").read_text()
            if namespaces.start_time(record.pid) != record.started or time.monotonic() > until:
                raise FleetError(f"{record.name} does not answer ssh: {log[-500:]}")
            time.sleep(0.02)


def down(name: str = "fleet") -> int:
    """Kills every host and removes all that is left; returns how many hosts were still there.

    Nothing happens when there is no such fleet. Works on what a crashed `up` or a killed test left.
    """
    with state.locked(name) as place:
        return _tear_down(name, place)


def _tear_down(name: str, place: pathlib.Path) -> int:
    found = state.load(name)
    access.end_connections(place)
    killed = 0
    for record in found.hosts if found else ():
        killed += namespaces.kill(record.pid, record.started)
    if found:
        network.remove(found.namespace)
    shutil.rmtree(place)
    return killed


@contextlib.contextmanager
def running(
    count: int, services: Sequence[str] = (), name: str = "fleet", **more: Sequence[str]
) -> Iterator[Fleet]:
    """A fleet for the length of a `with`; taken down whatever happens in it."""
    down(name)
    fleet = up(count, services, name, **more)
    try:
        yield fleet
    finally:
        down(name)
