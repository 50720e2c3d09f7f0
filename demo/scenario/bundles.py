# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches built from source with the builder, and signed with a key made on the spot."""

from __future__ import annotations

import pathlib
import subprocess

from .checkout import COMMANDS, OUTPUT, Recipe
from .narration import Failure, show

SIGNER = "demo@wfpatch.example"


def make_signer() -> tuple[pathlib.Path, pathlib.Path]:
    """A signing key, and the list of allowed signers that names it alone."""
    key = OUTPUT / "signing_key"
    for path in (key, key.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", SIGNER, "-f", key], check=True
    )
    signers = OUTPUT / "allowed_signers"
    public = key.with_suffix(".pub").read_text().strip()
    signers.write_text(f'{SIGNER} namespaces="wfpatch" {public}\n')
    return key, signers


def build(patch: Recipe, key: pathlib.Path) -> pathlib.Path:
    """The signed bundle of a recipe; Failure when the builder refuses it."""
    folder = OUTPUT / "bundles" / patch.id
    command = [
        *(str(COMMANDS / "wfpatch-build"), "debian", "--recipe", str(patch.folder / "recipe.yml")),
        *("--key", str(key), "--output", str(folder)),
    ]
    code, _ = show(command, OUTPUT / f"build-{patch.id}.log")
    if code:
        raise Failure(f"the builder refused {patch.id}")
    return folder
