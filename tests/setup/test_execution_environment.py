# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-builder makes a context of what the collection says it needs. No image is built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parents[2]
BUILDER = Path(sys.executable).with_name("ansible-builder")
REQUIREMENTS = TOP / "requirements" / "execution_environment.txt"
BINDEP = TOP / "requirements" / "execution_environment.bindep"


def wanted(path: Path) -> set[str]:
    """The file's lines without remarks."""
    lines = {line for line in path.read_text().splitlines() if line and not line.startswith("#")}
    assert lines
    return lines


def create(definition: Path, context: Path) -> str:
    """Has the context made; returns the Containerfile's text."""
    done = subprocess.run(
        [BUILDER, "create", "-f", definition, "-c", context, "--output-filename", "Containerfile"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (context / "Containerfile").read_text()


@pytest.mark.parametrize("path", [REQUIREMENTS, BINDEP], ids=["python", "system"])
def test_both_ways_to_read_the_definition_lead_to_the_same(path):
    copy = TOP / "meta" / "requirements" / path.name
    assert copy.read_bytes() == path.read_bytes()


def test_the_definition_makes_a_context(tmp_path):
    text = create(TOP / "meta" / "execution-environment.yml", tmp_path / "context")
    built = tmp_path / "context" / "_build"
    assert wanted(built / "requirements.txt") == wanted(REQUIREMENTS)
    assert wanted(built / "bindep.txt") == wanted(BINDEP)
    assert "_build/requirements.txt" in text
    assert "_build/bindep.txt" in text


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    done = subprocess.run(
        [TOP / "setup" / "artifact", tmp_path_factory.mktemp("artifact")],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(done.stdout.strip())


def test_an_installed_collection_says_what_it_needs(artifact, tmp_path):
    collections = tmp_path / "collections"
    subprocess.run(
        [BUILDER.with_name("ansible-galaxy"), "collection", "install", "--offline"]
        + [artifact, "-p", collections],
        check=True,
        capture_output=True,
        # Elsewhere: the checkout's ansible.cfg leads to where the collection is already.
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    done = subprocess.run(
        [BUILDER, "introspect", collections], check=True, capture_output=True, text=True
    )
    found = yaml.safe_load(done.stdout)
    for kind, path in (("python", REQUIREMENTS), ("system", BINDEP)):
        assert {line.split("  # from")[0] for line in found[kind]} == wanted(path)


def test_the_example_for_awx_makes_a_context_with_the_archive(artifact, tmp_path):
    """It names the archive as it is built, so a release must not forget it."""
    folder = tmp_path / "awx"
    folder.mkdir()
    shutil.copy(TOP / "extensions" / "awx" / "execution-environment.yml", folder)
    shutil.copy(artifact, folder)
    text = create(folder / "execution-environment.yml", tmp_path / "context")
    built = tmp_path / "context" / "_build"
    (named,) = yaml.safe_load((built / "requirements.yml").read_text())["collections"]
    assert named["name"] == artifact.name
    assert (built / "archives" / artifact.name).read_bytes() == artifact.read_bytes()
    assert "ansible-core>=2.18" in text
