# SPDX-License-Identifier: GPL-3.0-or-later
"""One virtual machine: brought up, reached by SSH on a loopback port, taken down."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from . import image
from .image import RootError

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "fleet"))
from sshfleet.access import make_key
from sshfleet.base_root import OPERATOR
from sshfleet.remote import Remote, connected

STATES = pathlib.Path("/run/wfpatch-vm")
BOOT_SECONDS = 240
#: The kernel with detectors takes its time for everything, and most of it for the tables of QEMU's
#: older board: half a minute for each interrupt line.
DEBUG = "debug"
DEBUG_BOOT_SECONDS = 1200
DEBUG_BOARD = "q35"
#: What the kernel says when something is wrong with it, or with a module.
ALARMS = re.compile(
    # Any kernel.
    r"WARNING:|BUG:|kernel BUG at|Oops|general protection|Call Trace|refcount_t|leaked|"
    r"INFO: task .* blocked|soft lockup|rcu.*stall|list_(add|del) corruption|"
    # One with detectors. Most of what lockdep says begins as the above, but not all.
    r"suspicious RCU|possible recursive|circular locking|inconsistent lock state|"
    r"-unsafe lock order|irq lock inversion|bad unlock balance|held lock freed|"
    r"Invalid wait context|non-static key|lockdep is turned off|"
    r"turning off the locking correctness|KASAN: (?!KernelAddressSanitizer)|UBSAN:|ODEBUG|"
    r"unreferenced object|kmemleak: \d+ new|kmemleak: .*disabled"
)

#: Those that this process has started, to be waited for.
_children: dict[int, subprocess.Popen[bytes]] = {}
#: The connections to machines, by QEMU's pid.
_remotes: dict[int, Remote] = {}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a machine is like."""

    kernel: str = image.OWN_SERIES
    cpus: int = 2
    memory: int = 3072
    append: str = ""
    cpu: str = "max"


class MachineError(Exception):
    """A machine did not come up, or a command in it failed."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A running machine, by its name below STATES."""

    name: str

    @property
    def place(self) -> pathlib.Path:
        return STATES / self.name

    @property
    def state(self) -> dict[str, object]:
        loaded: dict[str, object] = json.loads((self.place / "state.json").read_text())
        return loaded

    @property
    def port(self) -> int:
        return int(str(self.state["port"]))

    @property
    def pid(self) -> int:
        return int(str(self.state["pid"]))

    @property
    def console(self) -> pathlib.Path:
        return self.place / "console.log"

    @property
    def inventory(self) -> pathlib.Path:
        return self.place / "inventory.yml"

    def ssh(self, *command: str, **options: object) -> list[str]:
        return ["ssh", "-F", str(self.place / "ssh_config"), "vm", *command]

    def run(
        self, command: str, check: bool = True, timeout: float = 300, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """A shell command in the machine, as root; MachineError with its output if it fails."""
        said = self._remote().run(f"sudo -n sh -c {_quoted(command)}", stdin, timeout)
        done = subprocess.CompletedProcess(
            command,
            said.returncode,
            said.stdout.decode(errors="replace"),
            said.stderr.decode(errors="replace"),
        )
        if check and done.returncode:
            raise MachineError(
                f"{command}: exit code {done.returncode}\n"
                + done.stdout[-4000:]
                + done.stderr[-4000:]
            )
        return done

    def put(self, source: pathlib.Path, target: str) -> None:
        """Copy a file, or a directory's contents, to ``target`` in the machine."""
        if source.is_dir():
            sent = subprocess.run(
                ["tar", "-C", source, "-c", "."], check=True, capture_output=True
            ).stdout
            command = f"mkdir -p {target} && tar -C {target} -x --no-same-owner"
        else:
            sent = source.read_bytes()
            command = f"cat > {target} && chmod {source.stat().st_mode & 0o777:o} {target}"
        self.run(command, timeout=600, stdin=sent)

    def _remote(self) -> Remote:
        if self.pid not in _remotes:
            port = self.port
            _remotes[self.pid] = Remote(
                lambda: connected("127.0.0.1", port),
                "vm",
                OPERATOR,
                self.place / "operator_key",
                self.place / "known_hosts",
            )
        return _remotes[self.pid]

    def alarms(self) -> list[str]:
        """What the kernel has said that it should not have."""
        text = self.console.read_text(errors="replace")
        return [line.strip() for line in text.splitlines() if ALARMS.search(line)]

    def alive(self) -> bool:
        """Whether QEMU runs."""
        return _is_qemu(self.pid)

    def down(self) -> None:
        """End it, and leave nothing behind."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            if there := _remotes.pop(self.pid, None):
                there.close()
            if self.alive():
                os.kill(self.pid, signal.SIGKILL)
            for _ in range(200):
                if not self.alive():
                    break
                time.sleep(0.05)
            child = _children.pop(self.pid, None)
            if child is not None:
                child.wait()
        shutil.rmtree(self.place, ignore_errors=True)


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"


def _is_qemu(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read()
        with open(f"/proc/{pid}/stat", "rb") as file:
            zombie = b") Z" in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return line.startswith(b"qemu-system") and not zombie


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _inject(place: pathlib.Path) -> pathlib.Path:
    """Keys made on the spot, as a second archive behind the initial file system."""
    tree = place / "inject"
    host = tree / "inject/etc/ssh/ssh_host_ed25519_key"
    keys = tree / f"inject/home/{OPERATOR}/.ssh/authorized_keys"
    host.parent.mkdir(parents=True)
    keys.parent.mkdir(parents=True)
    public = make_key(host, "vm")
    keys.write_text(make_key(place / "operator_key", OPERATOR) + "\n")
    keys.parent.chmod(0o700)
    image.pack(tree, place / "inject.gz")
    shutil.rmtree(tree)
    (place / "known_hosts").write_text(f"vm {' '.join(public.split()[:2])}\n")
    return place / "inject.gz"


def _write_access(place: pathlib.Path, port: int) -> None:
    text = f"""\
# SPDX-License-Identifier: GPL-3.0-or-later
Host vm
    HostName 127.0.0.1
    Port {port}
    HostKeyAlias vm
    User {OPERATOR}
    IdentityFile {place / "operator_key"}
    IdentitiesOnly yes
    UserKnownHostsFile {place / "known_hosts"}
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 20
    LogLevel ERROR
"""
    (place / "ssh_config").write_text(text)
    (place / "inventory.yml").write_text(
        f"""\
# SPDX-License-Identifier: GPL-3.0-or-later
---
fleet:
  hosts:
    vm:
      ansible_host: 127.0.0.1
      ansible_port: {port}
      ansible_user: {OPERATOR}
      ansible_become: true
      ansible_ssh_private_key_file: {place / "operator_key"}
      ansible_ssh_common_args: >-
        -F {place / "ssh_config"} -o HostKeyAlias=vm
        -o UserKnownHostsFile={place / "known_hosts"} -o StrictHostKeyChecking=yes
      # Emulated, beside other work: nothing answers at once.
      ansible_timeout: 180
      ansible_python_interpreter: /usr/bin/python3
"""
    )


def up(spec: Spec, name: str, die_with_parent: bool = False) -> Machine:
    """Boot a machine and wait until SSH answers. Raises MachineError, RootError."""
    image.require_tools()
    machine = Machine(name)
    if (machine.place / "state.json").exists() and machine.alive():
        raise MachineError(f"machine {name} is up; take it down first")
    shutil.rmtree(machine.place, ignore_errors=True)
    machine.place.mkdir(parents=True, mode=0o700)
    disk, first = image.disk(), image.initial(spec.kernel)
    initial = machine.place / "initial.gz"
    initial.write_bytes(first.read_bytes() + _inject(machine.place).read_bytes())
    port = _free_port()
    command = [
        "qemu-system-x86_64",
        *(("-machine", DEBUG_BOARD) if spec.kernel == DEBUG else ()),
        *("-name", f"wfpatch-{name}", "-accel", "tcg,thread=multi", "-cpu", spec.cpu),
        *("-smp", str(spec.cpus), "-m", str(spec.memory), "-display", "none", "-no-reboot"),
        *("-serial", f"file:{machine.console}", "-monitor", "none"),
        *("-kernel", str(image.kernel(spec.kernel)), "-initrd", str(initial)),
        *(
            "-append",
            f"console=ttyS0 panic=-1 net.ifnames=1 quiet loglevel=5 {spec.append}".strip(),
        ),
        *("-drive", f"file={disk},format=raw,if=virtio,snapshot=on"),
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"),
    ]
    if die_with_parent:
        command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
    with open(machine.place / "qemu.log", "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(machine.place)},
        )
    _children[process.pid] = process
    state = {"pid": process.pid, "port": port, **dataclasses.asdict(spec)}
    (machine.place / "state.json").write_text(json.dumps(state))
    _write_access(machine.place, port)
    try:
        _await(machine, process)
    except BaseException:
        machine.down()
        raise
    return machine


def _await(machine: Machine, process: subprocess.Popen[bytes]) -> None:
    seconds = DEBUG_BOOT_SECONDS if machine.state["kernel"] == DEBUG else BOOT_SECONDS
    deadline = time.monotonic() + seconds
    while True:
        if process.poll() is not None:
            raise MachineError(f"QEMU ended: {_tail(machine)}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            if subprocess.run(machine.ssh("true"), capture_output=True, timeout=30).returncode == 0:
                return
        if time.monotonic() > deadline:
            raise MachineError(f"no SSH after {seconds} s: {_tail(machine)}")
        time.sleep(0.5)


def _tail(machine: Machine) -> str:
    lines = []
    for file in (machine.place / "qemu.log", machine.console):
        if file.exists():
            lines += file.read_text(errors="replace").splitlines()[-30:]
    return "\n".join(lines)


@contextlib.contextmanager
def running(spec: Spec, name: str) -> Iterator[Machine]:
    """A machine for the duration of a block; it dies with this process."""
    machine = up(spec, name, die_with_parent=True)
    try:
        yield machine
    finally:
        machine.down()


def names() -> Sequence[str]:
    """Of the machines there are."""
    return sorted(place.parent.name for place in STATES.glob("*/state.json"))


__all__ = ["Machine", "MachineError", "RootError", "Spec", "names", "running", "up"]
