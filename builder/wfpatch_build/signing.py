# SPDX-License-Identifier: GPL-3.0-or-later
"""Signs a bundle: `ssh-keygen -Y sign` over exactly the bytes of bundle.json."""

from __future__ import annotations

import subprocess
from pathlib import Path

from wfpatch_build.errors import Refusal

NAMESPACE = "wfpatch"


def sign(bundle: Path, key: Path) -> Path:
    """Sign ``bundle``/bundle.json with the private key (or, with an agent, the public key).

    Returns the signature's path. Raises Refusal("signing_failed").
    """
    data = bundle / "bundle.json"
    if not data.is_file():
        raise Refusal("signing_failed", f"{data} does not exist: build the bundle first")
    signature = bundle / "bundle.json.sig"
    signature.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(data)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise Refusal("tool_missing", "ssh-keygen is needed to sign a bundle") from error
    if done.returncode or not signature.is_file():
        raise Refusal("signing_failed", f"ssh-keygen: {done.stderr.strip()}", key=str(key))
    return signature
