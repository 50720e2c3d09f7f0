# SPDX-License-Identifier: GPL-3.0-or-later
"""A Debian host with systemd as its pid 1, in namespaces of its own: for what a unit does.

host = BootedHost(folder); host.boot(); host.run("systemctl", "is-system-running"); host.end()

Ansible reaches it by SSH over a pipe: the client's ProxyCommand enters the namespaces and runs
sshd there, so that no network is needed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import subprocess
import time
from typing import Any

TOP = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = "systemd,dbus,python3,openssh-server"

#: Before the namespaces: a cgroup for all of it, which systemd takes for the root of all.
OUTSIDE = """
mount -t tmpfs tmpfs "$2"
mkdir "$2"/cgroups "$2"/upper "$2"/work "$2"/root
mount -t cgroup2 cgroup2 "$2"/cgroups
mkdir "$2"/cgroups/"$3"
echo $$ > "$2"/cgroups/"$3"/cgroup.procs
exec unshare --pid --fork --kill-child --mount --uts --ipc --net --cgroup --propagation private \
    bash -euc "$4" inside "$1" "$2"
"""

#: Pid 1: the root, what a kernel mounts for it, and systemd.
INSIDE = """
root=$2/root
mount -t overlay overlay -o lowerdir="$1",upperdir="$2"/upper,workdir="$2"/work "$root"
mount -t proc proc "$root"/proc
mount -t sysfs -o ro sysfs "$root"/sys
mount -t tmpfs tmpfs "$root"/sys/fs
mkdir "$root"/sys/fs/cgroup
mount -t cgroup2 cgroup2 "$root"/sys/fs/cgroup
mount -t tmpfs tmpfs "$root"/run
mount -t tmpfs tmpfs "$root"/tmp
mount -t tmpfs -o mode=755 tmpfs "$root"/dev
for name in null zero full random urandom tty; do
    touch "$root"/dev/$name
    mount --bind /dev/$name "$root"/dev/$name
done
mkdir "$root"/dev/pts "$root"/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,gid=5,mode=620 devpts "$root"/dev/pts
ln -s pts/ptmx "$root"/dev/ptmx
ln -s /proc/self/fd "$root"/dev/fd
hostname booted
cd "$root"
pivot_root . mnt
umount -l /mnt
exec env -i container=wfpatch-tests PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --log-target=journal --show-status=no
"""


class BootedHost:
    """The host; ``folder`` is for its files on this machine."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._name = f"wfpatch-tests-{os.getpid()}"
        self._outside: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def boot(self) -> None:
        """Start it, and wait until it is up."""
        root = subprocess.run(
            [TOP / "setup" / "root", "bookworm", PACKAGES],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.strip()
        place = self._folder / "host"
        place.mkdir()
        command = ["unshare", "--mount", "--propagation", "private"]
        command += ["bash", "-euc", OUTSIDE, "outside", root, place, self._name, INSIDE]
        self._outside = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while not self._is_up():
            assert self._outside.poll() is None, "the host ended while it was started"
            assert time.monotonic() < deadline, "the host does not come up"
            time.sleep(0.2)

    def _is_up(self) -> bool:
        outside = self._outside.pid if self._outside else 0
        children = pathlib.Path(f"/proc/{outside}/task/{outside}/children")
        with contextlib.suppress(OSError, ValueError, IndexError):
            self.pid = int(children.read_text().split()[0])
            if pathlib.Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n":
                done = self.run("systemctl", "is-system-running", check=False)
                return done.stdout.strip() in ("running", "degraded")
        return False

    def enter(self) -> list[str]:
        """The beginning of a command line that is run on the host."""
        return ["nsenter", "-t", str(self.pid), "--all"]

    def run(
        self, *words: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host."""
        return subprocess.run(
            [*self.enter(), *words], capture_output=True, text=True, check=check, **options
        )

    def write(self, path: str, data: bytes, mode: str = "644") -> None:
        """Write a file on the host."""
        script = 'mkdir -p "$(dirname "$1")"; cat > "$1"; chmod "$2" "$1"'
        command = [*self.enter(), "sh", "-euc", script, "write", path, mode]
        subprocess.run(command, input=data, check=True)

    def variables(self) -> dict[str, Any]:
        """What an inventory says of it."""
        key = self._folder / "ssh-key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
            public = key.with_name("ssh-key.pub").read_bytes()
            self.write("/root/.ssh/authorized_keys", public, "600")
            self.run("sh", "-c", "mkdir -p /run/sshd; ssh-keygen -A")
        proxy = shlex.join([*self.enter(), "/usr/sbin/sshd", "-i"])
        return {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(key),
            "ansible_ssh_args": "-o ControlMaster=no",
            "ansible_ssh_common_args": f'-o ProxyCommand="{proxy}" -o StrictHostKeyChecking=no '
            "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def end(self) -> None:
        """End all of it."""
        if self._outside is None:
            return
        self._outside.kill()
        self._outside.wait(30)
        # Pid 1 goes with unshare (--kill-child), and all others with it; then the cgroup is empty.
        script = (
            'mkdir -p "$1"; mount -t cgroup2 cgroup2 "$1"; cd "$1"; [ ! -d "$2" ] || for i in $('
        )
        script += 'seq 100); do find "$2" -depth -type d -exec rmdir {} + 2>/dev/null && break; '
        script += "sleep 0.1; done"
        subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", script, "clear"]
            + [str(self._folder / "cgroups"), self._name],
            check=False,
        )
