# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel service is built, signed, replaced and removed by Debian's own DKMS."""

from __future__ import annotations

import pathlib
import struct
import subprocess

import pytest
from conftest import Root, set_version

#: Linux, scripts/sign-file.c: behind the signature stand struct module_signature and this.
MAGIC = b"~Module signature appended~\n"
KEY = ("openssl", "req", "-new", "-x509", "-nodes", "-days", "3", "-newkey", "rsa:2048")


def installed(root: Root) -> pathlib.Path:
    """The module's file."""
    return root.path / root.modinfo()["filename"].lstrip("/")


def make_key(root: Root) -> dict[str, str]:
    """A key on the host, as the module's options."""
    root.run("mkdir", "-p", "/etc/keys")
    root.run(
        *(*KEY, "-subj", "/CN=site", "-keyout", "/etc/keys/site.key"),
        *("-outform", "DER", "-out", "/etc/keys/site.der"),
    )
    return {
        "sign": "given",
        "sign_key": "/etc/keys/site.key",
        "sign_certificate": "/etc/keys/site.der",
    }


def verify(root: Root, certificate: str, folder: pathlib.Path) -> bool:
    """Whether the module's signature is by that certificate's key, as openssl sees it."""
    data = installed(root).read_bytes()
    if installed(root).suffix == ".xz":
        data = subprocess.run(["xz", "-dc"], input=data, check=True, capture_output=True).stdout
    assert data.endswith(MAGIC)
    end = len(data) - len(MAGIC)
    # struct module_signature: five bytes, three of padding, the length in network order.
    *_, length = struct.unpack(">5B3xI", data[end - 12 : end])
    start = end - 12 - length
    (folder / "content").write_bytes(data[:start])
    (folder / "signature").write_bytes(data[start : end - 12])
    done = subprocess.run(
        ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-noverify", "-nointern"]
        + ["-in", folder / "signature", "-content", folder / "content", "-out", "/dev/null"]
        + ["-certfile", pem(root, certificate, folder)],
        capture_output=True,
        text=True,
    )
    print(done.stderr)
    return done.returncode == 0


def pem(root: Root, certificate: str, folder: pathlib.Path) -> pathlib.Path:
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-in", root.path / certificate.lstrip("/")]
        + ["-out", folder / "certificate.pem"],
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "certificate.pem"


@pytest.mark.parametrize(
    "suite",
    [
        "bookworm",
        # DKMS 2.8 on Linux 5.10; DKMS 3.2 and compressed modules on 6.12.
        pytest.param("bullseye", marks=pytest.mark.slow),
        pytest.param("trixie", marks=pytest.mark.slow),
    ],
)
def test_the_whole_life(root, tmp_path):
    before = root.tree()
    planned = root.module(check=True, sign="generate", staged=None)
    assert planned["changed"], planned
    assert root.tree() == before
    first = root.module(sign="generate")
    assert first.get("failed") is None, first["msg"]
    assert first["actions"] == planned["actions"]
    assert (first["version"], first["uapi_version"], first["kernel"]) == (
        "0.1.0",
        "1",
        root.kernel,
    )
    assert root.modinfo()["vermagic"].split()[0] == root.kernel
    assert first["sign_key_id"] == root.modinfo()["sig_key"]
    assert verify(root, "/var/lib/dkms/mok.pub", tmp_path)
    assert (root.path / "var/lib/dkms/mok.key").stat().st_mode & 0o077 == 0
    again = root.module(sign="generate", staged=None)
    assert (again["changed"], again["actions"]) == (False, [])

    options = make_key(root)
    given = root.module(**options)
    assert given["signer"] == "site"
    assert verify(root, options["sign_certificate"], tmp_path)
    assert not verify(root, "/var/lib/dkms/mok.pub", tmp_path)
    assert not root.module(**options)["changed"]

    planned = root.module(state="absent", check=True, kernel=None)
    assert root.modinfo()
    gone = root.module(state="absent")
    assert gone["actions"] == planned["actions"]
    assert root.modinfo() == {}
    left = set(root.tree()) - set(before)
    assert {path for path in left if "wfpatch" in path} == set()
    assert not root.module(state="absent")["changed"]


def test_a_kernel_upgrade_signs_with_the_same_key(root, tmp_path):
    """What DKMS does by itself when a kernel is installed."""
    options = make_key(root)
    root.module(**options)
    root.run("dkms", "remove", "-m", "wfpatch", "-v", "0.1.0", "-k", root.kernel)
    root.run("dkms", "add", "-m", "wfpatch", "-v", "0.1.0")
    assert root.modinfo() == {}
    root.run("dkms", "autoinstall", "-k", root.kernel)
    assert verify(root, options["sign_certificate"], tmp_path)
    assert not root.module(**options)["changed"]


def test_a_build_that_fails(root, source):
    """The service that was there stays, and the compiler's words are in the result."""
    root.module()
    set_version(source, "0.2.0")
    (source / "main.c").write_text('#error "planted"\n' + (source / "main.c").read_text())
    found = root.module(source)
    assert found["failed"]
    assert found["reason"] == "kernel_module_build_failed"
    assert any('#error "planted"' in line for line in found["log"]), found["log"]
    assert '#error "planted"' in found["msg"]
    assert root.modinfo()["version"] == "0.1.0"
    (source / "main.c").write_text((source / "main.c").read_text().partition("\n")[2])
    mended = root.module(source)
    assert mended["version"] == "0.2.0"
    assert root.run("dkms", "status", "-m", "wfpatch").count("wfpatch") == 1
    assert not (root.path / "usr/src/wfpatch-0.1.0").exists()


def test_another_source_of_the_same_version(root, source):
    root.module()
    before = root.modinfo()["srcversion"]
    with open(source / "main.c", "a") as file:
        file.write("/* changed */\nvoid wf_planted(void);\nvoid wf_planted(void) {}\n")
    assert root.module(source)["changed"]
    assert root.modinfo()["srcversion"] != before


def test_what_was_cut_short(root):
    """Whatever was done when a run was killed, the next one completes it."""
    root.module()
    complete = root.modinfo()
    dkms = root.path / "var/lib/dkms/wfpatch/0.1.0"
    # After the build, before the installation.
    root.run("dkms", "uninstall", "-m", "wfpatch", "-v", "0.1.0", "-k", root.kernel)
    root.module()
    assert root.modinfo()["srcversion"] == complete["srcversion"]
    # In the middle of the build.
    root.run("dkms", "remove", "-m", "wfpatch", "-v", "0.1.0", "--all")
    root.run("dkms", "add", "-m", "wfpatch", "-v", "0.1.0")
    (dkms / root.kernel / "x86_64").mkdir(parents=True)
    (dkms / "build").mkdir(exist_ok=True)
    root.module()
    assert root.modinfo()["srcversion"] == complete["srcversion"]
    # Before the registration; somebody has removed the module's file.
    root.run("dkms", "remove", "-m", "wfpatch", "-v", "0.1.0", "--all")
    root.module()
    installed(root).unlink()
    root.module()
    assert root.modinfo()["srcversion"] == complete["srcversion"]
    assert not root.module()["changed"]


def test_what_is_missing(root):
    headers = root.path / "lib/modules" / root.kernel / "build"
    target = headers.readlink()
    headers.unlink()
    found = root.module()
    assert found["reason"] == "kernel_headers_missing"
    headers.symlink_to(target)
    for name, reason in (("gcc-12", "compiler_missing"), ("dkms", "dkms_missing")):
        path = root.path / root.run("which", name).strip().lstrip("/")
        others = [root.path / "usr/bin/gcc"] if name == "gcc-12" else []
        hidden = [(each, each.with_name(f"hidden-{each.name}")) for each in (path, *others)]
        for each, away in hidden:
            each.rename(away)
        found = root.module()
        assert found["reason"] == reason, found
        assert not found["changed"]
        for each, away in hidden:
            away.rename(each)
    assert root.module()["version"] == "0.1.0"


def test_a_signing_tool_that_is_missing(root):
    for path in (root.path / "usr").rglob("sign-file"):
        path.unlink()
    # DKMS 3.0 takes no notice of what a build's hook ends with; an unsigned module is none.
    found = root.module(**make_key(root))
    assert found["failed"], found
    assert found["reason"] == "kernel_module_build_failed"
