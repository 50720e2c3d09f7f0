# SPDX-License-Identifier: GPL-3.0-or-later
"""Provoke scripts on the services of the hosts."""

from __future__ import annotations

import json
import subprocess

from sshfleet.fleet import Fleet

from .checkout import Recipe
from .narration import Failure, say

FIXED, VULNERABLE = 0, 1
WORDS = {FIXED: "fixed", VULNERABLE: "vulnerable"}


def provoke(fleet: Fleet, host: str, patch: Recipe, expected: int, *options: str) -> None:
    """Runs a patch's provoke script against the host's service; Failure unless it exits so.

    It runs here, in the host's network: the services listen on their own loopback only.
    """
    script = patch.folder / patch.data["provoke"]["script"]
    pid = fleet.host(host).services[patch.source]
    done = subprocess.run(
        fleet.in_network(host, str(script), f"--pid={pid}", *options),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != expected:
        raise Failure(
            f"{patch.id} on {host}: {WORDS[expected]} behaviour expected, exit code "
            f"{done.returncode}\n{done.stdout}{done.stderr}"
        )
    seen = [json.loads(line) for line in done.stdout.splitlines()][:-1]
    telling = seen[-1]["seen"]
    say(f"ok: {host} {patch.source}[{pid}] {patch.id}: {WORDS[expected]} ({telling})")
