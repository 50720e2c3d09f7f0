# SPDX-License-Identifier: GPL-3.0-or-later
"""Real packages: exact rebuilds, and the functions that real fixes replace.

The patches are those of catalogue/ and some of the archive's newer source packages. Chroots and
builds are taken from the machine's cache, or made (redis and memcached: minutes).
"""

from __future__ import annotations

import os
import subprocess

import pytest
from conftest import ROOT
from patch_reading import metadata
from wfpatch.patch_elf import read_patch
from wfpatch_build import archive
from wfpatch_build.debian import BuildResult, build_debian
from wfpatch_build.errors import Refusal
from wfpatch_build.pipeline import Change, check_expected
from wfpatch_build.recipe import read_recipe
from wfpatch_build.survey import survey

CATALOGUE = ROOT / "catalogue"

pytestmark = [
    pytest.mark.packages,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and chroot need root"),
]


def recipes() -> list[str]:
    return sorted(p.parent.name for p in CATALOGUE.glob("*/recipe.yml"))


def build(name: str) -> BuildResult:
    recipe = read_recipe(CATALOGUE / name / "recipe.yml")
    change = Change((recipe.patch,), recipe.base_patches, accept_layout=recipe.accept_layout)
    result = build_debian(recipe.package, recipe.version, recipe.binary, change, recipe.suite)
    check_expected(result.patch, recipe.functions)
    return result


@pytest.mark.parametrize("name", [n for n in recipes() if n.startswith(("redis", "memcached"))])
def test_a_recipe_of_the_catalogue_gives_the_functions_it_names(name):
    result = build(name)
    assert result.identity.exact, result.identity.summary()
    assert result.patch.differences == ()
    assert result.patch.checked > 0
    read_patch(result.patch.elf)


def test_redis_is_rebuilt_to_the_bit():
    result = build("redis-cve-2026-81934")
    assert result.identity.same_file
    assert result.stock is not None
    assert result.stock.package.package == "redis-tools"
    assert result.stock.path == "/usr/bin/redis-check-rdb"
    counted = survey(result.image)
    assert counted.ways["impossible"] <= counted.functions // 100
    assert counted.share(counted.ways["byte"]) > 75


def test_a_stacked_patch_holds_both_fixes():
    result = build("redis-cve-2026-66373")
    assert result.patch.functions == ("rdbLoadObject",)
    assert b"already has a consumer assigned" in result.patch.elf
    first = build("redis-cve-2026-25243")
    by_name = {f["name"]: f for f in metadata(first)["functions"]}
    (again,) = metadata(result)["functions"]
    assert again["address"] == by_name["rdbLoadObject"]["address"]
    assert {p["kind"] for p in again["pieces"]} == {"cold"}


def test_a_part_that_the_fix_splits_off_is_new_code():
    result = build("redis-cve-2026-23631")
    assert result.patch.functions == ("readSyncBulkPayload",)
    assert [n.partition(".")[0] for n in result.patch.added] == ["readSyncBulkPayload"]


# Of memcached's security update; none of it is compiled into Debian's binary.
NOT_COMPILED = (
    "0008-CVE-2026-47783-CVE-2026-47784.patch",
    "0009-CVE-2023-46852.patch",
    "CVE-2023-46853.patch",
)


@pytest.fixture(scope="module")
def security_patches(tmp_path_factory):
    """The patches of memcached 1.6.18-1+deb12u1's source package."""
    place = tmp_path_factory.mktemp("memcached")
    files = archive.source_package("memcached", "1.6.18-1+deb12u1", place)
    tarball = next(f for f in files if ".debian.tar" in f.name)
    subprocess.run(["tar", "-xf", tarball], cwd=place, check=True)
    return place / "debian" / "patches"


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_a_cve_in_code_that_is_not_compiled_is_an_empty_diff(security_patches, name):
    with pytest.raises(Refusal) as caught:
        build_debian("memcached", "1.6.18-1", None, Change((security_patches / name,)))
    assert caught.value.reason == "empty_diff"


def test_a_version_that_the_archive_does_not_have():
    with pytest.raises(Refusal) as caught:
        build_debian("memcached", "0.0-1", None, Change(()))
    assert caught.value.reason == "archive_missing"


def test_the_command_line_from_end_to_end(tmp_path):
    recipe = CATALOGUE / "memcached-incr-large-number" / "recipe.yml"
    done = subprocess.run(
        ["wfpatch-build", "debian", "--recipe", recipe, "-o", tmp_path / "bundle"],
        env={**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "replaces safe_strtoull, safe_strtoull_hex, safe_strtoul" in done.stderr
    assert sorted(p.name for p in (tmp_path / "bundle").iterdir()) == [
        "bundle.json",
        "manifest.yml",
        "patch.elf",
    ]
