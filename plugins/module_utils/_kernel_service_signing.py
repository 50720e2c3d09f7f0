# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""By which key the kernel service is signed, and whether the firmware's owner has enrolled it."""

from __future__ import annotations

import os
import re

from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import ApplierFailure

#: DKMS's own pair (dkms(8), mok_signing_key), and that of Ubuntu's packages.
DKMS_PAIR = ("/var/lib/dkms/mok.key", "/var/lib/dkms/mok.pub")
UBUNTU_PAIR = ("/var/lib/shim-signed/mok/MOK.priv", "/var/lib/shim-signed/mok/MOK.der")
FRAMEWORK = re.compile(r"""^\s*mok_(signing_key|certificate)=["']?([^"'\s]+)""", re.M)
#: What kmod/dkms_sign reads.
SETTINGS = "/etc/wfpatch/module-signing"


class Signing:
    """Key and certificate (DER) for modules; both None where that is left to DKMS."""

    def __init__(self, module, root):
        self.module = module
        self.root = root
        self.key = self.certificate = None
        if module.params["sign"] == "given":
            self.key = module.params["sign_key"]
            self.certificate = module.params["sign_certificate"]
        elif module.params["sign"] == "generate":
            self.key, self.certificate = self._dkms_pair()

    def path(self, path):
        """Where a path of the host lies."""
        return os.path.join(self.root, path.lstrip("/"))

    def _dkms_pair(self):
        folder = self.path("/etc/dkms/framework.conf.d")
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        files = [self.path("/etc/dkms/framework.conf")]
        files += [os.path.join(folder, name) for name in names if name.endswith(".conf")]
        named = {}
        for path in files:
            if os.path.isfile(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    named.update(FRAMEWORK.findall(file.read()))
        if len(named) == 2:
            return named["signing_key"], named["certificate"]
        if all(os.path.isfile(self.path(path)) for path in UBUNTU_PAIR):
            return UBUNTU_PAIR
        return DKMS_PAIR

    def absent(self):
        """Those of the two files that are not there."""
        # A key may also be one of a token: PKCS #11 URI, RFC 7512.
        return [
            path
            for path in (self.key, self.certificate)
            if path and not path.startswith("pkcs11:") and not os.path.isfile(self.path(path))
        ]

    def check_given(self):
        """Raises ApplierFailure where a key that was given is not there, or is none."""
        if self.module.params["sign"] != "given":
            return
        if self.absent():
            raise ApplierFailure(
                "usage", "there is no such file on the host: {}".format(", ".join(self.absent()))
            )
        self.serial()

    def _openssl(self, *words):
        program = self.module.get_bin_path("openssl")
        if program is None:
            raise ApplierFailure(
                "compiler_missing", "openssl is needed to sign the module: install it"
            )
        return self.module.run_command([program, *words])

    def generate(self):
        """Make a key of this host's own, as DKMS would; only root may read it."""
        key, certificate = self.path(self.key), self.path(self.certificate)
        os.makedirs(os.path.dirname(key), 0o755, exist_ok=True)
        os.close(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        code, stdout, stderr = self._openssl(
            *("req", "-new", "-x509", "-nodes", "-days", "36500", "-newkey", "rsa:2048"),
            *("-subj", "/CN=DKMS module signing key"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-addext", "extendedKeyUsage=codeSigning"),
            *("-keyout", key, "-outform", "DER", "-out", certificate),
        )
        if code != 0:
            os.unlink(key)
            raise ApplierFailure(
                "task_failed", f"openssl made no key ({code}): {(stderr or stdout).strip()[-500:]}"
            )

    def settings(self):
        """Contents of the file that names the pair; None where there is to be none."""
        return f"key {self.key}\ncertificate {self.certificate}\n" if self.key else None

    def serial(self):
        """The certificate's serial number, by which a module's signature names its key. None where
        there is no certificate.
        """
        if self.certificate is None or not os.path.isfile(self.path(self.certificate)):
            return None
        path = self.path(self.certificate)
        code, stdout, stderr = self._openssl(
            "x509", "-inform", "DER", "-noout", "-serial", "-in", path
        )
        if code != 0:
            raise ApplierFailure(
                "usage",
                f"{self.certificate} is no certificate in DER form: {stderr.strip()[-500:]}",
            )
        return stdout.strip().partition("=")[2].upper()

    def enrolment(self):
        """Whether the machine's owner trusts the certificate: ``enrolled``, ``pending`` until the
        next boot's console, ``not_enrolled``, or ``unknown``.
        """
        certificate = self.certificate or DKMS_PAIR[1]
        program = self.module.get_bin_path("mokutil")
        if program is None or not os.path.isfile(self.path(certificate)):
            return "unknown"
        said = "".join(self.module.run_command([program, "--test-key", self.path(certificate)])[1:])
        for words, answer in (
            ("already enrolled", "enrolled"),
            ("enrollment request", "pending"),
            ("not enrolled", "not_enrolled"),
        ):
            if words in said:
                return answer
        return "unknown"
