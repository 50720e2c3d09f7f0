# SPDX-License-Identifier: GPL-3.0-or-later
"""Clean build chroots: one base per suite, one with the build dependencies per source package.

Both are cached. The compiler drivers inside are replaced by a stand-in that logs each call
(compiler_log.c) and becomes the real one, so the output stays the same to the byte.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from wfpatch_build import archive
from wfpatch_build.cache import entry, key_of
from wfpatch_build.errors import Refusal
from wfpatch_build.sandbox import Sandbox

LOG_DIRECTORY = "/usr/lib/wfpatch-build/log"
LOG_NAME = "compile.log"

_LAYOUT = 1  # raise when chroots of an older builder no longer fit
_HOME = "usr/lib/wfpatch-build"
_DRIVERS = re.compile(r"(x86_64-linux-gnu-)?(gcc|g\+\+|clang|clang\+\+)(-[0-9]+)?")
_APT = {"DEBIAN_FRONTEND": "noninteractive"}


def base_chroot(suite: str) -> Path:
    """The buildd chroot of a Debian suite, made by debootstrap on first use."""
    mirror = archive.mirror()
    with entry("base", f"{suite}-{key_of(_LAYOUT, suite, mirror)}") as (directory, complete):
        root = directory / "root"
        if not complete:
            _debootstrap(suite, root, mirror)
    return root


def _debootstrap(suite: str, root: Path, mirror: str) -> None:
    if shutil.which("debootstrap") is None:
        raise Refusal("tool_missing", "debootstrap is needed to make a build chroot")
    done = subprocess.run(
        ["debootstrap", "--variant=buildd", "--include=ca-certificates", suite, str(root), mirror],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-10:])
        raise Refusal(
            "chroot_failed", f"debootstrap {suite} failed:\n{tail}\n{done.stderr.strip()}"
        )
    archive.configure(root, suite)
    resolv = Path("/etc/resolv.conf")
    if resolv.exists():
        shutil.copyfile(resolv, root / "etc" / "resolv.conf")
    sandbox = Sandbox(root, environment=_APT, network=True)
    sandbox.check("chroot_failed", "apt-get update in the chroot", ["apt-get", "-q", "update"])
    sandbox.check(
        "chroot_failed",
        "apt-get upgrade in the chroot",
        ["apt-get", "-q", "-y", "--no-install-recommends", "upgrade"],
    )


def package_chroot(suite: str, source_files: Sequence[Path]) -> Path:
    """A chroot with the build dependencies of a source package; ``source_files``: .dsc first."""
    base = base_chroot(suite)
    dsc = source_files[0]
    depends = re.findall(r"(?m)^Build-[A-Za-z-]+: .*(?:\n .*)*", dsc.read_text(errors="replace"))
    stand_in = Path(__file__).with_name("compiler_log.c").read_text()
    name = f"{dsc.name.split('_')[0]}-{key_of(_LAYOUT, base.parent.name, depends, stand_in)}"
    with entry("chroot", name) as (directory, complete):
        root = directory / "root"
        if not complete:
            subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
            (root / _HOME / "source").mkdir(parents=True)
            for file in source_files:
                shutil.copyfile(file, root / _HOME / "source" / file.name)
            sandbox = Sandbox(root, environment=_APT, network=True)
            install = ["apt-get", "-q", "-y", "--no-install-recommends", "build-dep"]
            sandbox.check(
                "chroot_failed",
                f"installing the build dependencies of {dsc.name}",
                [*install, f"/{_HOME}/source/{dsc.name}"],
            )
            shutil.rmtree(root / _HOME / "source")
            shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
            _replace_drivers(root, stand_in)
    return root


def _replace_drivers(root: Path, stand_in: str) -> None:
    home = root / _HOME
    (home / "real").mkdir()
    (root / LOG_DIRECTORY[1:]).mkdir()
    (home / "compiler_log.c").write_text(stand_in)
    Sandbox(root).check(
        "chroot_failed",
        "compiling the compiler log",
        ["gcc", "-O2", "-o", f"/{_HOME}/stand-in", f"/{_HOME}/compiler_log.c"],
    )
    for driver in sorted((root / "usr/bin").iterdir()):
        if _DRIVERS.fullmatch(driver.name) and not driver.is_symlink():
            driver.rename(home / "real" / driver.name)
            shutil.copy2(home / "stand-in", driver)
