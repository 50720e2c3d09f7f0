# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel service on a host with a kernel of its own, as an operator brings it there: over SSH,
by the playbooks, built by the host's DKMS against the host's headers.

One machine lives through all of it, in the order of the file; some of it cannot be undone.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

import live_patching
import pytest
from conftest import TOP
from live_patching import Run, Signer
from rig.machine import Machine, Spec, running
from test_services import patched_reverted_and_patched_again

pytestmark = pytest.mark.timeout(1800)

Play = Callable[..., Run]
SIGNED = {"wfpatch_kernel_service_sign": "generate"}

#: Opens a session for a process of its own (WFPATCH_IOC_ATTACH) and holds it.
SESSION = """
import fcntl, os, struct, subprocess
target = subprocess.Popen(["sleep", "600"])
device = os.open("/dev/wfpatch", os.O_RDWR)
attach = bytearray(struct.pack("=IIiI", 16, 0, target.pid, 0))
session = fcntl.ioctl(device, 1 << 30 | 16 << 16 | 0xB7 << 8 | 1, attach)
os.close(device)
open("/root/said", "w").write(f"open {session}")
target.wait()
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with running(Spec(), "kernel-service") as machine:
        yield machine


@pytest.fixture
def play(machine: Machine, tmp_path: pathlib.Path) -> Play:
    def run(name: str, *options: str, **variables: object) -> Run:
        done = live_patching.play(name, machine.inventory, tmp_path, *options, **variables)
        print(done.output)
        return done

    return run


def traces(machine: Machine) -> str:
    """All that the kernel service can leave on a host."""
    return machine.run(
        "ls -d /usr/src/wfpatch* /var/lib/dkms/wfpatch /etc/wfpatch/module-signing"
        " /etc/modules-load.d/wfpatch.conf /etc/udev/rules.d/*wfpatch* /dev/wfpatch"
        " 2>/dev/null; dkms status wfpatch; find /lib/modules -name 'wfpatch*';"
        " grep ^wfpatch /proc/modules; true"
    ).stdout


@contextlib.contextmanager
def open_session(machine: Machine) -> Iterator[None]:
    """Somebody works with the kernel service for the duration of the block."""
    machine.run(f"rm -f /root/said; cat > /root/session.py <<'EOF'\n{SESSION}\nEOF")
    machine.run("systemd-run --unit session --collect python3 /root/session.py")
    machine.run("timeout 60 sh -c 'until grep open /root/said; do sleep 0.2; done'")
    yield
    machine.run("systemctl stop session")


def device(machine: Machine) -> str:
    """Mode and owners of the device."""
    return machine.run("stat --format '%A %U:%G' /dev/wfpatch").stdout.strip()


def result(run: Run) -> dict[str, object]:
    """What the task that loads the module returned: as -v prints it."""
    found = re.findall(
        r"Build, sign and load the kernel service\] \*+\n\w+: \[vm\] => (\{.*\})", run.output
    )
    parsed: dict[str, object] = json.loads(found[-1])
    return parsed


def test_check_mode_on_a_clean_host(machine: Machine, play: Play) -> None:
    before = traces(machine)
    assert before == ""
    run = play("install", "--check", "--diff", wfpatch_kernel_service="required")
    assert run.code == 0
    assert run.changed == {"vm": 2}
    for line in ("-loaded: no", "+loaded: 0.1.0", "+loaded at boot: yes"):
        assert line in run.output.splitlines()
    assert traces(machine) == before


# tests/fleet/test_kernel_service.py has it each time.
@pytest.mark.slow
def test_a_host_without_headers(machine: Machine, play: Play) -> None:
    machine.run("mv /lib/modules/$(uname -r)/build /root/build")
    run = play("install", "-v", wfpatch_kernel_service="auto")
    assert run.code == 0
    assert '"kernel_service_backend": "ptrace"' in run.output
    assert '"kernel_service_backend_reason": "kernel_headers_missing"' in run.output
    assert "goes on with the backend ptrace. kernel_headers_missing: no headers" in run.output
    offline = {"wfpatch_kernel_service_install_packages": False}
    run = play("install", wfpatch_kernel_service="required", **offline)
    assert run.code == 2
    assert "kernel_headers_missing" in run.output
    machine.run("mv /root/build /lib/modules/$(uname -r)/build")
    assert traces(machine) == ""


def test_it_is_built_there_and_loaded(machine: Machine, play: Play) -> None:
    applier = machine.run("test -e /usr/local/sbin/wfpatch", check=False).returncode == 0
    run = play("install", "-v", wfpatch_kernel_service="required", **SIGNED)
    assert run.code == 0
    assert run.changed["vm"] == (1 if applier else 2)
    assert '"kernel_service_backend": "kernel"' in run.output
    said = result(run)
    release = machine.run("uname -r").stdout.strip()
    assert {name: said[name] for name in ("loaded", "loaded_version", "kernel", "device")} == {
        "loaded": True,
        "loaded_version": "0.1.0",
        "kernel": release,
        "device": "/dev/wfpatch",
    }
    # Nobody has enrolled the key of this host, and nothing enforces it.
    assert (said["signed"], said["signer"]) == (True, "DKMS module signing key")
    assert (said["secure_boot"], said["lockdown"], said["taint"]) == ("disabled", "none", "OE")
    assert device(machine) == "crw------- root:root"
    status = machine.run("dkms status wfpatch").stdout
    assert status.strip() == f"wfpatch/0.1.0, {release}, x86_64: installed"
    key = machine.run("stat --format '%A %U' /var/lib/dkms/mok.key").stdout.strip()
    assert key == "-rw------- root"


def test_a_second_run_changes_nothing(machine: Machine, play: Play) -> None:
    run = play("install", wfpatch_kernel_service="required", **SIGNED)
    assert (run.code, run.changed) == (0, {"vm": 0})
    run = play("status", wfpatch_kernel_service="auto", **SIGNED)
    assert "kernel service 0.1.0 loaded, 0.1.0 installed for 6.1" in run.output


def test_the_device_and_the_boot(machine: Machine) -> None:
    """udev gives the device to root again, and the next boot's service loads the module."""
    machine.run("chown 1000 /dev/wfpatch; chmod 666 /dev/wfpatch")
    machine.run("udevadm trigger --settle --sysname-match wfpatch")
    assert device(machine) == "crw------- root:root"
    machine.run("rmmod wfpatch && systemctl restart systemd-modules-load")
    assert device(machine) == "crw------- root:root"
    refused = machine.run("setpriv --reuid 1000 --clear-groups cat /dev/wfpatch", check=False)
    assert "Permission denied" in refused.stderr


def test_stock_services_are_patched_by_what_was_built(
    machine: Machine,
    bundles: dict[str, list[str]],
    signer: Signer,
    tmp_path: pathlib.Path,
) -> None:
    patched_reverted_and_patched_again(machine, bundles, signer, tmp_path)
    assert machine.alarms() == []


def test_it_is_not_removed_while_a_session_is_open(machine: Machine, play: Play) -> None:
    before = traces(machine)
    with open_session(machine):
        assert machine.run("rmmod wfpatch", check=False).returncode != 0
        run = play("uninstall")
    assert run.code == 2
    (host,) = run.report["hosts"]
    assert host["reason"] == "kernel_service_busy"
    assert re.search(r"in use \(1, by python3\[\d+\]\)", run.output)
    assert traces(machine) == before
    assert machine.run("test -e /usr/local/sbin/wfpatch").returncode == 0


@pytest.mark.slow
def test_another_version_takes_its_place(
    machine: Machine, play: Play, tmp_path: pathlib.Path
) -> None:
    """Not while somebody works with the one that is there; then nothing is left of that one."""
    newer = tmp_path / "kmod"
    shutil.copytree(TOP / "kmod", newer, ignore=shutil.ignore_patterns(".build"))
    for name in ("dkms.conf", "wfpatch.h"):
        text = (newer / name).read_text()
        assert text.count('"0.1.0"') == 1
        (newer / name).write_text(text.replace('"0.1.0"', '"0.1.1"'))
    settings = {"wfpatch_kernel_service": "required", **SIGNED}
    with open_session(machine):
        run = play("install", wfpatch_kernel_service_src=str(newer), **settings)
        assert run.code == 2
        assert "kernel_service_busy" in run.output
        assert machine.run("cat /sys/module/wfpatch/version").stdout == "0.1.0\n"
    for source, version in ((newer, "0.1.1"), (TOP / "kmod", "0.1.0")):
        run = play("install", wfpatch_kernel_service_src=str(source), **settings)
        assert (run.code, run.changed) == (0, {"vm": 1})
        assert machine.run("cat /sys/module/wfpatch/version").stdout == f"{version}\n"
        assert machine.run("modinfo -F version wfpatch").stdout == f"{version}\n"
        assert machine.run("ls -d /usr/src/wfpatch-*").stdout == f"/usr/src/wfpatch-{version}\n"
        status = machine.run("dkms status wfpatch").stdout
        assert re.fullmatch(rf"wfpatch/{re.escape(version)}, \S+, x86_64: installed\n", status)
    assert machine.alarms() == []


def test_a_kernel_that_wants_a_trusted_signature(machine: Machine, play: Play) -> None:
    """The lockdown that Secure Boot brings on Debian, without Secure Boot."""
    machine.run("rmmod wfpatch; echo integrity > /sys/kernel/security/lockdown")
    run = play("install", "-v", wfpatch_kernel_service="auto", **SIGNED)
    assert run.code == 0
    said = result(run)
    assert (said["reason"], said["lockdown"]) == ("module_signature_required", "integrity")
    assert "mokutil --import /var/lib/dkms/mok.pub" in str(said["msg"])
    assert said["loaded"] is False
    assert '"kernel_service_backend_reason": "module_signature_required"' in run.output
    assert play("install", wfpatch_kernel_service="required", **SIGNED).code == 2


def test_a_kernel_that_takes_no_modules_any_more(machine: Machine, play: Play) -> None:
    machine.run("sysctl --write kernel.modules_disabled=1")
    run = play("install", "-v", wfpatch_kernel_service="auto", **SIGNED)
    assert run.code == 0
    assert result(run)["reason"] == "kernel_module_not_permitted"


def test_it_is_removed(machine: Machine, play: Play) -> None:
    run = play("uninstall")
    assert run.code == 0
    assert run.changed == {"vm": 2}
    assert traces(machine) == ""
    assert play("uninstall").changed == {"vm": 0}
    assert machine.alarms() == []
