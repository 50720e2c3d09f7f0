# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian roots with DKMS and kernel headers, in which the module kernel_service builds.

No kernel is touched: a module is built for the kernel of the root's headers and installed there,
never loaded. What is written lies in memory and goes with the test.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = "dkms,linux-headers-amd64,python3,openssl,mokutil,kmod,make"

#: Makes what Ansible sends to a host for a module with these arguments: one Python program.
PAYLOAD = """
import json, sys
from ansible.plugins.loader import init_plugin_loader, module_loader
init_plugin_loader()
from ansible.executor.module_common import modify_module
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
found = module_loader.find_plugin_with_context("wfpatch.fleet.kernel_service")
built = modify_module(
    module_name=found.resolved_fqcn, module_path=found.plugin_resolved_path,
    module_args=json.load(sys.stdin), templar=Templar(loader=DataLoader()),
    task_vars={"ansible_python_interpreter": "/usr/bin/python3"},
    module_compression="ZIP_DEFLATED",
)
sys.stdout.buffer.write(built.b_module_data)
"""
#: Reads the source as the action half does.
SOURCE = """
import json, sys
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader()
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._kernel_source import KernelSource
source = KernelSource(sys.argv[1])
source.archive(sys.argv[2])
print(json.dumps({"version": source.version, "digest": source.digest}))
"""
#: An overlay in a mount namespace, until standard input ends.
ENTER = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /sys "$2/root/sys"
mount --rbind /dev "$2/root/dev"
echo ready
exec cat
"""


@dataclasses.dataclass
class Root:
    """A running root. ``path``: where it lies, seen from here; ``kernel``: that of its headers."""

    pid: int
    path: pathlib.Path
    inside: str
    kernel: str
    collections: pathlib.Path
    folder: pathlib.Path

    def run(self, *words: str, check: bool = True) -> str:
        """A command's output, in the root."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "chroot", self.inside, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def _ansible(self, program: str, *words: str, stdin: str = "") -> bytes:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            input=stdin.encode(),
            capture_output=True,
            cwd=self.folder,
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
                "ANSIBLE_LOCAL_TEMP": str(self.folder),
                "HOME": str(self.folder),
            },
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def module(
        self, source: pathlib.Path = TOP / "kmod", check: bool = False, **options: Any
    ) -> dict[str, Any]:
        """The result of the module, as a host would run it."""
        archive = self.path / "root/source.tar.gz"
        known = json.loads(self._ansible(SOURCE, str(source), str(archive)))
        arguments = {
            "state": "present",
            "src": str(source),
            "staged": "/root/source.tar.gz",
            "kernel": self.kernel,
            **known,
            **options,
            "_ansible_check_mode": check,
            "_ansible_diff": True,
            "_ansible_remote_tmp": "/tmp",
        }
        arguments = {name: value for name, value in arguments.items() if value is not None}
        program = self._ansible(PAYLOAD, stdin=json.dumps(arguments))
        (self.path / "root/module.py").write_bytes(program)
        said = self.run("python3", "/root/module.py", check=False)
        (self.path / "root/module.py").unlink()
        archive.unlink()
        line = next(line for line in said.splitlines() if line.startswith("{"))
        result = json.loads(line)
        print(json.dumps({name: value for name, value in result.items() if name != "invocation"}))
        return result

    def modinfo(self) -> dict[str, str]:
        """The module that is installed for the kernel; empty without one."""
        said = self.run("modinfo", "-k", self.kernel, "wfpatch", check=False)
        fields = (line.partition(":") for line in said.splitlines() if line[:1].strip())
        found = {name: value.strip() for name, _, value in fields}
        return found if "filename" in found else {}

    def tree(self) -> dict[str, int]:
        """All files that DKMS, udev and we write, with their sizes."""
        places = ("usr/src", "var/lib/dkms", "etc", f"lib/modules/{self.kernel}")
        return {
            str(path.relative_to(self.path)): path.lstat().st_size
            for place in places
            for path in (self.path / place).rglob("*")
            if not path.is_dir()
        }


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where the checkout is placed as a collection."""
    path = tmp_path_factory.mktemp("collections")
    subprocess.run([TOP / "setup/collection", path], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture
def suite() -> str:
    """The Debian release; a test may have others by parameter."""
    return "bookworm"


@pytest.fixture
def root(suite: str, collections: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Root]:
    """A root with DKMS and headers, of this test alone."""
    base = subprocess.run(
        [TOP / "setup/root", suite, PACKAGES], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    place = tmp_path / "root"
    place.mkdir()
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", ENTER, "-", base, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    try:
        assert keeper.stdout.readline() == b"ready\n"
        kernel = next((pathlib.Path(base) / "lib/modules").iterdir()).name
        path = pathlib.Path(f"/proc/{keeper.pid}/root{place}/root")
        yield Root(keeper.pid, path, str(place / "root"), kernel, collections, tmp_path)
    finally:
        keeper.send_signal(signal.SIGKILL)
        keeper.wait()
        keeper.stdin.close()
        keeper.stdout.close()


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the kernel service's source, to change."""
    return pathlib.Path(shutil.copytree(TOP / "kmod", tmp_path / "kmod"))


def set_version(source: pathlib.Path, version: str) -> None:
    """Make a source one of another version."""
    for name, before, after in (
        ("dkms.conf", 'PACKAGE_VERSION="0.1.0"', f'PACKAGE_VERSION="{version}"'),
        ("wfpatch.h", 'WF_VERSION\t"0.1.0"', f'WF_VERSION\t"{version}"'),
    ):
        text = (source / name).read_text()
        assert before in text
        (source / name).write_text(text.replace(before, after))
