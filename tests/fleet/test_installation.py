# SPDX-License-Identifier: GPL-3.0-or-later
"""What a newcomer does: install the collection with ansible-galaxy, and patch a host by the
playbook's full name, from a folder that has nothing of the checkout.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from typing import Any

import live_patching
import pytest
import small_service
from live_patching import CONTROLLER, TOP
from small_service import SmallService
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet


class Controller:
    """A user's home, with an empty folder for collections and no configuration."""

    def __init__(self, home: pathlib.Path, fleet: Fleet) -> None:
        self.home, self.fleet = home, fleet
        self.collections = home / "collections"
        home.mkdir()

    @property
    def installed(self) -> pathlib.Path:
        return self.collections / "ansible_collections" / "wfpatch" / "fleet"

    def run(self, *words: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
        """A command of Ansible's."""
        kept = {key: value for key, value in os.environ.items() if "ANSIBLE" not in key}
        return subprocess.run(
            [str(CONTROLLER / words[0]), *map(str, words[1:])],
            capture_output=True,
            text=True,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            env={
                **kept,
                "HOME": str(self.home),
                "PWD": str(self.home),
                "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
                "ANSIBLE_PIPELINING": "true",
            },
        )

    def install(self, source: str | pathlib.Path) -> None:
        """Install the collection from there."""
        done = self.run(
            *("ansible-galaxy", "collection", "install", "--offline", source),
            *("-p", self.collections),
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def play(self, name: str, **variables: Any) -> str:
        """Run a playbook of the collection by its full name, or a file; it must succeed."""
        playbook = name if "/" in name else f"wfpatch.fleet.{name}"
        done = self.run(
            *("ansible-playbook", playbook, "-i", self.fleet.inventory),
            *("-e", json.dumps(variables)),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def fleet(ssh_fleet: FleetFactory) -> Fleet:
    return ssh_fleet(1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    done = subprocess.run(
        [TOP / "setup" / "artifact", tmp_path_factory.mktemp("artifact")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return pathlib.Path(done.stdout.strip())


@pytest.fixture
def controller(fleet: Fleet, tmp_path: pathlib.Path) -> Controller:
    return Controller(tmp_path / "home", fleet)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_service.compile_service(tmp_path_factory.mktemp("program"))


@pytest.fixture
def service(fleet: Fleet, program: pathlib.Path) -> Iterator[SmallService]:
    running = SmallService(fleet, "host01", program)
    yield running
    running.end()


@pytest.fixture
def patches(program: pathlib.Path, tmp_path: pathlib.Path) -> dict[str, Any]:
    """The variables for a run with a signed patch."""
    signer = live_patching.make_signer(tmp_path)
    folder = tmp_path / "patches"
    folder.mkdir()
    patch = small_service.signed_patch(program, folder, signer.key)
    return {"wfpatch_patches": [str(patch)], "wfpatch_signers_file": str(signer.allowed)}


def applier_digest(fleet: Fleet) -> str:
    path = fleet.root("host01") / "usr/local/lib/wfpatch/wfpatch"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_from_the_archive(
    controller: Controller,
    artifact: pathlib.Path,
    service: SmallService,
    patches: dict[str, Any],
) -> None:
    """A patch on a host that has nothing yet, the same again, and the report."""
    controller.install(artifact)
    first = controller.play("patch", **patches)
    assert service.answers() == {2}, first
    # Once more, as AWX does: through a playbook of a project, with the answers of a survey.
    (folder,) = patches.pop("wfpatch_patches")
    text = (controller.installed / "extensions" / "awx" / "README.md").read_text()
    (playbook,) = re.findall(
        r"^```yaml\n(---\n.*?wfpatch\.fleet\.patch\n.*?)^```", text, re.M | re.S
    )
    project = controller.home / "patch.yml"
    project.write_text(playbook)
    again = controller.play(str(project), **patches, wfpatch_patches=f"{folder}\n")
    assert "changed=0" in again
    report = json.loads((controller.home / "wfpatch-report.json").read_text())
    assert [host["state"] for host in report["hosts"]] == ["patched"]
    controller.play("uninstall")
    with tarfile.open(artifact) as archive:
        names = archive.getnames()
    shipped = {name.split("/")[0] for name in names}
    assert not {"tests", "builder", "catalogue", "demo", "setup", "galaxy.yml"} & shipped


def test_from_git(
    controller: Controller,
    service: SmallService,
    patches: dict[str, Any],
    tmp_path: pathlib.Path,
) -> None:
    """Git has no packed applier: it is packed on the controller, once, to the same bytes."""
    repository = tmp_path / "repository"
    placed = subprocess.run(
        [TOP / "setup" / "collection", tmp_path / "placed"],
        check=True,
        capture_output=True,
        text=True,
    )
    shutil.copytree(
        pathlib.Path(placed.stdout.strip()) / "ansible_collections/wfpatch/fleet",
        repository,
        symlinks=True,
        ignore=shutil.ignore_patterns("dist", ".git"),
    )
    for words in (
        ("init", "--quiet", "--initial-branch", "main"),
        ("add", "--all"),
        ("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "t"),
    ):
        subprocess.run(["git", "-C", repository, *words], check=True)
    controller.install(f"git+file://{repository},main")
    assert not (controller.installed / "dist").exists()
    controller.play("patch", **patches)
    assert service.answers() == {2}
    kept = controller.home / ".ansible" / "wfpatch"
    (packed,) = kept.iterdir()
    assert hashlib.sha256(packed.read_bytes()).hexdigest() == applier_digest(controller.fleet)
    assert packed.read_bytes() == (TOP / "dist" / "wfpatch").read_bytes()
    made = packed.stat().st_mtime_ns
    assert "changed=0" in controller.play("install", **patches)
    assert packed.stat().st_mtime_ns == made
    # What will run as root on every host is not taken from where others may write.
    kept.chmod(0o777)
    done = controller.run(
        "ansible-playbook", "wfpatch.fleet.install", "-i", controller.fleet.inventory
    )
    assert done.returncode != 0
    assert "can be written by others" in done.stdout
