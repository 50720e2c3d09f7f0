# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle: the signed canonical manifest, its signature and the patch ELF, in one folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .errors import Refused
from .manifest import MAX_MANIFEST, Manifest, parse_manifest
from .patch_elf import PatchElf, read_patch
from .trust import verify, verify_bytes

MANIFEST_FILE = "bundle.json"
SIGNATURE_FILE = "bundle.json.sig"
MAX_ELF = 64 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose signature and digests were verified."""

    manifest: Manifest
    digest: str  # SHA-256 of the signed bytes, hex: what "this very patch" means everywhere
    signer: str
    patch: PatchElf
    distrust: Refused | None = None  # why its signer is not believed now; see load_bundle


def _read(path: Path, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Refused("bundle_altered", f"{path}: {error.strerror}") from None
    if len(data) > limit:
        raise Refused("bundle_altered", f"{path} is larger than {limit} bytes")
    return data


#: A patch whose signer is no longer believed can still be in force, and be taken out.
OF_THE_SIGNER = ("signer_unknown", "signer_expired", "signer_revoked")


def load_bundle(directory: Path, allowed_signers: Path, believed: bool = True) -> Bundle:
    """Read and verify one bundle.

    Nothing of the manifest or the ELF is interpreted before the signature over it was verified.
    Unless ``believed``, a signature by somebody who is not believed (any more) will do, to read
    what is in force and to revert it; ``distrust`` says so. Raises Refused: signature_*, signer_*,
    revocations_invalid, manifest_invalid, bundle_altered, patch_elf_*.
    """
    data = _read(directory / MANIFEST_FILE, MAX_MANIFEST)
    distrust = None
    try:
        signer = verify(data, directory / SIGNATURE_FILE, allowed_signers)
    except Refused as error:
        if believed or error.reason not in OF_THE_SIGNER:
            raise
        verify_bytes(data, directory / SIGNATURE_FILE)
        signer, distrust = "", error
    manifest = parse_manifest(data)
    if manifest.id != directory.name:
        raise Refused(
            "bundle_altered",
            f"{directory} holds the bundle of {manifest.id}: a bundle's folder has its id as name",
        )
    elf = _read(directory / manifest.artifact.file, MAX_ELF)
    found = hashlib.sha256(elf).hexdigest()
    if len(elf) != manifest.artifact.size or found != manifest.artifact.sha256:
        raise Refused(
            "bundle_altered",
            f"{directory / manifest.artifact.file} is not the patch ELF that was signed: "
            f"expected sha256 {manifest.artifact.sha256} ({manifest.artifact.size} bytes), "
            f"found {found} ({len(elf)} bytes); push the bundle again",
            expected=manifest.artifact.sha256,
            found=found,
        )
    patch = read_patch(elf)
    foreign = set(manifest.target.build_ids) - set(patch.object.build_ids)
    if foreign:
        raise Refused(
            "bundle_altered",
            f"manifest of {manifest.id} names build-ids {sorted(foreign)} that its patch ELF "
            "was not built for",
        )
    return Bundle(manifest, hashlib.sha256(data).hexdigest(), signer, patch, distrust)
