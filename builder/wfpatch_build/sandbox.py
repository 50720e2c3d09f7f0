# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs commands in namespaces of their own: a chroot or this machine's root, with chosen
directories bound over chosen paths.

A compiler must see each variant of a source tree at the path the stock build had. So variants are
bound over that path in a private mount namespace; nothing of it is visible outside, and all
processes and mounts are gone when the command ends. There is no network but an idle loopback.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wfpatch_build.errors import Refusal

# $1: root or "", $2: number of binds, then pairs host inside, then the directory, then the command.
_SCRIPT = r"""
set -eu
root=$1 binds=$2; shift 2
if [ -n "$root" ]; then
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
else
    mount -t proc proc /proc
fi
while [ "$binds" -gt 0 ]; do
    [ -d "$1" ] && mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    shift 2; binds=$((binds - 1))
done
directory=$1; shift
[ -n "$root" ] || { cd "$directory"; exec "$@"; }
exec chroot "$root" sh -c 'cd "$0" && exec "$@"' "$directory" "$@"
"""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {
    "PATH": PATH,
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "LANG": "C.UTF-8",
}


@dataclass(frozen=True)
class Sandbox:
    """Where commands run.

    ``root`` is a chroot or None for this machine's own root; ``binds`` are (directory or file of
    this machine, path inside); ``environment`` is added to a plain one.
    """

    root: Path | None = None
    binds: tuple[tuple[Path, str], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    network: bool = False

    def with_binds(self, *binds: tuple[Path, str]) -> Sandbox:
        return Sandbox(self.root, (*self.binds, *binds), self.environment, self.network)

    def run(
        self, command: Sequence[str], directory: str = "/", log: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``command`` in ``directory`` (a path inside) to its end, whatever its exit code.

        Its output goes to ``log`` or, if None, is captured. Raises Refusal("tool_missing").
        """
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
        if not self.network:
            unshare.append("--net")
        if os.geteuid() != 0:
            unshare += ["--map-root-user"]
        binds = [text for host, inside in self.binds for text in (str(host), inside)]
        arguments = [
            *(*unshare, "--", "/bin/sh", "-c", _SCRIPT, "sandbox"),
            *(str(self.root or ""), str(len(self.binds)), *binds, directory),
            *command,
        ]
        environment = {**_ENVIRONMENT, **self.environment}
        try:
            if log is None:
                return subprocess.run(
                    arguments,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                )
            with log.open("ab") as stream:
                return subprocess.run(
                    arguments,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
        except FileNotFoundError as error:
            raise Refusal(
                "tool_missing", f"{error.filename} is needed and is not installed"
            ) from error

    def check(self, reason: str, what: str, command: Sequence[str], directory: str = "/") -> bytes:
        """Run ``command``; return what it printed. Raises Refusal(``reason``) when it fails."""
        done = self.run(command, directory)
        if done.returncode:
            tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-15:]
            raise Refusal(
                reason,
                f"{what} failed ({done.returncode}):\n" + "\n".join(tail),
                command=command[0],
            )
        return done.stdout
