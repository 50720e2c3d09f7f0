# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet itself: what its hosts are, who gets in, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from sshfleet import base_root, namespaces, network, state
from sshfleet import fleet as fleets
from sshfleet.fixture import FleetFactory

HERE = pathlib.Path(__file__).resolve().parent
NAMESPACES = ("net", "pid", "mnt", "uts")


@pytest.fixture(scope="module")
def pair(ssh_fleet: FleetFactory) -> fleets.Fleet:
    """Two hosts with the stock services."""
    return ssh_fleet(2, "redis", "memcached")


def test_each_host_has_its_own_namespaces(pair: fleets.Fleet) -> None:
    pids = [os.getpid(), *(host.pid for host in pair.hosts)]
    for kind in NAMESPACES:
        assert len({os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids}) == len(pids), kind
    assert pair.ssh("host02", "hostname").stdout == "host02\n"


def test_ssh_lets_in_the_operator_only(pair: fleets.Fleet) -> None:
    assert pair.ssh("host01", "id -un").stdout == "operator\n"
    assert pair.ssh("host01", "sudo -n id -un").stdout == "root\n"
    command = ["ssh", "-F", str(pair.ssh_config), "-l", "root", "host01", "true"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


def test_a_host_with_another_key_is_refused(pair: fleets.Fleet, tmp_path: pathlib.Path) -> None:
    """Strict checking: the key of host02 does not do for host01."""
    text = pair.ssh_config.read_text()
    other = tmp_path / "ssh_config"
    other.write_text(text.replace("HostKeyAlias host01", "HostKeyAlias host02"))
    done = subprocess.run(
        ["ssh", "-F", str(other), "host01", "true"], capture_output=True, text=True
    )
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_services_are_the_stock_packages_confined_as_their_units_say(pair: fleets.Fleet) -> None:
    host = pair.hosts[0]
    wanted = {
        "redis": ("redis-server", "5:7.0.15-1~deb12u7", "redis"),
        "memcached": ("memcached", "1.6.18-1", "memcache"),
    }
    for service, (package, version, user) in wanted.items():
        query = ("dpkg-query", "-W", "-f", "${Version}", package)
        assert pair.run(host.name, *query).stdout == version
        verify = pair.run(host.name, "dpkg", "--verify", package)
        assert [line for line in verify.stdout.splitlines() if "/bin/" in line] == []
        pid = pair.outer_pid(host.name, host.services[service])
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        assert "\nNoNewPrivs:\t1\n" in status
        assert "\nSeccomp:\t2\n" in status
        owner = pair.run(host.name, "stat", "-c", "%U", f"/proc/{host.services[service]}").stdout
        assert owner == f"{user}\n"
    command = pathlib.Path(
        f"/proc/{pair.outer_pid(host.name, host.services['memcached'])}/cmdline"
    ).read_bytes()
    assert b"\0-t\x004\0" in command + b"\0"


def test_memory_may_not_be_made_executable(pair: fleets.Fleet) -> None:
    """The filter that stands for MemoryDenyWriteExecute refuses what it should, and only that."""
    probe = (
        "import ctypes, importlib.machinery as m, importlib.util as u, mmap, os, sys\n"
        "l = m.SourceFileLoader('unit', '/usr/local/sbin/start-unit')\n"
        "unit = u.module_from_spec(u.spec_from_loader('unit', l)); l.exec_module(unit)\n"
        "unit.checked(unit.libc.prctl(38, 1, 0, 0, 0), 'nnp'); unit.deny_write_execute()\n"
        "c = ctypes.CDLL(None, use_errno=True); c.mmap.restype = ctypes.c_long\n"
        "p, i, n = ctypes.c_void_p, ctypes.c_int, ctypes.c_long\n"
        "c.mmap.argtypes, c.mprotect.argtypes = [p, n, i, i, i, n], [p, n, i]\n"
        "tries = [c.mmap(None, 4096, access, 34, -1, 0) for access in (3, 5, 6, 7)]\n"
        "own = tries[0]\n"
        "print([t > 0 for t in tries], c.mprotect(own, 4096, 5), c.mprotect(own, 4096, 1))"
    )
    done = pair.run("host01", "python3", "-I", "-c", probe)
    assert done.stdout == "[True, True, False, False] -1 0\n", done.stderr


def test_orphans_are_reaped(pair: fleets.Fleet) -> None:
    """pid 1 is no zombie's parent for long."""
    pair.run("host01", "sh", "-c", "(sleep 0.05 & exec true) & exec true")
    until = time.monotonic() + 10
    while "Z" in pair.run("host01", "ps", "-eo", "stat=").stdout:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_hosts_see_each_other_and_nothing_else(pair: fleets.Fleet) -> None:
    second = pair.hosts[1]
    probe = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 22), 5); print(s.recv(4))"
    )
    command = pair.in_network("host01", sys.executable, "-c", probe, second.address)
    assert subprocess.run(command, capture_output=True, text=True).stdout == "b'SSH-'\n"
    routes = pair.run("host01", "ip", "route").stdout.splitlines()
    assert len(routes) == 1
    assert routes[0].startswith(str(network.NETWORK))
    # This machine's own network knows nothing of it.
    own = subprocess.run(["ip", "-json", "addr"], capture_output=True, text=True).stdout
    assert str(network.NETWORK[0]).rsplit(".", 2)[0] not in own


def test_ansible_reaches_every_host(pair: fleets.Fleet) -> None:
    """With the inventory alone, from any shell."""
    ansible = pathlib.Path(sys.executable).with_name("ansible")
    command = [ansible, "fleet", "-i", pair.inventory, "-b", "-m", "command", "-a", "id -u", "-o"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["host01", "host02"]
    assert done.stdout.count("(stdout) 0") == 2


def test_two_fleets_do_not_meet(ssh_fleet: FleetFactory) -> None:
    """Same addresses, same user, connections kept open: each inventory reaches its own hosts."""
    first, second = ssh_fleet(1), ssh_fleet(1)
    assert first.hosts[0].address == second.hosts[0].address
    for number, fleet in enumerate((first, second)):
        fleet.run("host01", "sh", "-c", f"echo fleet {number} >/etc/motd")
    ansible = pathlib.Path(sys.executable).with_name("ansible")
    for number, fleet in enumerate((first, second)):
        command = [ansible, "fleet", "-i", fleet.inventory, "-m", "command", "-a", "cat /etc/motd"]
        done = subprocess.run([*command, "-o"], capture_output=True, text=True)
        assert f"(stdout) fleet {number}" in done.stdout, done.stdout + done.stderr
        assert [path for path in (fleet.place / "control").iterdir() if path.is_socket()]


def test_services_start_in_the_hosts_own_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late a host enters it: before that, its namespaces still show this machine's."""
    enter = namespaces.enter_overlay

    def late(*arguments: Any) -> None:
        time.sleep(1)
        enter(*arguments)

    monkeypatch.setattr(namespaces, "enter_overlay", late)
    with fleets.running(1, ["memcached"], f"test-{os.getpid()}-late") as fleet:
        inner = fleet.host("host01").services["memcached"]
        assert (
            fleet.run("host01", "readlink", f"/proc/{inner}/exe").stdout == "/usr/bin/memcached\n"
        )


def test_down_ends_connections_that_ansible_keeps_open() -> None:
    name = f"test-{os.getpid()}-kept"
    fleet = fleets.up(1, [], name)
    ansible = pathlib.Path(sys.executable).with_name("ansible")
    subprocess.run([ansible, "fleet", "-i", fleet.inventory, "-m", "ping"], check=True)
    kept = [str(path) for path in (fleet.place / "control").iterdir() if path.is_socket()]
    assert kept
    fleets.down(name)
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            assert kept[0] not in words or namespaces.start_time(int(entry.name)) is None


def test_down_leaves_nothing_and_may_be_repeated(tmp_path: pathlib.Path) -> None:
    name = f"test-{os.getpid()}-down"
    fleet = fleets.up(2, [], name)
    pids = [host.pid for host in fleet.hosts]
    assert fleets.down(name) == 2
    assert fleets.down(name) == 0
    for pid in pids:
        assert namespaces.start_time(pid) is None
    assert not state.folder(name).exists()
    assert not fleet.namespace.exists()
    assert name not in pathlib.Path("/proc/mounts").read_text()


def test_down_cleans_up_after_a_killed_up() -> None:
    """SIGKILL at an arbitrary moment of `up`: what it had started is found and ended."""
    name = f"test-{os.getpid()}-killed"
    base_root.base()
    for delay in (0.1, 0.2, 0.4):
        before = fleet_processes(name)
        starting = subprocess.Popen(
            [sys.executable, HERE / "fleet", "--name", name, "up", "6"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            starting.wait(delay)
        except subprocess.TimeoutExpired:
            starting.send_signal(signal.SIGKILL)
            starting.wait()
        fleets.down(name)
        until = time.monotonic() + 10
        while fleet_processes(name) - before:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not network.namespace_path(f"wfpatch-{name}").exists()


def fleet_processes(name: str) -> set[int]:
    """Processes whose root file system's mounts name the fleet."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                mounts = (entry / "mounts").read_text()
            except OSError:
                continue
            if f"/{name}/" in mounts:
                found.add(int(entry.name))
    return found


def test_a_failing_up_takes_down_what_it_began() -> None:
    name = f"test-{os.getpid()}-failing"
    with pytest.raises(KeyError, match="no service 'nosuch'"):
        fleets.up(1, ["nosuch"], name)
    assert state.load(name) is None
    fleets.up(1, [], name)
    try:
        with pytest.raises(fleets.FleetError, match="is there already"):
            fleets.up(1, [], name)
        # The attempt must not have harmed the one that is there.
        assert fleets.Fleet(name).ssh("host01", "true").returncode == 0
    finally:
        fleets.down(name)


def test_a_recycled_pid_is_not_killed() -> None:
    """Another process that got the pid of a dead host is left alone: its start time differs."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            started = namespaces.start_time(bystander.pid)
            assert started
            assert namespaces.kill(bystander.pid, started - 1) is False
            assert bystander.poll() is None
            assert namespaces.kill(bystander.pid, started) is True
        finally:
            bystander.kill()


def test_the_tool_lists_and_executes(pair: fleets.Fleet) -> None:
    tool = [sys.executable, HERE / "fleet", "--name", pair.state.name]
    listed = subprocess.run([*tool, "list"], capture_output=True, text=True).stdout.splitlines()
    assert [line.split()[:3] for line in listed[:2]] == [
        ["host01", "10.77.1.1", "up"],
        ["host02", "10.77.1.2", "up"],
    ]
    assert listed[2] == f"inventory: {pair.inventory}"
    command = [*tool, "exec", "host02", "sh", "-c", "hostname; exit 7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("host02\n", 7)
    addresses = subprocess.run(
        [*tool, "run", "ip", "-json", "addr", "show", network.BRIDGE],
        capture_output=True,
        text=True,
    )
    assert json.loads(addresses.stdout)[0]["addr_info"][0]["local"] == str(network.NETWORK[1])


@pytest.mark.slow
def test_a_hundred_hosts(ssh_fleet: FleetFactory) -> None:
    fleet = ssh_fleet(100)
    assert len({host.address for host in fleet.hosts}) == 100
    assert fleet.ssh("host100", "hostname").stdout == "host100\n"
