# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Load the kernel service into the running kernel, or unload it, and say why that does not go."""

from __future__ import annotations

from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import ApplierFailure
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_kernel import (
    DEVICE,
    NAME,
)

#: What modprobe says of an errno, in the C locale, and what it means for this module.
REFUSALS = (
    ("Key was rejected", "module_signature_required"),
    ("Required key not available", "module_signature_required"),
    ("Operation not permitted", "kernel_module_not_permitted"),
    ("Exec format error", "kernel_module_build_failed"),
    ("Invalid module format", "kernel_module_build_failed"),
    ("Unknown symbol", "kernel_unsupported"),
    ("No such device", "kernel_unsupported"),
)


class Loading:
    """Loads and unloads on this host. ``kernel``: the Kernel."""

    def __init__(self, module, kernel):
        self.module = module
        self.kernel = kernel

    def _run(self, name, *words):
        program = self.module.get_bin_path(name)
        if program is None:
            raise ApplierFailure(
                "kernel_module_not_permitted", f"{name} is not installed (package kmod)"
            )
        code, stdout, stderr = self.module.run_command(
            [program, *words], environ_update={"LC_ALL": "C"}
        )
        return None if code == 0 else (stderr or stdout).strip()[-2000:] or f"exit code {code}"

    def load(self, signature):
        """Load what is installed. ``signature()`` says what the module's signature is, for the
        message where the kernel wants another.
        """
        said = self._run("modprobe", NAME)
        if said is None:
            return
        reason = next((reason for words, reason in REFUSALS if words in said), None)
        if reason == "kernel_module_not_permitted" and self.kernel.wants_signatures():
            # Lockdown refuses an unsigned module by this errno: kernel/module/signing.c.
            reason = "module_signature_required"
        if reason == "module_signature_required":
            raise ApplierFailure(
                "module_signature_required",
                f"the kernel takes {NAME}.ko only with a signature that it trusts (Secure Boot "
                f"{self.kernel.secure_boot()}, lockdown {self.kernel.lockdown()}): {said}; "
                f"{signature()}",
            )
        raise ApplierFailure(
            reason or "backend_unavailable", f"the kernel does not take {NAME}.ko: {said}"
        )

    def unload(self):
        """Unload the module."""
        said = self._run("rmmod", NAME)
        if said is None:
            return
        if "in use" in said or "temporarily unavailable" in said:
            raise ApplierFailure("kernel_service_busy", f"the kernel service is in use: {said}")
        raise ApplierFailure(
            "kernel_module_not_permitted", f"the kernel service cannot be unloaded: {said}"
        )

    def check_idle(self, loaded, purpose):
        """Raises ApplierFailure while somebody uses the module."""
        if loaded.users:
            holders = ", ".join(self.kernel.holders()) or "no process that can be seen"
            raise ApplierFailure(
                "kernel_service_busy",
                f"the kernel service {loaded.version} is in use ({loaded.users}, by {holders}) and "
                f"cannot be {purpose}; try again when no patch is being applied",
            )

    def verify(self, version):
        """Raises ApplierFailure unless this version is loaded and its device answers."""
        loaded = self.kernel.loaded()
        problem = self.kernel.device()
        if loaded is None or loaded.version != version:
            found = "none" if loaded is None else loaded.version
            problem = f"{NAME} {version} was expected to be loaded, found is {found}"
        if problem is not None:
            raise ApplierFailure(
                "backend_unavailable", f"the kernel service is not as it should be: {problem}"
            )
        exposed = self.kernel.exposed()
        if exposed is not None:
            self.module.warn(
                f"{DEVICE} is not for root alone: {exposed}; a udev rule of this host may say so"
            )
