# SPDX-License-Identifier: GPL-3.0-or-later
"""Run-pre matching on real stock binaries, judged by their exact rebuilds; and what it is for: the
same patch ELF as from the exact rebuild. `benchmarks/matching` prints the whole table."""

from __future__ import annotations

import functools
import json
import os

import pytest
from conftest import ROOT
from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.debian import build_debian
from wfpatch_build.matching_survey import SAME_SOURCE, Neighbours, Row, matching_survey
from wfpatch_build.pairing import source_name
from wfpatch_build.pipeline import Change
from wfpatch_build.recipe import Recipe, read_recipe

CATALOGUE = ROOT / "catalogue"
BINARIES = {
    "memcached": ("memcached", "1.6.18-1", None),
    "redis": ("redis-server", "5:7.0.15-1~deb12u7", "/usr/bin/redis-server"),
    "libevent": ("libevent-2.1-7", "2.1.12-stable-8", None),
    "slapd": ("slapd", "2.5.13+dfsg-5", None),
}
# What matching without the binary's own exports must locate of the same source, in percent.
LEAST = {"memcached": 99.7, "redis": 99.5, "libevent": 98.0, "slapd": 99.0}

pytestmark = [
    pytest.mark.packages,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and chroot need root"),
]
slow = pytest.mark.slow


def recipe(name: str) -> Recipe:
    return read_recipe(CATALOGUE / name / "recipe.yml")


# Neighbours that cost no other build, matched in one go.
NEAR = {
    "memcached": Neighbours(
        patches=tuple(
            CATALOGUE / name / f"{name.partition('-')[2]}.patch"
            for name in ("memcached-meta-debug-exptime", "memcached-incr-large-number")
        ),
        options=("-O3", "-fno-inline-small-functions"),
    ),
    "redis": Neighbours(
        patches=tuple(
            CATALOGUE / f"redis-{name.lower()}" / f"{name}.patch"
            for name in ("CVE-2026-25243", "CVE-2026-92925")
        ),
        options=("-fno-ipa-ra",),
    ),
}


@functools.cache
def rows(binary: str) -> list[Row]:
    package, version, path = BINARIES[binary]
    return matching_survey(package, version, path, NEAR.get(binary, Neighbours()))


def check_nothing_wrong(found: list[Row]) -> None:
    assert {row.compiled: row.functions.wrong for row in found if row.functions.wrong} == {}
    assert {row.compiled: row.data.wrong for row in found if row.data.wrong} == {}


@pytest.mark.parametrize(
    "binary",
    ["memcached", "redis", pytest.param("libevent", marks=slow), pytest.param("slapd", marks=slow)],
)
def test_the_same_source_is_located(binary):
    found = rows(binary)
    check_nothing_wrong(found)
    assert [(row.compiled, row.exports_used) for row in found[:2]] == [
        (SAME_SOURCE, True),
        (SAME_SOURCE, False),
    ]
    with_exports, without = found[:2]
    assert with_exports.functions.alike == with_exports.functions.present > 300
    assert with_exports.functions.located == with_exports.functions.present
    assert without.functions.share >= LEAST[binary]
    assert with_exports.data.share > 98
    assert without.data.share > 95


@pytest.mark.parametrize(
    ("binary", "name"),
    [
        ("memcached", "memcached-meta-debug-exptime"),
        ("memcached", "memcached-incr-large-number"),
        ("redis", "redis-cve-2026-25243"),
        ("redis", "redis-cve-2026-92925"),
    ],
)
def test_of_a_patched_source_just_the_patched_functions_are_unresolved(binary, name):
    made = recipe(name)
    used, unused = (row for row in rows(binary) if row.compiled == made.patch.name)
    check_nothing_wrong([used, unused])
    same = rows(binary)[0].functions
    changed = same.present - used.functions.alike
    assert changed == len({source_name(f) for f in made.functions})
    assert used.functions.located == used.functions.alike
    assert unused.functions.located >= used.functions.located - 10


def check_neighbours(found: list[Row], least: float) -> None:
    check_nothing_wrong(found)
    for row in found:
        assert row.functions.alike < row.functions.present  # it is another build
        assert row.functions.located >= least * row.functions.alike


@pytest.mark.parametrize(("binary", "least"), [("memcached", 0.75), ("redis", 0.98)])
def test_nothing_compiled_with_other_options_is_located_wrongly(binary, least):
    found = [row for row in rows(binary) if row.compiled.startswith("-")]
    assert len(found) == 2 * len(NEAR[binary].options)
    check_neighbours(found, least)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("binary", "neighbours", "least"),
    [
        ("redis", Neighbours(options=("-O1",)), 0),
        ("redis", Neighbours(versions=("5:7.0.15-1~deb12u10",)), 0.99),
        ("libevent", Neighbours(options=("-O3", "-fno-stack-protector")), 0.6),
        ("libevent", Neighbours(versions=("2.1.12-stable-8+deb12u1",)), 0.85),
        ("slapd", Neighbours(options=("-fno-inline-small-functions",)), 0.9),
    ],
)
def test_nothing_of_a_neighbour_is_located_wrongly(binary, neighbours, least):
    found = matching_survey(*BINARIES[binary], neighbours)[2:]
    assert found
    check_neighbours(found, least)


def content(elf: bytes) -> tuple[list, tuple]:
    """Sections and symbols of a patch ELF, the method in its metadata left out."""
    patch = CompiledObject(elf, "patch")
    sections = []
    for section in patch.sections:
        data: object = section.data
        if section.name == ".wfpatch.meta":
            data = json.loads(section.data)
            method = data["built"].pop("method")
            assert method in ("exact_rebuild", "matched")
        sections.append((section.name, section.type, section.flags, data, section.relocations))
    return sections, patch.symbols


@pytest.mark.parametrize(
    "name",
    [
        *("redis-cve-2026-66373", "memcached-incr-large-number", "memcached-meta-debug-exptime"),
        *(
            pytest.param(name, marks=slow)
            for name in (
                *("redis-cve-2026-25243", "redis-cve-2026-23631", "redis-cve-2026-81934"),
                *("redis-cve-2026-92925", "libevent-cve-2026-63381", "openldap-utf8-validate"),
            )
        ),
    ],
)
def test_matching_gives_the_patch_elf_of_the_exact_rebuild(name):
    made = recipe(name)
    change = Change((made.patch,), made.base_patches, accept_layout=made.accept_layout)
    exact, matched = (
        build_debian(made.package, made.version, made.binary, change, made.suite, method=method)
        for method in ("exact", "matched")
    )
    methods = [
        json.loads(section(r.patch.elf, ".wfpatch.meta"))["built"]["method"]
        for r in (exact, matched)
    ]
    assert methods == ["exact_rebuild", "matched"]
    assert content(exact.patch.elf) == content(matched.patch.elf)
    assert matched.patch.differences == ()


def section(elf: bytes, name: str) -> bytes:
    return next(s.data for s in CompiledObject(elf, "patch").sections if s.name == name)
