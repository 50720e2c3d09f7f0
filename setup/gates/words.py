# SPDX-License-Identifier: GPL-3.0-or-later
"""Words that have no place in the repository.

Hosts of package registries (each machine has its own mirrors; they are read from its settings),
paths of the machine somebody worked on, and marks of unfinished work.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from urllib.parse import urlsplit

from .gate import Gate, Outcome, Tree

#: In pieces, so that this file passes its own gate.
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error")
MACHINE_PATHS = ("/wo" + "rk/", "/root/.py" + "env", "/opt/py" + "pi", "/opt/whe" + "els")

PIP_HOSTS = """
import json
from pip._internal.models.index import PyPI
print(json.dumps([PyPI.netloc, PyPI.file_storage_domain]))
"""


def registry_hosts() -> list[str]:
    """The hosts that this machine's apt and pip fetch packages from."""
    apt = subprocess.run(
        ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    hosts = {urlsplit(address).hostname for address in apt.split()}
    pip = subprocess.run(
        [sys.executable, "-c", PIP_HOSTS], check=True, capture_output=True, text=True
    ).stdout
    hosts.update(json.loads(pip))
    return sorted(host for host in hosts if host)


def check(tree: Tree) -> Outcome:
    hosts = registry_hosts()
    if len(hosts) < 3:
        return Outcome(0, (f"expected hosts of apt and pip, found {len(hosts)}",))
    unfinished = re.compile(rb"\b(" + b"|".join(word.encode() for word in UNFINISHED) + rb")\b")
    elsewhere = re.compile(
        b"|".join(
            [rb"(?<![\w.}$)-])" + re.escape(path.encode()) for path in MACHINE_PATHS]
            + [rb"(?<![\w.-])" + re.escape(host.encode()) + rb"(?![\w-])" for host in hosts]
        )
    )
    problems = []
    checked = 0
    for file in tree.files:
        if file.parts[0] == "LICENSES" or file.name == "COPYING":
            continue
        checked += 1
        # Fixes of others keep their authors' words.
        patterns = [elsewhere] if file.suffix == ".patch" else [elsewhere, unfinished]
        for number, line in enumerate((tree.top / file).read_bytes().splitlines(), 1):
            for pattern in patterns:
                match = pattern.search(line)
                if match:
                    word = match[0].decode(errors="replace")
                    problems.append(f"{file}:{number}: {word!r} has no place here")
    return Outcome(checked, tuple(problems))


GATE = Gate("words", "files", check)
