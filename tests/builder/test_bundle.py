# SPDX-License-Identifier: GPL-3.0-or-later
"""Bundles: manifest, canonical JSON, signature; recipes; and what the applier makes of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess

import pytest
import yaml
from wfpatch.bundle import load_bundle
from wfpatch.strict_json import parse_canonical
from wfpatch_build import cli
from wfpatch_build.canonical_json import canonical
from wfpatch_build.errors import Refusal
from wfpatch_build.manifest import Description, Target, manifest, release_day
from wfpatch_build.recipe import read_recipe

FILES = {"main.c": "int target(int x) { return x + 1; }\nint main(int c, char **v) { return c; }\n"}
CHANGED = {"main.c": FILES["main.c"].replace("x + 1", "x + 2")}
TARGET = Target("program", ("ab" * 20,), "package", ("1:1.0-1",))


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    """(private key, allowed-signers file)"""
    place = tmp_path_factory.mktemp("signer")
    key = place / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    allowed = place / "allowed_signers"
    public = " ".join((place / "key.pub").read_text().split()[:2])
    allowed.write_text(f'builder@test namespaces="wfpatch" {public}\n')
    return key, allowed


def test_the_command_line_makes_a_bundle_that_the_applier_takes(source_tree, signer, tmp_path):
    tree = source_tree(FILES)
    patch = tmp_path / "CVE-2026-0001.patch"
    patch.write_text("Last-Update: 2026-02-03\n---\n" + tree.diff(CHANGED))
    bundle = tmp_path / "fix-1"
    code = cli.main(
        ["--quiet", "tree", "--old", str(tree.source), "--patch", str(patch)]
        + ["--build", tree.command, "--binary", str(tree.stock), "-o", str(bundle)]
        + ["--key", str(signer[0]), "--package", "demo", "--package-version", "1.0-1"]
        + ["--requires", "fix-0", "--stack-switching", "none", "--summary", "One for two"]
    )
    assert code == 0
    loaded = load_bundle(bundle, signer[1])
    assert loaded.manifest.id == "fix-1"
    assert loaded.manifest.requires == ("fix-0",)
    assert loaded.manifest.released == "2026-02-03"
    assert loaded.manifest.cves[0].id == "CVE-2026-0001"
    assert loaded.manifest.target.package == "demo"
    assert [f.name for f in loaded.patch.functions] == ["target"]
    signed = (bundle / "bundle.json").read_bytes()
    assert json.loads(signed) == yaml.safe_load((bundle / "manifest.yml").read_text())
    elf = (bundle / "patch.elf").read_bytes()
    assert json.loads(signed)["artifact"]["sha256"] == hashlib.sha256(elf).hexdigest()


def test_building_again_takes_the_old_signature_away(source_tree, signer, tmp_path):
    tree = source_tree(FILES)
    patch = tmp_path / "fix.patch"
    patch.write_text(tree.diff(CHANGED))
    bundle = tmp_path / "fix"
    arguments = ["--quiet", "tree", "--old", str(tree.source), "--patch", str(patch)]
    arguments += ["--build", tree.command, "--binary", str(tree.stock), "-o", str(bundle)]
    assert cli.main([*arguments, "--key", str(signer[0])]) == 0
    assert (bundle / "bundle.json.sig").exists()
    assert cli.main(arguments) == 0
    assert not (bundle / "bundle.json.sig").exists()
    assert cli.main(["sign", str(bundle), "--key", str(signer[0])]) == 0
    load_bundle(bundle, signer[1])


@pytest.mark.parametrize(
    "value",
    [{}, {"b": 1, "a": [True, None, 'ü\n\u2028\\"', -5, {"z": {}, "y": []}]}, [1], "x", 2**70],
)
def test_canonical_json_is_what_the_host_calls_canonical(value):
    data = canonical(value)
    assert json.loads(data) == value
    assert canonical(json.loads(data)) == data
    if isinstance(value, dict):
        assert parse_canonical(data, 1 << 20) == value


@pytest.mark.parametrize("value", [1.5, {"a": 2.0}, {1: 2}, {"a": b"x"}, [object()]])
def test_canonical_json_has_no_floats_and_no_foreign_types(value):
    with pytest.raises(TypeError):
        canonical(value)


def test_a_manifest_that_breaks_the_schema_is_refused_with_all_its_faults():
    description = Description(
        id="Bad Id", summary="", released="tomorrow", cves=({"id": "CVE-1", "severity": "dire"},)
    )
    with pytest.raises(Refusal) as caught:
        manifest(description, TARGET, b"elf")
    assert caught.value.reason == "manifest_invalid"
    assert len(caught.value.result["errors"]) >= 5


def test_the_release_day_comes_from_the_patch_or_the_clock_of_the_build(tmp_path, monkeypatch):
    patch = tmp_path / "a.patch"
    patch.write_text("Subject: x\nDate: Mon, 2025-03-04 10:00\n--- a/x\n+++ b/x\n")
    assert release_day([patch]) == "2025-03-04"
    patch.write_text("--- a/x\n+++ b/x\n")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert release_day([patch]) == "1970-01-02"
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert len(release_day([patch])) == 10


def recipe(directory, identity: str, **keys) -> None:
    (directory / identity).mkdir(parents=True)
    value = {
        "id": identity,
        "summary": "text",
        "package": "pkg",
        "version": "1:2.0-1",
        "patch": f"{identity}.patch",
        **keys,
    }
    (directory / identity / "recipe.yml").write_text(yaml.safe_dump(value))
    (directory / identity / f"{identity}.patch").write_text("text\n")


def test_a_recipe_brings_the_patches_of_all_it_requires_oldest_first(tmp_path):
    recipe(tmp_path, "one")
    recipe(tmp_path, "two", requires=["one"])
    recipe(tmp_path, "other")
    recipe(tmp_path, "three", requires=["two", "one", "other"], functions=["f"], binary="/bin/x")
    read = read_recipe(tmp_path / "three" / "recipe.yml")
    assert [p.name for p in read.base_patches] == ["one.patch", "two.patch", "other.patch"]
    assert read.patch == tmp_path / "three" / "three.patch"
    assert (read.functions, read.binary) == (("f",), "/bin/x")


def test_a_recipe_that_requires_a_patch_for_another_version(tmp_path):
    recipe(tmp_path, "one", version="1:1.0-1")
    recipe(tmp_path, "two", requires=["one"])
    with pytest.raises(Refusal) as caught:
        read_recipe(tmp_path / "two" / "recipe.yml")
    assert caught.value.reason == "manifest_invalid"


def test_usage_errors_have_their_own_exit_code(capsys, tmp_path):
    assert cli.main(["debian", "-o", str(tmp_path / "x")]) == 2
    assert "usage" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["no-such-verb"])
    assert caught.value.code == 2


def test_the_survey_of_a_program(capsys):
    assert cli.main(["survey", "--json", os.path.realpath("/bin/cat")]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert sum(row["ways"].values()) == row["functions"] > 20
