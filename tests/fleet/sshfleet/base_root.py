# SPDX-License-Identifier: GPL-3.0-or-later
"""The root file systems that the hosts share: a minimal Debian with sshd, and copies with services.

Each is made once and kept in the cache under a digest of what it was made from, this file
included, so that an edit here makes a new one and an old one is never changed. Hosts see it
read-only below an overlay.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence

ARCHIVE = pathlib.Path(__file__).resolve().parents[3] / "setup" / "archive"
#: Debian 12, the release that the product's hosts run.
SUITE = "bookworm"
OPERATOR = "operator"
#: What every host has: sshd, what Ansible needs of a target, and `ip` to look at its network.
PACKAGES = ("openssh-server", "python3", "sudo", "iproute2", "procps")

#: Hosts of a test answer at once and let in one user, by key; root cannot log in.
SSHD_CONFIG = """\
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
X11Forwarding no
MaxStartups 200
MaxSessions 200
Subsystem sftp /usr/lib/openssh/sftp-server
"""

#: Debian's convention for "start nothing here": invoke-rc.d asks this program.
POLICY = "#!/bin/sh\nexit 101\n"


class RootError(Exception):
    """A root could not be made; the message ends with what the failing command printed."""


def cache() -> pathlib.Path:
    """Where roots are kept; created when it is missing."""
    place = pathlib.Path(os.environ.get("WFPATCH_CACHE") or "/var/cache/wfpatch") / "fleet"
    place.mkdir(parents=True, exist_ok=True)
    return place


def run(*words: str | os.PathLike[str], env: dict[str, str] | None = None) -> str:
    """A command's standard output; RootError with its last lines when it fails."""
    done = subprocess.run(
        [os.fspath(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=env,
    )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RootError(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{last}")
    return done.stdout


def digest(*parts: object) -> str:
    """A short name for everything a root was made from."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def made_once(path: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """A place to build `path` in, renamed to it at the end; None when it is there already."""
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        building = path.with_suffix(".building")
        shutil.rmtree(building, ignore_errors=True)
        try:
            yield building
            building.rename(path)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def base(suite: str = SUITE) -> pathlib.Path:
    """The root with sshd and no service."""
    path = cache() / f"base-{digest(suite, pathlib.Path(__file__).read_text())}"
    with made_once(path) as root:
        if root:
            mirror = run(ARCHIVE, "mirror").strip()
            run(
                "debootstrap",
                "--variant=minbase",
                f"--include={','.join(PACKAGES)}",
                suite,
                root,
                mirror,
            )
            write(root / "usr/sbin/policy-rc.d", POLICY, 0o755)
            write(root / "etc/ssh/sshd_config", SSHD_CONFIG)
            rule = f"{OPERATOR} ALL=(ALL) NOPASSWD: ALL\n"
            write(root / f"etc/sudoers.d/{OPERATOR}", rule, 0o440)
            for key in (root / "etc/ssh").glob("ssh_host_*"):
                key.unlink()
            # Debian has a group of that name for other ends; ours is an ordinary user.
            run(
                *("chroot", root, "useradd", "--create-home", "--shell", "/bin/bash"),
                *("--no-user-group", "--gid", "users", OPERATOR),
            )
            # "*" is no valid hash, and unlike "!" it does not lock the account for keys.
            run("chroot", root, "usermod", "--password", "*", OPERATOR)
            forget_downloads(root)
    return path


def with_packages(packages: Sequence[str], suite: str = SUITE) -> pathlib.Path:
    """The base with further packages (`name` or `name=version`) installed and none started."""
    below = base(suite)
    if not packages:
        return below
    wanted = sorted(set(packages))
    path = cache() / f"root-{digest(below.name, wanted)}"
    with made_once(path) as root:
        if root:
            run("cp", "--archive", "--reflink=auto", below, root)
            run(ARCHIVE, "configure", root, suite)
            environment = {
                **os.environ,
                "DEBIAN_FRONTEND": "noninteractive",
                "LC_ALL": "C",
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            }
            apt = ("chroot", root, "apt-get", "-q", "-y", "-o", "Acquire::Retries=3")
            run(*apt, "update", env=environment)
            run(
                *apt,
                "install",
                "--no-install-recommends",
                "--allow-downgrades",
                *wanted,
                env=environment,
            )
            forget_downloads(root)
    return path


def forget_downloads(root: pathlib.Path) -> None:
    """Drops what only an install needed."""
    for place in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(root / place, ignore_errors=True)


def write(path: pathlib.Path, text: str, mode: int = 0o644) -> None:
    """A file with these contents and this mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
