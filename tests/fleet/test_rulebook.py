# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-rulebook itself with our event source: a patch that appears, and a report that is
missing, become runs on a host."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import live_patching
import pytest
import small_service
import yaml
from live_patching import TOP
from small_service import PATCH, SmallService
from sshfleet.fixture import FleetFactory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("java"), reason="ansible-rulebook needs a Java runtime"),
]


@contextlib.contextmanager
def rulebook(folder: pathlib.Path, *words: object) -> Iterator[Callable[[], str]]:
    """ansible-rulebook for the duration of the block; what it has said so far."""
    made = subprocess.run(
        [TOP / "setup" / "rulebook"], check=True, capture_output=True, text=True
    ).stdout.strip()
    log = folder / "rulebook.log"
    environment = {
        **os.environ,
        "PATH": f"{made}/bin:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(TOP / ".work" / "collections"),
        "ANSIBLE_FORCE_COLOR": "0",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [f"{made}/bin/ansible-rulebook", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    try:
        yield lambda: f"exit code {process.poll()}\n{log.read_text()}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition: Callable[[], bool], said: Callable[[], str], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()[-6000:]
        time.sleep(0.5)


def states(report: pathlib.Path) -> list[str]:
    return [host["state"] for host in json.loads(report.read_text())["hosts"]]


def test_a_new_patch_and_a_missing_report_become_runs(
    ssh_fleet: FleetFactory, tmp_path: pathlib.Path
) -> None:
    fleet = ssh_fleet(1)
    program = small_service.compile_service(tmp_path)
    signer = live_patching.make_signer(tmp_path)
    (tmp_path / "made").mkdir()
    made = small_service.signed_patch(program, tmp_path / "made", signer.key)
    patches, dest = tmp_path / "patches", tmp_path / "compliance"
    patches.mkdir()
    service = SmallService(fleet, "host01", program)
    settings = tmp_path / "settings.yml"
    words = {"wfpatch_patches_folder": str(patches), "wfpatch_compliance_dest": str(dest)}
    settings.write_text(yaml.safe_dump(words))
    hosts = yaml.safe_load(fleet.inventory.read_text())
    hosts["all"]["vars"] |= {
        "wfpatch_signers_file": str(signer.allowed),
        "wfpatch_report": str(tmp_path / "report.json"),
    }
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump(hosts))
    report = dest / "report.json"
    try:
        with rulebook(
            *(tmp_path, "--rulebook", "wfpatch.fleet.patch_fleet"),
            *("--inventory", inventory, "--vars", settings),
        ) as said:
            until(report.exists, said)
            assert service.answers() == {1}
            # As a copy over a network comes: file by file.
            shutil.copytree(made, patches / PATCH)
            until(lambda: service.answers() == {2}, said)
            # A run begins its report with what it knows of no host yet.
            until(lambda: "patched" in states(tmp_path / "report.json"), said)
        assert service.alive()
    finally:
        service.end()
