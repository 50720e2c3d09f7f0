# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk that all machines start from, and the initial file system that boots a kernel on it.

The root is the SSH fleet's own host root with an init, the demonstration's services and what a
customer's host would need to build the kernel service. Each is made once and kept in the cache
under a digest of what it was made from; machines write to a throw-away overlay.
"""

from __future__ import annotations

import gzip
import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "fleet"))

from sshfleet.base_root import (
    RootError,
    cache,
    digest,
    forget_downloads,
    made_once,
    run,
    with_packages,
    write,
)

SETUP = pathlib.Path(__file__).resolve().parents[3] / "setup"
#: The kernel of Debian 12: its modules and headers are in the image, as on a customer's host.
OWN_SERIES = "6.1"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "dkms",
    "gcc",
    "libc6-dev",
    "make",
    "gdb",
    "mokutil",
    "openssl",
    "linux-headers-amd64",
    "binutils",
    "python3-pytest",
    "python3-pytest-timeout",
    "python3-pyelftools",
    "python3-yaml",
    "redis-server=5:7.0.15-1~deb12u7",
    "redis-tools=5:7.0.15-1~deb12u7",
    "memcached=1.6.18-1",
    "libevent-2.1-7=2.1.12-stable-8",
)
DISK_SIZE = "3G"
#: What an initial file system needs to reach its disk and its network.
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "ext4",
    "crc32c_generic",
    "autofs4",
)

NETWORK = "[Match]\nName=e*\n[Network]\nDHCP=yes\n"

INIT = """\
#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod "$module" || echo "insmod $module failed"; done
mount -t ext4 -o noatime /dev/vda /root || { echo "no root disk"; sleep 5; poweroff -f; }
mkdir -p "/root/lib/modules/$(uname -r)"
cp -a "/lib/modules/$(uname -r)/." "/root/lib/modules/$(uname -r)/"
cp -a /inject/. /root/
chown -R 1000:100 /root/home/operator
umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /sbin/init
"""


def root() -> pathlib.Path:
    """The image's tree, before a kernel's modules are added to it."""
    below = with_packages(PACKAGES)
    path = cache() / f"vm-root-{digest(below.name, pathlib.Path(__file__).read_text())}"
    with made_once(path) as tree:
        if tree:
            run("cp", "--archive", "--reflink=auto", below, tree)
            fill(tree)
    return path


def fill(tree: pathlib.Path) -> None:
    """What makes a machine of a host's root."""
    write(tree / "etc/systemd/network/wired.network", NETWORK)
    write(tree / "etc/hostname", "vm\n")
    write(tree / "etc/hosts", "127.0.0.1 localhost vm\n")
    write(tree / "etc/fstab", "/dev/vda / ext4 noatime 0 1\n")
    (tree / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
    # The kernel's messages are what a test reads last.
    write(tree / "etc/sysctl.d/90-rig.conf", "kernel.panic_on_oops = 1\nkernel.panic = -1\n")
    write(tree / "etc/memcached.conf", (tree / "etc/memcached.conf").read_text() + "-t 4\n")
    chroot = ("chroot", tree)
    run(*chroot, "systemctl", "enable", "systemd-networkd", "ssh")
    run(*chroot, "systemctl", "disable", "redis-server", "memcached")
    run(
        *chroot,
        "systemctl",
        "mask",
        *(
            "apt-daily.timer",
            "apt-daily-upgrade.timer",
            "e2scrub_all.timer",
            "dpkg-db-backup.timer",
        ),
        *("fstrim.timer", "systemd-timesyncd.service", "systemd-networkd-wait-online.service"),
    )
    release = run(SETUP / "kernels", "release", OWN_SERIES).strip()
    place = pathlib.Path(run(SETUP / "kernels", "image", OWN_SERIES).strip())
    target = tree / "lib/modules" / release
    target.mkdir(parents=True, exist_ok=True)
    run("cp", "--archive", f"{place}/modules/.", target)
    headers = next((tree / "usr/src").glob("linux-headers-*-amd64"), None)
    if headers is None:
        raise RootError(f"{tree}: no kernel headers were installed")
    (target / "build").unlink(missing_ok=True)
    (target / "build").symlink_to(f"/usr/src/{headers.name}")
    run(*chroot, "depmod", "--all", release)
    forget_downloads(tree)


def disk() -> pathlib.Path:
    """A raw ext4 file system, sparse; machines see it through an overlay of their own."""
    tree = root()
    path = cache() / f"vm-disk-{digest(tree.name, DISK_SIZE)}"
    with made_once(path) as place:
        if place:
            place.mkdir()
            file = place / "disk.raw"
            run("mkfs.ext4", "-q", "-d", tree, "-E", "root_owner=0:0", file, DISK_SIZE)
    return path / "disk.raw"


def dependencies(modules: pathlib.Path) -> list[str]:
    """Files of MODULES and of what they need, in an order in which they can be loaded."""
    needed: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needed[name] = rest.split()
    by_name = {pathlib.Path(file).name.split(".ko")[0].replace("-", "_"): file for file in needed}
    order: list[str] = []

    def add(file: str) -> None:
        for other in needed[file]:
            add(other)
        if file not in order:
            order.append(file)

    for name in MODULES:
        # What is built into the kernel is in no list.
        if name in by_name:
            add(by_name[name])
    return order


def initial(series: str) -> pathlib.Path:
    """A compressed initial file system for the series' kernel, without what is injected."""
    release = run(SETUP / "kernels", "release", series).strip()
    place = pathlib.Path(run(SETUP / "kernels", "image", series).strip())
    path = cache() / f"vm-initial-{digest(release, pathlib.Path(__file__).read_text())}"
    with made_once(path) as building:
        if building:
            tree = building / "tree"
            for directory in ("bin", "proc", "sys", "dev", "root", "inject"):
                (tree / directory).mkdir(parents=True)
            modules = tree / "lib/modules" / release
            modules.mkdir(parents=True)
            run("depmod", "--basedir", linked(building, place, release), release)
            source = building / "base/lib/modules" / release
            order = dependencies(source)
            for file in order:
                (modules / file).parent.mkdir(parents=True, exist_ok=True)
                expand(source / file, modules / file)
            files = "".join(
                f"/lib/modules/{release}/{file.removesuffix('.xz')}\n" for file in order
            )
            write(tree / "modules", files)
            write(tree / "init", INIT, 0o755)
            shutil.copy("/bin/busybox", tree / "bin/busybox")
            (tree / "bin/sh").symlink_to("busybox")
            pack(tree, building / "initial.gz")
            shutil.rmtree(tree)
            shutil.rmtree(building / "base")
    return path / "initial.gz"


def linked(building: pathlib.Path, place: pathlib.Path, release: str) -> pathlib.Path:
    """A base directory for depmod, with a copy of the modules that it may write to."""
    base = building / "base"
    (base / "lib/modules").mkdir(parents=True)
    shutil.copytree(place / "modules", base / "lib/modules" / release, symlinks=True)
    return base


def expand(source: pathlib.Path, target: pathlib.Path) -> None:
    """A module, uncompressed: insmod of busybox takes no other."""
    if source.suffix == ".xz":
        with open(target.with_suffix(""), "wb") as stream:
            subprocess.run(["xz", "--decompress", "--stdout", source], check=True, stdout=stream)
    else:
        shutil.copy(source, target)


def pack(tree: pathlib.Path, target: pathlib.Path) -> None:
    """A directory as a compressed cpio archive, which the kernel unpacks."""
    names = "\0".join(sorted(str(file.relative_to(tree)) for file in tree.rglob("*"))).encode()
    done = subprocess.run(
        ["cpio", "--quiet", "--null", "--create", "--format=newc", "--owner=0:0"],
        input=names,
        cwd=tree,
        capture_output=True,
        check=True,
    )
    with gzip.open(target, "wb", compresslevel=1) as stream:
        stream.write(done.stdout)


def kernel(series: str) -> pathlib.Path:
    """The kernel to boot."""
    return pathlib.Path(run(SETUP / "kernels", "image", series).strip()) / "vmlinuz"


def require_tools() -> None:
    """RootError with what is to be installed, if something is."""
    missing = [
        name
        for name in ("qemu-system-x86_64", "cpio", "depmod", "busybox", "mkfs.ext4")
        if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    if missing:
        raise RootError(f"not installed: {', '.join(missing)}; run setup/virtual_machines")
