# SPDX-License-Identifier: GPL-3.0-or-later
"""Stores of signed bundles for tests, made from patch ELFs.

store = SignedStore(tmp_path)
store.add("fix-1", patch_elf_bytes, requires=["fix-0"], stragglers="revert")
Host(store.store()).apply(["fix-1"], Options(pids=(pid,)))
store.run("apply", "fix-1", "--pid", pid).result["state"]      # the same by the CLI
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from wfpatch.bundle import MANIFEST_FILE, SIGNATURE_FILE
from wfpatch.store import Store
from wfpatch.strict_json import canonical
from wfpatch.trust import NAMESPACE

from proof import backends

#: The commands that take --backend.
VERBS = ("plan", "apply", "revert")

PRINCIPAL = "tests@wfpatch"


def _ssh_keygen(*arguments: object, data: bytes | None = None) -> bytes:
    return subprocess.run(
        ["ssh-keygen", *(str(argument) for argument in arguments)],
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        check=True,
    ).stdout


def make_key(path: Path) -> Path:
    """A new ed25519 key pair without passphrase at ``path`` and ``path``.pub."""
    if not path.exists():
        _ssh_keygen("-q", "-t", "ed25519", "-N", "", "-C", PRINCIPAL, "-f", path)
    return path


def signature(data: bytes, key: Path, namespace: str = NAMESPACE) -> bytes:
    """The armoured signature over ``data``."""
    return _ssh_keygen("-q", "-Y", "sign", "-n", namespace, "-f", key, data=data)


def patch_meta(patch_elf: bytes) -> dict[str, Any]:
    """The canonical JSON of a patch ELF."""
    section = ELFFile(io.BytesIO(patch_elf)).get_section_by_name(".wfpatch.meta")
    return json.loads(section.data())


def manifest(patch_id: str, patch_elf: bytes, **fields: Any) -> dict[str, Any]:
    """A manifest for the patch ELF; ``fields`` replace its top-level entries.

    ``target`` and ``timeouts`` may be given in part.
    """
    patched = patch_meta(patch_elf)["object"]
    result: dict[str, Any] = {
        "schema": 1,
        "id": patch_id,
        "summary": f"test patch {patch_id}",
        "cves": [],
        "released": "2026-01-02",
        "target": {
            "object": patched["soname"] or patched["name"],
            "build_ids": patched["build_ids"],
            "package": "test",
            "versions": ["1"],
            "architecture": "amd64",
        },
        "artifact": {
            "file": "patch.elf",
            "sha256": hashlib.sha256(patch_elf).hexdigest(),
            "size": len(patch_elf),
        },
        "policy": "auto",
        "timeouts": {"transition": 30},
        "stragglers": "leave",
        "requires": [],
        "conflicts": [],
        "supersedes": [],
        "health_check": None,
        "stack_switching": "none",
    }
    for name, value in fields.items():
        if isinstance(value, Mapping) and isinstance(result.get(name), dict):
            result[name] = {**result[name], **value}
        else:
            result[name] = value
    return result


@dataclass(frozen=True)
class Run:
    """What one call of the CLI gave; ``result`` is its JSON, None when it printed none."""

    code: int
    result: Any
    stderr: str

    def __str__(self) -> str:
        """For assertion messages: only what tells."""
        if self.result is None:
            return f"exit {self.code}: {self.stderr[-2000:]}"
        told = {name: self.result[name] for name in ("state", "reason", "message", "changed")}
        return f"exit {self.code}: {told} {self.stderr[-2000:]}"


class SignedStore:
    """A store and an allowed-signers file below ``directory``, with a key that may sign."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "store"
        self.signers = directory / "allowed_signers"
        self.key = make_key(directory / "key")
        public = self.key.with_suffix(".pub").read_text(encoding="ascii")
        self.signers.write_text(f'{PRINCIPAL} namespaces="{NAMESPACE}" {public}')

    def store(self) -> Store:
        """The applier's view of it."""
        return Store(self.path, self.signers)

    def folder(self, patch_id: str) -> Path:
        """The bundle's folder."""
        return self.path / "bundles" / patch_id

    def add(self, patch_id: str, patch_elf: bytes, **fields: Any) -> str:
        """Put a signed bundle into the store, or replace it; returns its id."""
        folder = self.folder(patch_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "patch.elf").write_bytes(patch_elf)
        self.write_manifest(patch_id, canonical(manifest(patch_id, patch_elf, **fields)))
        return patch_id

    def write_manifest(self, patch_id: str, data: bytes, key: Path | None = None) -> None:
        """Write and sign these very bytes as the bundle's manifest."""
        folder = self.folder(patch_id)
        (folder / MANIFEST_FILE).write_bytes(data)
        (folder / SIGNATURE_FILE).write_bytes(signature(data, key or self.key))

    def command(self, *words: object) -> list[str]:
        """The CLI's command line; the import path is in the environment (conftest.py)."""
        fixed = ["--store", str(self.path), "--allowed-signers", str(self.signers), "--json"]
        chosen = words[0] in VERBS and "--backend" not in words
        backend = ["--backend", backends.NAME] if chosen else []
        return [sys.executable, "-m", "wfpatch", *fixed, *(str(word) for word in words), *backend]

    def run(
        self, *words: object, env: Mapping[str, str] | None = None, timeout: float = 120.0
    ) -> Run:
        """Run one command of the CLI, ``run("apply", "fix-1", "--pid", 42)``, to its end."""
        done = subprocess.run(
            self.command(*words),
            env={**os.environ, **(env or {})},
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        text = done.stdout.decode()
        return Run(
            done.returncode,
            json.loads(text) if text.startswith("{") else None,
            done.stderr.decode("utf-8", "replace"),
        )
