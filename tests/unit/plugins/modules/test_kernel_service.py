# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel service is built, signed, loaded and removed, or refused with a reason.

DKMS and the tools of kmod are stand-ins here, over a root of the test's own; tests/dkms has the
real ones, tests/vm a kernel that loads it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile

import pytest
from ansible_collections.wfpatch.fleet.plugins.module_utils import _kernel_service
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_source import (
    NEEDED,
    digest,
    dkms_settings,
    read_tree,
)
from ansible_collections.wfpatch.fleet.plugins.modules import kernel_service
from ansible_collections.wfpatch.fleet.tests.unit.conftest import FAKE_APPLIER, FLEET

FAKE_TOOLS = FAKE_APPLIER.with_name("fake_kernel_tools.py")
TOOLS = ("dkms", "modinfo", "modprobe", "rmmod", "mokutil", "udevadm")
#: Nothing of the machine that runs the tests: what a tool is found by.
NEEDED_PROGRAMS = ("sh", "make", "gcc", "openssl", "sed")
SIGNED_ONLY = "modprobe: ERROR: could not insert 'wfpatch': Key was rejected by service"
NOT_PERMITTED = "modprobe: ERROR: could not insert 'wfpatch': Operation not permitted"
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


class KernelHost:
    """A host's root folder; ``run`` runs the module there as the action half would."""

    def __init__(self, folder, run_module):
        self.folder = folder
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.source = folder / "kmod"
        self.run_module = run_module
        self.release = os.uname().release
        self.answers = None

    def write(self, path, text):
        """Write a file below the root."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())

    def tell(self, **settings):
        """Change what the stand-ins say."""
        self.write("fake.json", json.dumps(settings))

    def calls(self, *tools):
        """Calls of these tools so far; all are forgotten."""
        path = self.root / "calls.json"
        calls = json.loads(path.read_text()) if path.exists() else []
        path.unlink(missing_ok=True)
        return [call for call in calls if call[0] in tools]

    def run(self, staged=True, **options):
        """Run the module; without ``staged``, as the action half's first call."""
        files = read_tree(str(self.source), NEEDED)
        archive = self.folder / "source.tar.gz"
        with tarfile.open(archive, "w:gz") as stream:
            for name in files:
                stream.add(self.source / name, name)
        options = {
            "src": str(self.source),
            "version": dkms_settings(files["dkms.conf"][0].decode())["PACKAGE_VERSION"],
            "digest": digest(files),
            "staged": str(archive) if staged else None,
            **options,
        }
        return self.run_module(kernel_service, **options)

    def answer(self, descriptor, request, question):
        """What the device would say to WFPATCH_IOC_INFO; it is the null device here."""
        assert os.fstat(descriptor).st_rdev == os.stat("/dev/null").st_rdev
        assert request == 0xC030B700
        size, uapi_version, _features, version = struct.unpack("=IIQ32s", question)
        assert (size, uapi_version, version) == (48, 0, bytes(32))
        version = self.answers or (self.root / "sys/module/wfpatch/version").read_text().strip()
        return struct.pack("=IIQ32s", size, 1, 0, version.encode())

    def release_version(self, version):
        """Make the source one of that version."""
        path = self.source / "dkms.conf"
        path.write_text(path.read_text().replace('VERSION="0.1.0"', f'VERSION="{version}"'))

    def tree(self):
        """The files of the host, with their sizes, less the stand-ins' own."""
        return {
            str(path.relative_to(self.root)): path.lstat().st_size
            for path in self.root.rglob("*")
            if not path.is_dir() and path.name != "calls.json"
        }


@pytest.fixture
def host(tmp_path, run_module, monkeypatch):
    host = KernelHost(tmp_path, run_module)
    host.bin.mkdir()
    for name in NEEDED_PROGRAMS:
        (host.bin / name).symlink_to(shutil.which(name) or "/bin/true")
    for name in TOOLS:
        program = host.bin / name
        program.write_text(f"#!{sys.executable}\n" + FAKE_TOOLS.read_text())
        program.chmod(0o755)
    shutil.copytree(FLEET / "kmod", host.source)
    (host.source / "dkms.conf").write_text(
        'PACKAGE_NAME="wfpatch"\nPACKAGE_VERSION="0.1.0"\nBUILT_MODULE_NAME[0]="wfpatch"\n'
    )
    host.write(f"lib/modules/{host.release}/build/Makefile", "")
    host.write(
        f"lib/modules/{host.release}/build/.config",
        'CONFIG_CC_VERSION_TEXT="gcc-12 (Debian 12.2.0-14) 12.2.0"\n',
    )
    host.write("proc/modules", "")
    host.write("proc/self/status", "Name:\tpython\nCapEff:\t000001ffffffffff\n")
    host.write("proc/self/uid_map", "         0          0 4294967295\n")
    host.write("proc/sys/kernel/modules_disabled", "0\n")
    host.write("proc/sys/kernel/tainted", "12288\n")
    host.write("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    (host.root / "sys/firmware/acpi").mkdir(parents=True)
    (host.root / "dev").mkdir()
    monkeypatch.setattr(_kernel_service, "ROOT", str(host.root))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("WFPATCH_FAKE_ROOT", str(host.root))
    monkeypatch.setenv("PATH", str(host.bin))
    monkeypatch.setattr(fcntl, "ioctl", host.answer)
    # /usr/sbin and the like, which Ansible searches always.
    monkeypatch.setattr(
        "ansible.module_utils.basic.get_bin_path",
        lambda arg, opt_dirs=None, required=None: find(host.bin / arg),
    )
    return host


def find(program):
    if not program.exists():
        raise ValueError(f"{program} is not there")
    return str(program)


def make_key(host):
    """A key and its certificate on the host, as options."""
    (host.root / "etc/keys").mkdir(parents=True)
    subprocess.run(
        ["openssl", "req", "-new", "-x509", "-nodes", "-days", "3", "-newkey", "rsa:2048"]
        + ["-subj", "/CN=site", "-keyout", str(host.root / "etc/keys/site.key")]
        + ["-outform", "DER", "-out", str(host.root / "etc/keys/site.der")],
        check=True,
        capture_output=True,
    )
    return {
        "sign": "given",
        "sign_key": "/etc/keys/site.key",
        "sign_certificate": "/etc/keys/site.der",
    }


def test_load_twice_and_remove(host):
    before = host.tree()
    assert host.run(staged=False)["_wanted"]
    assert host.tree() == before
    first = host.run()
    assert first["changed"]
    assert first["actions"] == [
        "place the source in /usr/src/wfpatch-0.1.0",
        "register wfpatch 0.1.0 with DKMS",
        f"build it for {host.release}",
        "install it",
        "write /etc/udev/rules.d/60-wfpatch.rules",
        "write /etc/modules-load.d/wfpatch.conf",
        "load it",
    ]
    assert {name: first[name] for name in ("version", "uapi_version", "kernel", "device")} == {
        "version": "0.1.0",
        "uapi_version": "1",
        "kernel": host.release,
        "device": "/dev/wfpatch",
    }
    assert (first["loaded"], first["loaded_version"], first["users"]) == (True, "0.1.0", 0)
    assert (first["tainted"], first["taint"]) == ("OE", "OE")
    assert (first["secure_boot"], first["lockdown"]) == ("disabled", "none")
    assert first["diff"]["before"].splitlines()[:2] == [
        "source: none",
        f"installed for {host.release}: none",
    ]
    assert "loaded: 0.1.0\nloaded at boot: yes\n" in first["diff"]["after"]
    rule = (host.root / "etc/udev/rules.d/60-wfpatch.rules").read_text()
    assert 'OWNER="root", GROUP="root", MODE="0600"' in rule
    assert (host.root / "etc/modules-load.d/wfpatch.conf").read_text().endswith("\nwfpatch\n")
    source = host.root / "usr/src/wfpatch-0.1.0"
    assert os.access(source / "dkms_sign", os.X_OK)
    assert source.stat().st_mode & 0o777 == 0o755
    host.calls()
    second = host.run(staged=False)
    assert not second["changed"], second
    assert second["actions"] == []
    assert second["diff"]["before"] == second["diff"]["after"]
    assert [call[1] for call in host.calls("dkms", "modprobe", "rmmod")] == ["status"]
    planned = host.run(state="absent", check=True)
    removed = host.run(state="absent")
    assert removed["actions"] == planned["actions"]
    assert removed["diff"]["after"] == planned["diff"]["after"]
    assert removed["changed"]
    assert not removed["loaded"]
    assert set(host.tree()) - set(before) == {"sys/class/misc/wfpatch/dev"}
    assert not host.run(state="absent")["changed"]


def test_check_mode_changes_nothing(host):
    before = host.tree()
    planned = host.run(check=True, staged=False)
    assert planned["changed"]
    assert host.tree() == before
    assert planned["actions"] == host.run()["actions"]


def test_present_does_not_load(host):
    (host.root / "proc/sys/kernel/modules_disabled").write_text("1\n")
    found = host.run(state="present")
    assert found["version"] == "0.1.0"
    assert not found["loaded"]
    assert found["device"] is None
    assert not host.run(state="present")["changed"]


def test_for_another_kernel(host):
    host.write("lib/modules/6.12.0/build/Makefile", "")
    host.run(state="present", kernel="6.12.0")
    builds = [call for call in host.calls("dkms") if call[1] == "build"]
    assert builds[0][-2:] == ["-k", "6.12.0"]
    refused = host.run(kernel="6.12.0")
    assert refused["reason"] == "usage"


def test_an_older_version_is_replaced(host):
    host.run()
    host.release_version("0.2.0")
    host.calls()
    found = host.run()
    assert found["actions"] == [
        "place the source in /usr/src/wfpatch-0.2.0",
        "register wfpatch 0.2.0 with DKMS",
        f"build it for {host.release}",
        "unregister wfpatch 0.1.0",
        "remove /usr/src/wfpatch-0.1.0",
        "install it",
        "unload 0.1.0",
        "load it",
    ]
    assert found["loaded_version"] == "0.2.0"
    assert not host.run()["changed"]


def test_another_source_of_the_same_version_is_built_anew(host):
    host.run()
    (host.source / "extra.h").write_text("/* new */\n")
    found = host.run()
    assert f"build it for {host.release}" in found["actions"]
    assert found["actions"][-2:] == ["unload 0.1.0", "load it"]
    (host.root / "usr/src/wfpatch-0.1.0/left_over.c").write_text("")
    assert host.run(staged=False)["_wanted"]


def test_a_busy_one_is_not_replaced(host):
    """The new version is installed all the same, for the next boot or run."""
    host.run()
    host.release_version("0.2.0")
    host.write("sys/module/wfpatch/refcnt", "1\n")
    fds = host.root / "proc/812/fd"
    fds.mkdir(parents=True)
    (fds / "3").symlink_to("/dev/wfpatch")
    host.write("proc/812/comm", "wf\x1b[2Jpatch\n")
    found = host.run()
    assert found["failed"]
    assert found["reason"] == "kernel_service_busy"
    assert "(1, by wf[2Jpatch[812])" in found["msg"]
    assert found["changed"]
    assert (found["version"], found["loaded_version"]) == ("0.2.0", "0.1.0")
    host.write("sys/module/wfpatch/refcnt", "0\n")
    assert host.run()["actions"] == ["unload 0.1.0", "load it"]


def test_a_busy_one_is_not_removed(host):
    host.run()
    host.write("sys/module/wfpatch/refcnt", "2\n")
    before = host.tree()
    for check in (True, False):
        found = host.run(state="absent", check=check)
        assert found["reason"] == "kernel_service_busy"
        assert "by no process that can be seen" in found["msg"]
        assert not found["changed"]
    assert host.tree() == before
    host.write("sys/module/wfpatch/refcnt", "0\n")
    host.tell(rmmod=[1, "rmmod: ERROR: Module wfpatch is in use"])
    assert host.run(state="absent")["reason"] == "kernel_service_busy"


@pytest.mark.parametrize(
    ("lacking", "reason", "words"),
    [
        ("headers", "kernel_headers_missing", "linux-headers-"),
        ("gcc", "compiler_missing", "not installed: gcc-12"),
        ("make", "compiler_missing", "not installed: make"),
        ("dkms", "dkms_missing", "package dkms"),
    ],
)
def test_what_a_build_needs(host, lacking, reason, words):
    if lacking == "headers":
        shutil.rmtree(host.root / "lib/modules")
    else:
        (host.bin / lacking).unlink()
    before = host.tree()
    for check in (True, False):
        found = host.run(check=check, staged=False)
        assert found["failed"]
        assert found["reason"] == reason
        assert found["missing"] == [reason]
        assert words in found["msg"]
        assert not found["changed"]
    planned = host.run(check=True, prerequisites="assume", staged=False)
    assert planned["changed"], planned
    assert host.run(prerequisites="assume")["reason"] == reason
    assert host.tree() == before


def test_what_is_built_needs_no_headers(host):
    host.run()
    shutil.rmtree(host.root / "lib/modules")
    assert not host.run()["changed"]


def test_everything_is_missing(host):
    shutil.rmtree(host.root / "lib/modules")
    for name in ("gcc", "dkms", "openssl"):
        (host.bin / name).unlink()
    found = host.run(sign="generate")
    assert found["reason"] == "kernel_headers_missing"
    assert found["missing"] == ["compiler_missing", "dkms_missing", "kernel_headers_missing"]
    assert "not installed: gcc, openssl;" in found["msg"]


def test_removal_without_dkms(host):
    host.run(state="present")
    (host.bin / "dkms").unlink()
    assert host.run(state="absent")["reason"] == "dkms_missing"


def test_a_build_that_fails(host):
    lines = [f"line {number}" for number in range(30)]
    host.tell(build_log="\n".join(lines) + "\nload.c:10:1: error: unknown type name\n")
    found = host.run()
    assert found["reason"] == "kernel_module_build_failed"
    assert found["log"][-1] == "load.c:10:1: error: unknown type name"
    assert len(found["log"]) == 20
    assert found["msg"].endswith("error: unknown type name")
    assert found["changed"]
    assert not found["loaded"]
    host.tell()
    assert host.run()["loaded"]


def test_a_step_of_dkms_that_fails(host):
    host.tell(dkms=[3, "Error! The directory is not there"])
    found = host.run()
    assert found["reason"] == "kernel_module_build_failed"
    assert "add -m wfpatch -v 0.1.0 ended with exit code 3: Error!" in found["msg"]


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("proc/sys/kernel/modules_disabled", "1\n", "kernel.modules_disabled"),
        ("proc/self/status", "CapEff:\t000001fffffeffff\n", "CAP_SYS_MODULE"),
        ("proc/self/uid_map", "0 100000 65536\n", "user namespace"),
    ],
)
def test_where_modules_may_not_be_loaded(host, path, text, words):
    host.write(path, text)
    before = host.tree()
    found = host.run()
    assert found["reason"] == "kernel_module_not_permitted"
    assert words in found["msg"]
    assert host.tree() == before


def test_a_container_leaves_its_hosts_module_alone(host):
    host.run()
    host.run_module(kernel_service, state="absent")
    host.run()
    shutil.rmtree(host.root / "usr/src/wfpatch-0.1.0")
    shutil.rmtree(host.root / "var/lib/dkms")
    for name in ("modules-load.d/wfpatch.conf", "udev/rules.d/60-wfpatch.rules"):
        (host.root / "etc" / name).unlink()
    host.write("proc/self/status", "CapEff:\t0000000000000000\n")
    assert not host.run(state="absent")["changed"]


@pytest.mark.parametrize(
    ("release", "machine"), [("5.4.0-1", "x86_64"), ("4.19.0", "x86_64"), ("6.1.0", "aarch64")]
)
def test_a_kernel_that_is_not_supported(host, monkeypatch, release, machine):
    real = os.uname()
    fields = (real.sysname, real.nodename, release, real.version, machine)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(fields))
    found = host.run()
    assert found["reason"] == "kernel_unsupported"
    assert f"this is {release} on {machine}" in found["msg"]


def test_a_kernel_without_modules(host):
    (host.root / "proc/modules").unlink()
    assert host.run()["reason"] == "kernel_unsupported"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (SIGNED_ONLY, "module_signature_required"),
        ("could not insert 'wfpatch': Required key not available", "module_signature_required"),
        (NOT_PERMITTED, "kernel_module_not_permitted"),
        ("could not insert 'wfpatch': Exec format error", "kernel_module_build_failed"),
        ("could not insert 'wfpatch': Unknown symbol in module", "kernel_unsupported"),
        ("could not insert 'wfpatch': No such device", "kernel_unsupported"),
        ("could not insert 'wfpatch': Cannot allocate memory", "backend_unavailable"),
    ],
)
def test_what_the_kernel_says(host, said, reason):
    host.tell(modprobe=[1, said])
    found = host.run()
    assert found["failed"]
    assert found["reason"] == reason
    assert said in found["msg"]
    assert found["version"] == "0.1.0"
    assert not found["loaded"]


def test_secure_boot_wants_a_key_that_is_enrolled(host):
    """Nothing is enrolled by the module, and the message says who can."""
    host.write(SECURE_BOOT, b"\6\0\0\0\1")
    host.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    host.tell(modprobe=[1, NOT_PERMITTED])
    unsigned = host.run()
    assert unsigned["reason"] == "module_signature_required"
    assert "(Secure Boot enabled, lockdown integrity)" in unsigned["msg"]
    assert "set sign to generate or given" in unsigned["msg"]
    host.tell(modprobe=[1, SIGNED_ONLY])
    host.calls()
    found = host.run(**make_key(host))
    assert found["reason"] == "module_signature_required"
    assert (found["signed"], found["enrolment"]) == (True, "not_enrolled")
    assert (found["secure_boot"], found["lockdown"]) == ("enabled", "integrity")
    assert "mokutil --import /etc/keys/site.der`" in found["msg"]
    assert "Enroll MOK" in found["msg"]
    assert {call[1] for call in host.calls("mokutil")} == {"--test-key"}


@pytest.mark.parametrize(
    ("said", "enrolment"),
    [
        ("/a is already enrolled", "enrolled"),
        ("/a is already in the enrollment request", "pending"),
        ("/a is not enrolled", "not_enrolled"),
        ("EFI variables are not supported on this system", "unknown"),
    ],
)
def test_enrolment(host, said, enrolment):
    host.tell(mokutil=[1, said])
    found = host.run(**make_key(host))
    assert found["enrolment"] == enrolment


def test_signed_by_a_key_of_its_own(host):
    planned = host.run(sign="generate", check=True, staged=False)
    found = host.run(sign="generate")
    assert found["actions"] == planned["actions"]
    assert found["actions"][0] == "make the key /var/lib/dkms/mok.key with its certificate"
    assert found["signed"]
    assert (host.root / "var/lib/dkms/mok.key").stat().st_mode & 0o777 == 0o600
    assert "named signing key: yes" in found["diff"]["after"]
    assert not host.run(sign="generate")["changed"]
    given = host.run(**make_key(host))
    assert f"build it for {host.release}" in given["actions"]
    assert given["sign_key_id"] != found["sign_key_id"]
    # Left to DKMS again: what is there stays, the name of the key goes.
    left = host.run(sign="none")
    assert left["actions"] == ["remove /etc/wfpatch/module-signing"]


@pytest.mark.parametrize("folder", ["etc/dkms/framework.conf", "etc/dkms/framework.conf.d/a.conf"])
def test_the_key_that_dkms_has(host, folder):
    make_key(host)
    host.write(
        folder, "# x\nmok_signing_key=/etc/keys/site.key\nmok_certificate='/etc/keys/site.der'\n"
    )
    found = host.run(sign="generate")
    assert found["actions"][0] == "write /etc/wfpatch/module-signing"
    assert found["signer"] == "of /etc/keys/site.der"
    assert not (host.root / "var/lib/dkms/mok.key").exists()


def test_keys_that_are_none(host):
    options = make_key(host)
    for wrong in (
        {"sign_key": "/nowhere"},
        {"sign_certificate": "/nowhere"},
        {"sign_certificate": options["sign_key"]},
    ):
        found = host.run(**{**options, **wrong})
        assert found["reason"] == "usage", found
        assert not found["changed"]


def test_a_device_that_does_not_answer(host):
    host.run()
    (host.root / "dev/wfpatch").unlink()
    found = host.run()
    assert found["reason"] == "backend_unavailable"
    assert found["device"] is None
    (host.root / "dev/wfpatch").write_text("")
    assert "is not the kernel service's device" in host.run()["msg"]


def test_a_device_of_another_version(host):
    host.answers = "0.0.9"
    found = host.run()
    assert found["reason"] == "backend_unavailable"
    assert "says that it is of the version 0.0.9" in found["msg"]


def test_another_version_than_the_one_that_was_asked_for(host, monkeypatch):
    host.tell(modprobe=[0, ""])
    found = host.run()
    assert found["reason"] == "backend_unavailable"
    assert "found is none" in found["msg"]


def test_a_device_for_others(host):
    warnings = []
    kernel_service.AnsibleModule.warn, kept = (
        lambda _self, text: warnings.append(text),
        kernel_service.AnsibleModule.warn,
    )
    try:
        # The device of the stand-ins is the null device, which is for everybody.
        host.run()
    finally:
        kernel_service.AnsibleModule.warn = kept
    assert warnings == [
        "/dev/wfpatch is not for root alone: crw-rw-rw- 0:0; a udev rule of this host may say so"
    ]


def test_a_source_that_arrives_altered(host):
    found = host.run(digest="0" * 64)
    assert found["reason"] == "task_failed"
    assert not (host.root / "usr/src/wfpatch-0.1.0").exists()
    assert os.listdir(host.root / "usr/src") == []


def test_not_root(host, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.run()["reason"] == "no_permission"


def test_without_the_action_half(host):
    assert "action half" in host.run(digest=None)["msg"]
