# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Signatures of bundles on the controller, by ``ssh-keygen -Y``: with keys in files, in an agent,
or in hardware.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
import subprocess
import tempfile

from ansible.errors import AnsibleError

NAMESPACE = "wfpatch"
#: Somebody may have to touch a key.
TIMEOUT = 120


class SigningFailed(AnsibleError):
    """``reason`` is a reason code."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


def _ssh_keygen(*words: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", *words],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    except FileNotFoundError as exc:
        raise SigningFailed(
            "signing_failed", "ssh-keygen is not installed on the controller"
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise SigningFailed(
            "signing_failed",
            f"ssh-keygen gave no answer in {TIMEOUT} s: a passphrase belongs into ssh-agent, and a "
            "key in hardware may want to be touched",
        ) from exc


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-500:]


def public_blob(key: str) -> bytes:
    """The public half of a key: of ``key`` itself, of ``key``.pub, or asked of ssh-keygen."""
    for path in (key, f"{key}.pub"):
        try:
            with open(path, encoding="utf-8") as file:
                fields = file.read(1 << 16).split()
        except (OSError, UnicodeDecodeError):
            continue
        if path.endswith(".pub") and len(fields) >= 2:
            return _decoded(fields[1], path)
    done = _ssh_keygen("-y", "-P", "", "-f", key)
    fields = done.stdout.decode("ascii", "replace").split()
    if done.returncode != 0 or len(fields) < 2:
        raise SigningFailed(
            "signing_failed",
            f"{key} is no key that can be used, and there is no {key}.pub: {_said(done)}",
        )
    return _decoded(fields[1], key)


def _decoded(text: str, path: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise SigningFailed("signing_failed", f"{path} is not a public key") from exc


def fingerprint(blob: bytes) -> str:
    """As OpenSSH shows keys: SHA256:..."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii")
    return f"SHA256:{digest.rstrip('=')}"


def signing_key(signature: bytes) -> bytes | None:
    """The public key in an armoured signature (PROTOCOL.sshsig of OpenSSH); None in all else."""
    lines = signature.split(b"\n")
    try:
        begin = lines.index(b"-----BEGIN SSH SIGNATURE-----")
        end = lines.index(b"-----END SSH SIGNATURE-----")
        blob = base64.b64decode(b"".join(lines[begin + 1 : end]), validate=True)
        magic, version, length = struct.unpack_from(">6sII", blob)
    except (ValueError, binascii.Error, struct.error):
        return None
    if magic != b"SSHSIG" or version != 1 or len(blob) < 14 + length:
        return None
    return blob[14 : 14 + length]


def is_signed(data: str, signature: str, blob: bytes) -> bool:
    """Whether the file ``signature`` is one of the file ``data`` by that key."""
    try:
        with open(signature, "rb") as file:
            found = signing_key(file.read(1 << 16))
        with open(data, "rb") as file:
            content = file.read()
    except OSError:
        return False
    if found != blob:
        return False
    done = _ssh_keygen("-Y", "check-novalidate", "-n", NAMESPACE, "-s", signature, data=content)
    return done.returncode == 0


def sign(data: str, key: str) -> bytes:
    """A signature of the file ``data``; raises SigningFailed."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = os.path.join(scratch, "bundle.json")
        with open(data, "rb") as source, open(copy, "wb") as target:
            target.write(source.read())
        done = _ssh_keygen("-Y", "sign", "-n", NAMESPACE, "-f", key, copy)
        try:
            with open(f"{copy}.sig", "rb") as file:
                return file.read()
        except OSError as exc:
            raise SigningFailed(
                "signing_failed", f"{key} signed nothing: {_said(done) or 'no reason given'}"
            ) from exc


def check_allowed(content: bytes, signature: bytes, signers: str, revoked: str) -> str:
    """What a host would say to it: the principal; raises SigningFailed signer_unknown,
    signer_revoked.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "bundle.json.sig")
        with open(path, "wb") as file:
            file.write(signature)
        found = _ssh_keygen("-Y", "find-principals", "-s", path, "-f", signers)
        principal = found.stdout.decode("utf-8", "replace").partition("\n")[0].strip()
        if found.returncode != 0 or not principal:
            raise SigningFailed(
                "signer_unknown", f"the key may sign nothing by {signers}: {_said(found)}"
            )
        words = ["-Y", "verify", "-n", NAMESPACE, "-f", signers, "-I", principal, "-s", path]
        done = _ssh_keygen(*words, *(["-r", revoked] if revoked else []), data=content)
        if done.returncode != 0:
            raise SigningFailed(
                "signer_revoked" if revoked else "signer_unknown",
                f"no host would believe the signature by {signers}"
                + (f" and {revoked}" if revoked else "")
                + f": {_said(done)}",
            )
        return principal
