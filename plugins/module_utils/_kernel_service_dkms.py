# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The kernel service as DKMS knows it: each step is one call of dkms(8)."""

from __future__ import annotations

import os
import re
import shutil

from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import ApplierFailure
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_kernel import NAME

#: "wfpatch/1.0, 6.1.0-1-amd64, x86_64: installed" of DKMS 3; "wfpatch, 1.0, ..." of DKMS 2.
STATUS = re.compile(rf"{NAME}(?:/|, )([^,:]+)(?:, ([^,]+), [^:]+)?: (.+)")
#: What DKMS ends with when dkms.conf excludes the kernel.
EXCLUDED = 77
LOG_LINES = 20


def parse_status(text):
    """What ``dkms status`` says: {version: {kernel: state}}."""
    found = {}
    for version, kernel, state in STATUS.findall(text):
        kernels = found.setdefault(version, {})
        if kernel:
            # A module that is not what DKMS installed counts as built only.
            kernels[kernel] = "built" if "WARNING" in state else state.split()[0]
    return found


class Dkms:
    """DKMS on this host, for one kernel."""

    def __init__(self, module, root, release):
        self.module = module
        self.release = release
        self.tree = os.path.join(root, "var/lib/dkms", NAME)
        self.program = module.get_bin_path("dkms")

    def _run(self, *words):
        # It calls depmod and others by their names.
        path = "{}:/usr/sbin:/sbin".format(os.environ.get("PATH", "/usr/bin:/bin"))
        return self.module.run_command(
            [self.program, *words], environ_update={"LC_ALL": "C", "PATH": path}
        )

    def _must(self, *words):
        code, stdout, stderr = self._run(*words)
        if code != 0:
            said = (stderr + stdout).strip()[-2000:]
            raise ApplierFailure(
                "kernel_module_build_failed",
                "dkms {} ended with exit code {}: {}".format(" ".join(words), code, said),
            )

    def registered(self):
        """What DKMS knows of: {version: {kernel: state}}; empty where it is not installed."""
        if self.program is None:
            return {}
        return parse_status(self._run("status", "-m", NAME)[1])

    def log(self, version):
        """The last lines of the build's log."""
        for place in (f"{version}/build", f"{version}/{self.release}/x86_64/log"):
            try:
                with open(
                    os.path.join(self.tree, place, "make.log"), encoding="utf-8", errors="replace"
                ) as file:
                    return [line.rstrip() for line in file][-LOG_LINES:]
            except OSError:
                continue
        return []

    def register(self, version):
        """Have DKMS know the source in its place."""
        self._must("add", "-m", NAME, "-v", version)

    def unregister(self, version):
        """Have DKMS remove the module of all kernels and forget the version."""
        self._must("remove", "-m", NAME, "-v", version, "--all")

    def unbuild(self, version):
        """Remove what was built for this kernel; the version stays registered."""
        self._must("remove", "-m", NAME, "-v", version, "-k", self.release)
        if version not in self.registered():
            self.register(version)

    def build(self, version):
        """Build for this kernel.

        Raises ApplierFailure with the last lines of the log.
        """
        # What an interrupted build left behind, DKMS takes for a complete one.
        shutil.rmtree(os.path.join(self.tree, version, self.release), ignore_errors=True)
        code, stdout, stderr = self._run("build", "-m", NAME, "-v", version, "-k", self.release)
        if code == EXCLUDED:
            raise ApplierFailure(
                "kernel_unsupported", f"the kernel service does not support {self.release}"
            )
        if code != 0:
            log = self.log(version) or (stderr + stdout).strip().splitlines()[-LOG_LINES:]
            raise ApplierFailure(
                "kernel_module_build_failed",
                "the kernel service could not be built for {} (dkms exit code {}): {}".format(
                    self.release, code, "\n".join(log)
                ),
                log=log,
            )

    def install(self, version):
        """Install what was built where modprobe finds it."""
        self._must("install", "-m", NAME, "-v", version, "-k", self.release)
