# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches built from source with the builder, and signed with a key made on the spot."""

from __future__ import annotations

import os
import pathlib
import subprocess

from .checkout import COMMANDS, OUTPUT, Recipe, recipe
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


def required(patch: Recipe) -> list[Recipe]:
    """What has to be applied to the source before, oldest first."""
    found: list[Recipe] = []
    for name in patch.requires:
        below = recipe(name)
        found += [one for one in [*required(below), below] if one not in found]
    return found


def build(patch: Recipe, key: pathlib.Path) -> pathlib.Path:
    """The bundle of a recipe; Failure with the builder's reason when there is none."""
    folder = OUTPUT / "bundles" / patch.id
    command = [
        *(str(COMMANDS / "wfpatch-build"), "debian", patch.data["package"]),
        *("--old", patch.data["version"], "--recipe", str(patch.folder / "recipe.yml")),
        *("--patch", str(patch.patch)),
    ]
    for below in required(patch):
        command += ["--base-patch", str(below.patch)]
    command += ["--sign", str(key), "--output", str(folder)]
    environment = {**os.environ, "NO_COLOR": "1"}
    code, _ = show(command, OUTPUT / f"build-{patch.id}.log", environment)
    if code:
        raise Failure(f"the builder refused {patch.id}")
    return folder
