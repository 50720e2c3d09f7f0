# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A patch as it lies on the controller: manifest.yml, bundle.json, bundle.json.sig and patch.elf
in one folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import typing as t
from dataclasses import dataclass

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._canonical_json import canonical_json
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._manifest_yaml import Path, YamlDocument
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import dotted
from ansible_collections.wfpatch.fleet.plugins.plugin_utils.validation import (
    Violation,
    validate_manifest,
)

MANIFEST_FILES = ("manifest.yml", "manifest.yaml")
BUNDLE_FILE = "bundle.json"
SIGNATURE_FILE = "bundle.json.sig"
PATCH_FILE = "patch.elf"
MAX_PATCH = 64 << 20
MAX_SMALL = 1 << 20

_SIGNATURE_HEAD = b"-----BEGIN SSH SIGNATURE-----"


@dataclass(frozen=True)
class BundleDirectory:
    """A validated patch. ``bundle``, ``signature`` and ``patch`` are the bytes that a host
    receives.
    """

    path: str
    manifest: dict[str, t.Any]
    bundle: bytes
    signature: bytes
    patch: bytes

    @property
    def id(self) -> str:
        """The patch's id."""
        return self.manifest["id"]

    @property
    def cves(self) -> tuple[str, ...]:
        """The ids of the CVEs that it fixes."""
        return tuple(cve["id"] for cve in self.manifest["cves"])

    @property
    def digest(self) -> str:
        """SHA-256 of the signed bytes, hex."""
        return hashlib.sha256(self.bundle).hexdigest()

    def payload(self) -> dict[str, str]:
        """What the bundle module is sent."""
        return {
            "id": self.id,
            "bundle": base64.b64encode(self.bundle).decode("ascii"),
            "signature": base64.b64encode(self.signature).decode("ascii"),
            "patch": base64.b64encode(self.patch).decode("ascii"),
        }


class Differences(t.NamedTuple):
    """A place at which manifest.yml and bundle.json differ, with both values."""

    path: Path
    source: t.Any
    signed: t.Any


_ABSENT = object()


def differences(source: t.Any, signed: t.Any, path: Path = ()) -> t.Iterator[Differences]:
    """Each place at which two JSON values differ."""
    if isinstance(source, dict) and isinstance(signed, dict):
        for key in sorted(set(source) | set(signed)):
            yield from differences(
                source.get(key, _ABSENT), signed.get(key, _ABSENT), path + (key,)
            )
    elif isinstance(source, list) and isinstance(signed, list) and len(source) == len(signed):
        for index, (left, right) in enumerate(zip(source, signed, strict=False)):
            yield from differences(left, right, path + (index,))
    elif type(source) is not type(signed) or source != signed:
        yield Differences(path, source, signed)


def _shown(value: t.Any) -> str:
    return "nothing" if value is _ABSENT else json.dumps(value, ensure_ascii=True)[:120]


class _Files:
    """Reads a folder's files; what cannot be read becomes a violation."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.violations: list[Violation] = []

    def place(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def wrong(self, name: str, message: str, line: int = 0, path: str = "") -> None:
        self.violations.append(Violation(self.place(name), line, path, message))

    def read(self, name: str, limit: int, missing: str) -> bytes | None:
        try:
            with open(self.place(name), "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            self.wrong(name, missing)
        except OSError as exc:
            self.wrong(name, f"cannot be read: {exc.strerror}")
        else:
            if len(data) <= limit:
                return data
            self.wrong(name, f"is larger than {limit} bytes")
        return None


def _check_bundle(files: _Files, manifest_file: str, document: YamlDocument, bundle: bytes) -> None:
    """Manifest and bundle.json say the same, and bundle.json is canonical."""
    wanted = canonical_json(document.data)
    if bundle == wanted:
        return
    try:
        signed = json.loads(bundle)
    except (ValueError, RecursionError):
        files.wrong(BUNDLE_FILE, "is not JSON; build the bundle again")
        return
    found = False
    for difference in differences(document.data, signed):
        found = True
        files.wrong(
            manifest_file,
            f"says {_shown(difference.source)}, but {BUNDLE_FILE} says "
            f"{_shown(difference.signed)}; build and sign the bundle again",
            document.line(difference.path),
            dotted(difference.path),
        )
    if not found:
        files.wrong(BUNDLE_FILE, "is not in canonical form; build and sign the bundle again")


def _check_patch(files: _Files, manifest_file: str, document: YamlDocument, patch: bytes) -> None:
    artifact = document.data["artifact"]
    found = hashlib.sha256(patch).hexdigest()
    if len(patch) != artifact["size"]:
        files.wrong(
            manifest_file,
            f"says {artifact['size']} bytes, but {PATCH_FILE} has {len(patch)}",
            document.line(("artifact", "size")),
            "artifact.size",
        )
    if found != artifact["sha256"]:
        files.wrong(
            manifest_file,
            f"says {artifact['sha256']}, but the digest of {PATCH_FILE} is {found}",
            document.line(("artifact", "sha256")),
            "artifact.sha256",
        )


def read_bundle_directory(directory: str) -> tuple[BundleDirectory | None, list[Violation]]:
    """Read and validate a patch's folder. Returns the patch, or None and everything that is
    wrong with it.
    """
    files = _Files(directory)
    manifest_file = next(
        (name for name in MANIFEST_FILES if os.path.exists(files.place(name))), MANIFEST_FILES[0]
    )
    source = files.read(
        manifest_file,
        MAX_SMALL,
        "does not exist; a patch's folder holds its manifest under this name",
    )
    bundle = files.read(BUNDLE_FILE, MAX_SMALL, "does not exist; build the bundle first")
    signature = files.read(
        SIGNATURE_FILE,
        MAX_SMALL,
        f"does not exist; sign {BUNDLE_FILE} with ssh-keygen -Y sign -n wfpatch",
    )
    patch = files.read(PATCH_FILE, MAX_PATCH, "does not exist; build the bundle first")
    document = None
    if source is not None:
        try:
            text = source.decode("utf-8")
        except UnicodeDecodeError as exc:
            files.wrong(manifest_file, "is not UTF-8", source.count(b"\n", 0, exc.start) + 1)
        else:
            document, violations = validate_manifest(text, files.place(manifest_file))
            files.violations.extend(violations)
            if not violations:
                if bundle is not None:
                    _check_bundle(files, manifest_file, document, bundle)
                if patch is not None:
                    _check_patch(files, manifest_file, document, patch)
    if signature is not None and not signature.startswith(_SIGNATURE_HEAD):
        files.wrong(SIGNATURE_FILE, "is not a signature made by ssh-keygen -Y sign")
    if files.violations or document is None or bundle is None or signature is None or patch is None:
        return None, files.violations
    return BundleDirectory(directory, document.data, bundle, signature, patch), []
