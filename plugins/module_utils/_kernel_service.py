# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The kernel service on a host: what is there, what it takes to reach a state, and the steps.

Check mode plans from the same reading of the host, and takes none of the steps.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile

from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import ApplierFailure
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_dkms import Dkms
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_kernel import (
    DEVICE,
    NAME,
    Kernel,
)
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_loading import Loading
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_signing import (
    DKMS_PAIR,
    SETTINGS,
    Signing,
)
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_source import (
    digest,
    dkms_settings,
    read_tree,
)

#: As dkms.conf says it to DKMS.
OLDEST_KERNEL = (5, 10)
#: Where the host's root lies; the unit tests have one of their own.
ROOT = "/"
SOURCES = "/usr/src"
BOOT = "/etc/modules-load.d/wfpatch.conf"
BOOT_TEXT = "# Installed by wfpatch.fleet.kernel_service.\nwfpatch\n"
RULE = "/etc/udev/rules.d/60-wfpatch.rules"
COMPILER = re.compile(
    r'^CONFIG_CC_VERSION_TEXT="(?:\w+ )?((?:[\w.-]*-)?(?:gcc|clang)(?:-[\w.]+)?)', re.M
)


def read(path):
    """The file's text; None when there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


class KernelService:
    """The kernel service on this host. ``actions``: the steps that were (or would be) taken."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.kernel = Kernel(ROOT)
        self.release = self.params["kernel"] or self.kernel.release
        self.version = self.params["version"]
        self.signing = Signing(module, ROOT)
        self.dkms = Dkms(module, ROOT, self.release)
        self.loading = Loading(module, self.kernel)
        self.actions = []

    # What is there.

    def path(self, path):
        """Where a path of the host lies."""
        return os.path.join(ROOT, path.lstrip("/"))

    def _source(self, version):
        return f"{SOURCES}/{NAME}-{version}"

    def _sources(self):
        """Versions whose source is in its place."""
        folder = self.path(SOURCES)
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        found = []
        for name in names:
            conf = read(os.path.join(folder, name, "dkms.conf"))
            if (
                name.startswith(NAME + "-")
                and dkms_settings(conf or "").get("PACKAGE_NAME") == NAME
            ):
                found.append(name[len(NAME) + 1 :])
        return found

    def _installed(self):
        """What modinfo says of the module that is installed for the kernel; empty without one."""
        program = self.module.get_bin_path("modinfo")
        if program is None:
            return {}
        command = [program, "-k", self.release, NAME]
        code, stdout = self.module.run_command(command, environ_update={"LC_ALL": "C"})[:2]
        if code != 0:
            return {}
        fields = (line.partition(":")[::2] for line in stdout.splitlines() if line[:1].strip())
        return {name: value.strip() for name, value in fields}

    def compiler(self):
        """The compiler that the headers want, by its name."""
        found = COMPILER.search(read(self._headers(".config")) or "")
        return found[1] if found else "gcc"

    def _headers(self, name):
        return self.path(f"/lib/modules/{self.release}/build/{name}")

    def _missing(self):
        """What the host lacks for a build: {reason code: words for people}."""
        found = {}
        if not os.path.exists(self._headers("Makefile")):
            found["kernel_headers_missing"] = (
                f"no headers in /lib/modules/{self.release}/build (Debian: package "
                f"linux-headers-{self.release}; where the archive has them no more, upgrade the "
                "kernel and reboot)"
            )
        compiler = self.compiler()
        tools = [(compiler, "clang" if "clang" in compiler else "gcc"), ("make",)]
        if self.signing.key:
            tools.append(("openssl",))
        lacking = [names[0] for names in tools if not any(map(self.module.get_bin_path, names))]
        if lacking:
            found["compiler_missing"] = "not installed: {}".format(", ".join(lacking))
        if self.dkms.program is None:
            found["dkms_missing"] = "DKMS is not installed (package dkms)"
        return found

    def facts(self):
        """What there is now, as a part of the module's result."""
        installed = self._installed()
        loaded = self.kernel.loaded()
        return {
            "version": installed.get("version"),
            "uapi_version": installed.get("uapi_version"),
            "kernel": self.release,
            "loaded": loaded is not None,
            "loaded_version": loaded.version if loaded else None,
            "device": DEVICE if loaded and self.kernel.device() is None else None,
            "users": loaded.users if loaded else 0,
            "signed": bool(installed.get("sig_key")),
            "signer": installed.get("signer"),
            "sign_key_id": installed.get("sig_key"),
            "enrolment": self.signing.enrolment(),
            "secure_boot": self.kernel.secure_boot(),
            "lockdown": self.kernel.lockdown(),
            "tainted": self.kernel.tainted(),
            "taint": loaded.taint if loaded else None,
            "missing": sorted(self._missing()),
        }

    def _lines(self, facts):
        present = [
            "source: {}".format(", ".join(self._sources()) or "none"),
            "installed for {}: {}".format(facts["kernel"], facts["version"] or "none"),
            "signed by: {}".format(facts["signer"] or "nobody"),
            "loaded: {}".format(facts["loaded_version"] if facts["loaded"] else "no"),
        ]
        for words, path in (
            ("loaded at boot", BOOT),
            ("device for root only", RULE),
            ("named signing key", SETTINGS),
        ):
            present.append(f"{words}: {'yes' if os.path.exists(self.path(path)) else 'no'}")
        return "".join(f"{line}\n" for line in present)

    def _planned_lines(self, state):
        """As _lines, after all of the actions."""
        gone = state == "absent"
        signed = {"given": "the given key", "generate": "DKMS's own key", "none": "as DKMS does"}
        yes = "no" if gone else "yes"
        loaded = self.kernel.loaded()
        if state == "loaded":
            running = self.version
        else:
            running = loaded.version if loaded and not gone else "no"
        return (
            f"source: {'none' if gone else self.version}\n"
            f"installed for {self.release}: {'none' if gone else self.version}\n"
            f"signed by: {'nobody' if gone else signed[self.params['sign']]}\n"
            f"loaded: {running}\n"
            f"loaded at boot: {yes}\ndevice for root only: {yes}\n"
            f"named signing key: {'yes' if self.signing.key and not gone else 'no'}\n"
        )

    # Steps.

    def _step(self, words, call, *arguments):
        self.actions.append(words)
        if not self.module.check_mode:
            call(*arguments)

    def _write(self, path, text, mode=0o644):
        os.makedirs(os.path.dirname(self.path(path)), 0o755, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=self.module.tmpdir)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(scratch, mode)
        self.module.atomic_move(scratch, self.path(path), keep_dest_attrs=False)
        os.chmod(self.path(path), mode)

    def _place_source(self):
        """Unpack what the action half has sent, beside its place, then put it there."""
        final = self.path(self._source(self.version))
        os.makedirs(os.path.dirname(final), 0o755, exist_ok=True)
        fresh = tempfile.mkdtemp(prefix=f".{NAME}-", dir=os.path.dirname(final))
        try:
            with tarfile.open(self.params["staged"]) as archive:
                for member in archive.getmembers():
                    self._unpack(archive, member, fresh)
            os.chmod(fresh, 0o755)
            if digest(read_tree(fresh)) != self.params["digest"]:
                raise ApplierFailure(
                    "task_failed", "the source that arrived is not the one that was sent"
                )
            shutil.rmtree(final, ignore_errors=True)
            os.rename(fresh, final)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    @staticmethod
    def _unpack(archive, member, folder):
        if not member.isreg() or member.name.startswith("/") or ".." in member.name.split("/"):
            raise ApplierFailure("task_failed", f"{member.name} has no place in a source")
        path = os.path.join(folder, member.name)
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with open(path, "wb") as file:
            shutil.copyfileobj(archive.extractfile(member) or io.BytesIO(), file)
        os.chmod(path, 0o755 if member.mode & 0o100 else 0o644)

    def _write_rule(self):
        text = read(self.path(self._source(self.version) + "/wfpatch.rules"))
        self._write(RULE, text)
        self._tell_udev()

    def _tell_udev(self):
        program = self.module.get_bin_path("udevadm")
        if program is not None:
            # Without a running udevd there is nobody to tell.
            self.module.run_command([program, "control", "--reload"])
            self.module.run_command([program, "trigger", "--sysname-match", NAME])

    def _remove(self, path):
        if os.path.isdir(self.path(path)):
            shutil.rmtree(self.path(path))
        else:
            os.unlink(self.path(path))

    def _signature_words(self):
        """What is to be done about the signature, for people."""
        facts = self.facts()
        if not facts["signed"]:
            return "it is not signed: set sign to generate or given"
        certificate = self.signing.certificate or DKMS_PAIR[1]
        return (
            "it is signed by {signer}, key {sign_key_id} (enrolment: {enrolment}). To have that "
            "key trusted, run `mokutil --import {certificate}` as root, reboot, and confirm at the "
            "machine's console (Enroll MOK). Nothing of that is done for you".format(
                certificate=certificate, **facts
            )
        )

    # States.

    def _check_kernel(self):
        """Raises ApplierFailure where no build could ever run, or would be of no use."""
        numbers = re.match(r"(\d+)\.(\d+)", self.release)
        known = numbers is not None and (int(numbers[1]), int(numbers[2])) >= OLDEST_KERNEL
        if self.kernel.machine != "x86_64" or not known:
            raise ApplierFailure(
                "kernel_unsupported",
                f"the kernel service is for Linux 5.10 and newer on x86_64; this is {self.release} "
                f"on {self.kernel.machine}",
            )
        if self.params["state"] != "loaded" or self.kernel.loaded() is not None:
            return
        if not self.kernel.takes_modules():
            raise ApplierFailure(
                "kernel_unsupported", f"the kernel {self.release} was built without modules"
            )
        obstacle = self.kernel.obstacle()
        if obstacle is not None:
            raise ApplierFailure("kernel_module_not_permitted", obstacle)

    def _check_tools(self):
        missing = self._missing()
        if missing and not (self.module.check_mode and self.params["prerequisites"] == "assume"):
            raise ApplierFailure(next(iter(missing)), "; ".join(missing.values()))

    def _placed(self):
        """Whether the source is in its place, as it was sent."""
        files = read_tree(self.path(self._source(self.version)))
        return digest(files) == self.params["digest"]

    def _built(self, registered):
        """Whether the module that is installed is what the options want."""
        if registered.get(self.version, {}).get(self.release) != "installed":
            return False
        found = (self._installed().get("sig_key") or "").replace(":", "").upper()
        return self.signing.key is None or self.signing.serial() == found

    def _check_built(self):
        """Raises ApplierFailure unless the module is what was asked for: DKMS takes no notice of a
        hook that fails.
        """
        if not self._built(self.dkms.registered()):
            log = self.dkms.log(self.version)
            raise ApplierFailure(
                "kernel_module_build_failed",
                "the kernel service was built, but is not installed as asked for, signed by {}: "
                "{}".format(self.signing.key or "DKMS", "\n".join(log)),
                log=log,
            )

    def _build(self, registered):
        """Source in its place, module built and installed; returns whether it is another now."""
        version = self.version
        if self.signing.absent():
            self._step(
                f"make the key {self.signing.key} with its certificate", self.signing.generate
            )
        settings = self.signing.settings()
        if read(self.path(SETTINGS)) != settings:
            if settings is None:
                self._step(f"remove {SETTINGS}", self._remove, SETTINGS)
            else:
                self._step(f"write {SETTINGS}", self._write, SETTINGS, settings)
        if not self._placed():
            if version in registered:
                self._step(f"unregister {NAME} {version}", self.dkms.unregister, version)
                del registered[version]
            self._step(f"place the source in {self._source(version)}", self._place_source)
        if version not in registered:
            self._step(f"register {NAME} {version} with DKMS", self.dkms.register, version)
            registered[version] = {}
        rebuilt = not self._built(registered)
        if rebuilt:
            if self.release in registered[version]:
                self._step(f"remove what was built for {self.release}", self.dkms.unbuild, version)
            self._step(f"build it for {self.release}", self.dkms.build, version)
        for other in sorted(set(registered) - {version}):
            self._step(f"unregister {NAME} {other}", self.dkms.unregister, other)
        for other in self._sources():
            if other != version:
                source = self._source(other)
                self._step(f"remove {source}", self._remove, source)
        if rebuilt:
            self._step("install it", self.dkms.install, version)
            if not self.module.check_mode:
                self._check_built()
        rule = read(self.path(RULE))
        if rule is None or rule != read(self.path(self._source(version) + "/wfpatch.rules")):
            self._step(f"write {RULE}", self._write_rule)
        if read(self.path(BOOT)) != BOOT_TEXT:
            self._step(f"write {BOOT}", self._write, BOOT, BOOT_TEXT)
        return rebuilt

    def _load(self, rebuilt):
        loaded = self.kernel.loaded()
        installed = self._installed()
        fits = (
            loaded is not None
            and (loaded.version, loaded.source_version)
            == (self.version, installed.get("srcversion"))
            # What check mode would have built is not known.
            and not (rebuilt and self.module.check_mode)
        )
        if loaded is not None and not fits:
            self.loading.check_idle(loaded, "replaced")
            self._step(f"unload {loaded.version}", self.loading.unload)
        if not fits:
            self._step("load it", self.loading.load, self._signature_words)
        if not (self.module.check_mode and self.actions):
            self.loading.verify(self.version)

    def _absent(self):
        loaded = self.kernel.loaded()
        registered = self.dkms.registered()
        if loaded is not None and self.kernel.obstacle() and not registered and not self._sources():
            # A container sees what its host has loaded.
            loaded = None
        if loaded is not None:
            self.loading.check_idle(loaded, "removed")
            self._step(f"unload {loaded.version}", self.loading.unload)
        if self.dkms.program is None and os.path.isdir(self.dkms.tree):
            raise ApplierFailure(
                "dkms_missing",
                f"{self.dkms.tree} is there, but DKMS is not: install it, to remove the module",
            )
        for version in sorted(registered):
            self._step(f"unregister {NAME} {version}", self.dkms.unregister, version)
        for path in [self._source(version) for version in self._sources()] + [
            SETTINGS,
            BOOT,
            RULE,
        ]:
            if os.path.lexists(self.path(path)):
                self._step(f"remove {path}", self._remove, path)

    def reach(self, state):
        """Bring the host to the state; returns the module's result, raises ApplierFailure."""
        if os.geteuid() != 0:
            raise ApplierFailure(
                "no_permission", "the kernel service is installed by root: use become"
            )
        before = self._lines(self.facts())
        if state == "absent":
            self._absent()
        else:
            if self.params["digest"] is None or self.version is None:
                raise ApplierFailure(
                    "usage",
                    "the action half of wfpatch.fleet.kernel_service did not run: use the full "
                    "name of the module",
                )
            if self.params["kernel"] and state == "loaded":
                raise ApplierFailure(
                    "usage", "only the running kernel can load it: kernel is for state present"
                )
            self.signing.check_given()
            self._check_kernel()
            registered = self.dkms.registered()
            placed = self._placed()
            if not placed or not self._built(registered):
                self._check_tools()
            if not placed and self.params["staged"] is None and not self.module.check_mode:
                # The action half sends the source and calls again.
                return dict(self.result(), _wanted=True)
            rebuilt = self._build(registered)
            if state == "loaded":
                self._load(rebuilt)
        result = self.result()
        if self.module._diff:
            after = before
            if self.actions:
                planned = self.module.check_mode
                after = self._planned_lines(state) if planned else self._lines(result)
            result["diff"] = {"before": before, "after": after}
        return result

    def result(self):
        """The module's result, as things are now."""
        return dict(self.facts(), changed=bool(self.actions), actions=self.actions)
