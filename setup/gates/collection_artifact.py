# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive that operators install: small, with the applier inside, and without a complaint of
galaxy-importer, which Galaxy and Automation Hub run on what is uploaded.

The importer exits 0 with warnings, so what it prints is read. It also passes what it skipped for
want of a tool: that is a warning too.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import sys
import tarfile
import tempfile
import zipfile

from .gate import Gate, Outcome, Tree

LIMIT = 3 << 20
#: Without these a host gets no applier, from the archive or from git.
INSIDE = ("dist/wfpatch", "applier/wfpatch/cli.py", "meta/runtime.yml", "playbooks/patch.yml")
#: In the packed applier.
PACKED = ("wfpatch/cli.py", "elftools/elf/elffile.py", "elftools/LICENSE", "__main__.py")
DONE = "Importer processing completed successfully"


def content_problems(path: pathlib.Path) -> tuple[int, list[str]]:
    """How many files the archive has, and what is wrong with it itself."""
    problems = []
    size = path.stat().st_size
    with tarfile.open(path) as archive:
        sizes = {member.name: member.size for member in archive.getmembers() if member.isfile()}
        names = set(sizes)
        if size >= LIMIT:
            largest = sorted(names, key=lambda name: sizes[name])[-3:]
            problems.append(
                f"{path.name}: {size} bytes, the limit is {LIMIT}; the largest files are "
                + ", ".join(f"{name} ({sizes[name]})" for name in reversed(largest))
            )
        problems += [f"{path.name}: {name} is missing" for name in INSIDE if name not in names]
        applier = archive.extractfile("dist/wfpatch") if "dist/wfpatch" in names else None
        if applier:
            with zipfile.ZipFile(io.BytesIO(applier.read())) as packed:
                inside = set(packed.namelist())
            problems += [f"dist/wfpatch: no {name} in it" for name in PACKED if name not in inside]
        listed = archive.extractfile("FILES.json")
        assert listed
        files = [entry for entry in json.load(listed)["files"] if entry["ftype"] == "file"]
    return len(files), problems


def importer_problems(tree: Tree, path: pathlib.Path, home: str) -> list[str]:
    """Every line in which galaxy-importer complains."""
    done = tree.run(
        "env", "-C", home, "-u", "ANSIBLE_CONFIG", f"HOME={home}", f"ANSIBLE_HOME={home}",
        f"GALAXY_IMPORTER_ANSIBLE_LOCAL_TMP={home}/tmp",
        sys.executable, "-m", "galaxy_importer.main", path,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    problems = [line for line in lines if line.startswith(("WARNING", "ERROR", "CRITICAL"))]
    if not problems and (done.returncode or DONE not in lines):
        problems = [f"galaxy-importer exited with {done.returncode}:", *lines[-20:]]
    return problems


def check(tree: Tree) -> Outcome:
    if not tree.below("plugins", "roles"):
        return Outcome(0, ("plugins, roles: nothing there to build a collection from",))
    with tempfile.TemporaryDirectory(prefix="artifact.") as scratch:
        os.mkdir(f"{scratch}/home")
        built = tree.run("setup/artifact", scratch)
        if built.returncode:
            return Outcome(1, tuple(built.stdout.splitlines()) or ("setup/artifact failed",))
        path = pathlib.Path(built.stdout.strip().splitlines()[-1])
        checked, problems = content_problems(path)
        if not problems:
            problems = importer_problems(tree, path, f"{scratch}/home")
    return Outcome(checked, tuple(problems))


GATE = Gate("collection-artifact", "files", check)
