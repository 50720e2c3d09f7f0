# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Stand-ins, in a scratch folder, for what a host lacks: the applier, bundles, signers."""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import sys


def stand_in_program(staged, scratch):
    """A command that runs the applier that was sent along; returns its path."""
    program = os.path.join(scratch, "wfpatch")
    with open(program, "w", encoding="utf-8") as file:
        file.write(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -B {shlex.quote(staged)} "$@"\n'
        )
    os.chmod(program, 0o700)
    return program


def stand_in_signers(text, scratch, allowed_signers=None, revoked=None):
    """A list of allowed signers, and beside it the keys that are revoked (in base64); returns its
    path. What is not given is as on the host, whose own list is ``allowed_signers``.
    """
    path = os.path.join(scratch, "allowed_signers")
    host = os.path.dirname(allowed_signers or "")
    if text is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    elif allowed_signers and os.path.exists(allowed_signers):
        shutil.copyfile(allowed_signers, path)
    beside = os.path.join(scratch, "revoked_keys")
    if revoked is not None:
        with open(beside, "wb") as file:
            file.write(base64.b64decode(revoked))
    elif allowed_signers and os.path.exists(os.path.join(host, "revoked_keys")):
        shutil.copyfile(os.path.join(host, "revoked_keys"), beside)
    return path


def stand_in_store(store, payloads, scratch):
    """A copy of the host's store with bundles that were sent along; returns its path. The applier
    verifies them as it reads them.
    """
    copy = os.path.join(scratch, "store")
    if os.path.isdir(store):
        shutil.copytree(
            store,
            copy,
            ignore=lambda _folder, names: [name for name in names if name.startswith(".")],
        )
    for payload in payloads:
        folder = os.path.join(copy, "bundles", os.path.basename(payload["id"]))
        os.makedirs(folder, 0o755, exist_ok=True)
        for name, field in (
            ("bundle.json", "bundle"),
            ("bundle.json.sig", "signature"),
            ("patch.elf", "patch"),
        ):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(base64.b64decode(payload[field]))
    return copy
