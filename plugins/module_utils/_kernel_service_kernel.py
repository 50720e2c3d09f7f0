# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the running kernel says of itself, and of the kernel service in it."""

from __future__ import annotations

import fcntl
import os
import stat
import struct

NAME = "wfpatch"
DEVICE = "/dev/wfpatch"
#: Linux, include/uapi/linux/capability.h.
CAP_SYS_MODULE = 16
#: Letters of kernel.tainted, bit 0 first: Linux, Documentation/admin-guide/tainted-kernels.rst.
TAINTS = "PFSRMBUDAWCIOELKXTNJ"
#: EFI_GLOBAL_VARIABLE of the UEFI specification, section 3.3.
SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
#: WFPATCH_IOC_INFO and struct wfpatch_info: size, uapi_version, features, version.
INFO = struct.Struct("=IIQ32s")
IOC_INFO = 3 << 30 | INFO.size << 16 | 0xB7 << 8


class Loaded:
    """The kernel service as it is loaded. ``users``: how many hold it."""

    def __init__(self, version, source_version, users, taint):
        self.version = version
        self.source_version = source_version
        self.users = users
        self.taint = taint


class Kernel:
    """The running kernel, by the files in which it describes itself, below ``root``."""

    def __init__(self, root="/"):
        self.root = root
        self.release = os.uname().release
        self.machine = os.uname().machine

    def path(self, path):
        """Where a path of the host lies."""
        return os.path.join(self.root, path.lstrip("/"))

    def _read(self, path):
        try:
            with open(self.path(path), "rb") as file:
                return file.read()
        except OSError:
            return None

    def _line(self, path):
        data = self._read(path)
        return None if data is None else data.decode("ascii", "replace").strip()

    def takes_modules(self):
        """Whether it was built with support of modules."""
        return os.path.exists(self.path("/proc/modules"))

    def secure_boot(self):
        """``enabled``, ``disabled``, or ``unknown`` where that cannot be seen."""
        if not os.path.isdir(self.path("/sys/firmware/efi")):
            # A container may see nothing of the firmware at all.
            seen = os.path.isdir(self.path("/sys/firmware/acpi"))
            return "disabled" if seen else "unknown"
        value = self._read("/sys/firmware/efi/efivars/" + SECURE_BOOT)
        # Four bytes of attributes, then the value: Linux, Documentation/filesystems/efivarfs.rst.
        if value is None or len(value) != 5:
            return "unknown"
        return "enabled" if value[4] == 1 else "disabled"

    def lockdown(self):
        """``none``, ``integrity``, ``confidentiality``, or ``unknown``: kernel_lockdown(7)."""
        words = (self._line("/sys/kernel/security/lockdown") or "").split()
        return next((word[1:-1] for word in words if word.startswith("[")), "unknown")

    def wants_signatures(self):
        """Whether it refuses modules that nobody signed whom it trusts."""
        lockdown = self.lockdown()
        return (
            self._line("/sys/module/module/parameters/sig_enforce") == "Y"
            or lockdown in ("integrity", "confidentiality")
            or (lockdown == "unknown" and self.secure_boot() == "enabled")
        )

    def obstacle(self):
        """Why this process may load no module at all, or None."""
        if self._line("/proc/sys/kernel/modules_disabled") == "1":
            return "loading modules was disabled until the next boot (kernel.modules_disabled)"
        status = self._line("/proc/self/status") or ""
        effective = next(
            (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0"
        )
        if not int(effective, 16) >> CAP_SYS_MODULE & 1:
            return "the capability CAP_SYS_MODULE is missing, as in a container"
        uids = (self._line("/proc/self/uid_map") or "0 0 4294967295").split()
        if uids != ["0", "0", "4294967295"]:
            return "this is a user namespace of its own, as in a container"
        return None

    def tainted(self):
        """The kernel's taint flags as letters."""
        value = int(self._line("/proc/sys/kernel/tainted") or "0")
        return "".join(letter for bit, letter in enumerate(TAINTS) if value >> bit & 1)

    def loaded(self):
        """The kernel service that is loaded, or None."""
        place = f"/sys/module/{NAME}/"
        if not os.path.isdir(self.path(place)) or self._line(place + "initstate") is None:
            return None
        return Loaded(
            self._line(place + "version"),
            self._line(place + "srcversion"),
            int(self._line(place + "refcnt") or "0"),
            self._line(place + "taint") or "",
        )

    def device(self):
        """What is wrong with the device, or None when it answers."""
        path = self.path(DEVICE)
        try:
            status = os.stat(path)
        except OSError as exc:
            return f"{DEVICE}: {exc.strerror}"
        numbers = self._line(f"/sys/class/misc/{NAME}/dev")
        found = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        if not stat.S_ISCHR(status.st_mode) or numbers != found:
            return f"{DEVICE} is not the kernel service's device ({numbers}), but {found}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                question = INFO.pack(INFO.size, 0, 0, b"")
                answer = fcntl.ioctl(descriptor, IOC_INFO, question)
            finally:
                os.close(descriptor)
        except OSError as exc:
            return f"{DEVICE} does not answer: {exc.strerror}"
        version = INFO.unpack(answer)[3].rstrip(b"\0").decode("ascii", "replace")
        loaded = self.loaded()
        if loaded is None or loaded.version != version:
            return f"{DEVICE} says that it is of the version {version}"
        return None

    def exposed(self):
        """Who but root may open the device, as its mode; None when nobody may."""
        try:
            status = os.stat(self.path(DEVICE))
        except OSError:
            return None
        if status.st_mode & 0o077 or status.st_uid or status.st_gid:
            return f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
        return None

    def holders(self):
        """The processes that have the device or a session open, as ``comm[pid]``."""
        found = []
        for pid in sorted(filter(str.isdigit, os.listdir(self.path("/proc"))), key=int):
            try:
                folder = self.path(f"/proc/{pid}/fd")
                targets = [os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)]
            except OSError:
                continue
            if any(
                target == DEVICE or "anon_inode:" in target and NAME in target for target in targets
            ):
                # A process chooses its own name.
                comm = "".join(filter(str.isprintable, self._line(f"/proc/{pid}/comm") or "?"))
                found.append(f"{comm}[{pid}]")
        return found
