# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures: ``ssh-keygen -Y`` over exactly the bytes of bundle.json, namespace ``wfpatch``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .errors import Refused

NAMESPACE = "wfpatch"
TIMEOUT = 20.0
#: The applier runs as root with whatever environment it was called in; ssh-keygen gets a plain one.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def _ssh_keygen(
    arguments: list[str], stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=ENVIRONMENT,
            timeout=TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise Refused(
            "signature_invalid", "ssh-keygen is not installed, so no signature can be verified"
        ) from None
    except subprocess.TimeoutExpired:
        raise Refused("signature_invalid", f"ssh-keygen gave no answer in {TIMEOUT:g} s") from None


def verify(data: bytes, signature: Path, allowed_signers: Path) -> str:
    """Verify ``signature`` over ``data``; returns the signer's principal.

    Raises Refused with signature_missing, signer_unknown or signature_invalid.
    """
    if not signature.is_file():
        raise Refused("signature_missing", f"{signature} does not exist: the bundle is unsigned")
    if not allowed_signers.is_file() or not os.access(allowed_signers, os.R_OK):
        raise Refused(
            "signer_unknown",
            f"{allowed_signers} does not exist: no signer is allowed on this host",
        )
    found = _ssh_keygen(["-Y", "find-principals", "-s", str(signature), "-f", str(allowed_signers)])
    principals = found.stdout.decode("utf-8", "replace").split("\n")
    principal = principals[0].strip() if principals else ""
    if found.returncode != 0 or not principal:
        detail = found.stderr.decode("utf-8", "replace").strip()
        if "No principal matched" in detail or not detail:
            raise Refused(
                "signer_unknown",
                f"{signature} was made by a key that {allowed_signers} does not list",
            )
        raise Refused("signature_invalid", f"{signature}: {detail[:300]}")
    checked = _ssh_keygen(
        ["-Y", "verify", "-n", NAMESPACE, "-f", str(allowed_signers), "-I", principal]
        + ["-s", str(signature)],
        stdin=data,
    )
    if checked.returncode != 0:
        detail = (checked.stderr or checked.stdout).decode("utf-8", "replace").strip()
        raise Refused(
            "signature_invalid",
            f"{signature} does not sign these bytes as {NAMESPACE!r}: {detail[:300]}",
        )
    return principal
