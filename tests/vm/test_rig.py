# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines are what they say, and a complaint of their kernel is not missed."""

from __future__ import annotations

import pathlib
import subprocess

import pytest
from conftest import TOP, Booter, quiet_kernel
from rig.machine import Machine, Spec


def test_the_kernel_is_the_one_asked_for(vm: Machine, series: str) -> None:
    release = subprocess.run(
        [TOP / "setup" / "kernels", "release", series], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert vm.run("uname -r").stdout.strip() == release
    assert vm.run("systemctl is-system-running", check=False).stdout.strip() in (
        "running",
        "degraded",
        "starting",
    )


def test_root_is_reached_by_an_unprivileged_user_only(vm: Machine) -> None:
    plain = subprocess.run(vm.ssh("id", "-un"), capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == "operator"
    assert vm.run("id -u").stdout.strip() == "0"
    refused = subprocess.run(vm.ssh("-l", "root", "true"), capture_output=True, text=True)
    assert refused.returncode == 255


def test_files_come_and_go(vm: Machine, tmp_path: pathlib.Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("content")
    vm.put(tmp_path, "/root/put")
    assert vm.run("cat /root/put/sub/file").stdout == "content"


def test_a_planted_complaint_of_the_kernel_fails_a_test(boot: Booter, series: str) -> None:
    made = boot(Spec(kernel=series))
    with pytest.raises(AssertionError, match="planted"), quiet_kernel(made):
        made.run("echo '<1>WARNING: planted by a test' > /dev/kmsg; sleep 2")


def test_the_module_leaves_nothing(vm: Machine) -> None:
    assert vm.run("stat -c '%a %U' /dev/wfpatch").stdout.strip() == "600 root"
    vm.run("rmmod wfpatch")
    assert vm.run("test -e /dev/wfpatch", check=False).returncode
    vm.run("insmod /root/wfpatch.ko")
