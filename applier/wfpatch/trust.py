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


def revoked_keys(allowed_signers: Path) -> Path:
    """Where the keys stand that nobody believes any more: a KRL, or public keys one a line."""
    return allowed_signers.with_name("revoked_keys")


def verify(data: bytes, signature: Path, allowed_signers: Path) -> str:
    """Verify ``signature`` over ``data``; returns the signer's principal.

    Raises Refused with signature_missing, signer_unknown, signer_expired, signer_revoked,
    revocations_invalid or signature_invalid.
    """
    if not signature.is_file():
        raise Refused("signature_missing", f"{signature} does not exist: the bundle is unsigned")
    if not allowed_signers.is_file() or not os.access(allowed_signers, os.R_OK):
        raise Refused(
            "signer_unknown",
            f"{allowed_signers} does not exist: no signer is allowed on this host",
        )
    principal = _principal(signature, allowed_signers)
    words = ["-Y", "verify", "-n", NAMESPACE, "-f", str(allowed_signers), "-I", principal]
    words += ["-s", str(signature)]
    revoked = revoked_keys(allowed_signers)
    revocation = ["-r", str(revoked)] if os.path.lexists(revoked) else []
    checked = _ssh_keygen(words + revocation, stdin=data)
    if checked.returncode != 0 and revocation:
        # It does not say why: without the list there is only one reason left.
        without = _ssh_keygen(words, stdin=data)
        if without.returncode == 0:
            raise _revoked(signature, principal, revoked)
        checked = without
    if checked.returncode != 0:
        raise _invalid(signature, checked)
    return principal


def verify_bytes(data: bytes, signature: Path) -> None:
    """Verify that ``signature`` is one of these bytes, by whomever; raises signature_invalid."""
    checked = _ssh_keygen(
        ["-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(signature)], stdin=data
    )
    if checked.returncode != 0:
        raise _invalid(signature, checked)


def _principal(signature: Path, allowed_signers: Path) -> str:
    """Who made it, by the list of those who may."""
    found = _ssh_keygen(["-Y", "find-principals", "-s", str(signature), "-f", str(allowed_signers)])
    principals = found.stdout.decode("utf-8", "replace").split("\n")
    principal = principals[0].strip() if principals else ""
    if found.returncode == 0 and principal:
        return principal
    detail = found.stderr.decode("utf-8", "replace").strip()
    if any(word in detail for word in ("has expired", "not yet valid")):
        raise Refused(
            "signer_expired",
            f"{signature} was made by a key that is not valid now: {detail[:300]}; sign the "
            "bundle anew with a key that is",
        )
    if "No principal matched" in detail or not detail:
        raise Refused(
            "signer_unknown",
            f"{signature} was made by a key that {allowed_signers} does not list",
        )
    raise Refused("signature_invalid", f"{signature}: {detail[:300]}")


def _revoked(signature: Path, principal: str, revoked: Path) -> Refused:
    readable = (["-Q", "-l", "-f", str(revoked)], ["-l", "-f", str(revoked)])
    if any(_ssh_keygen(words).returncode == 0 for words in readable):
        return Refused(
            "signer_revoked",
            f"{signature} was made by a key of {principal} that {revoked} revokes; sign the "
            "bundle anew with another",
        )
    return Refused(
        "revocations_invalid",
        f"{revoked} is neither a KRL nor a list of public keys that can be read, so no signature "
        "is believed; put it right, or remove it if no key is revoked",
    )


def _invalid(signature: Path, checked: subprocess.CompletedProcess[bytes]) -> Refused:
    detail = (checked.stderr or checked.stdout).decode("utf-8", "replace").strip()
    return Refused(
        "signature_invalid",
        f"{signature} does not sign these bytes as {NAMESPACE!r}: {detail[:300]}",
    )
