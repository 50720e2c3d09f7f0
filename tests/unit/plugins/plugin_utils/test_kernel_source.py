# SPDX-License-Identifier: GPL-3.0-or-later
"""What is sent to a host is what a build needs, and its digest is that of what arrives."""

from __future__ import annotations

import os
import re
import tarfile

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service import OLDEST_KERNEL
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_source import (
    digest,
    dkms_settings,
    read_tree,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._kernel_source import KernelSource
from ansible_collections.wfpatch.fleet.tests.unit.conftest import FLEET

CONF = 'PACKAGE_NAME="wfpatch"\nPACKAGE_VERSION="1.2"\n'
NEEDED = {
    "Kbuild",
    "Makefile",
    "dkms.conf",
    "dkms_sign",
    "include/uapi/wfpatch.h",
    "load.c",
    "wfpatch.rules",
}
LITTER = {
    ".load.o.cmd",
    ".tmp/a.c",
    "Module.symvers",
    "load.o",
    "modules.order",
    "tests/poke.c",
    "wfpatch.ko",
    "wfpatch.mod",
    "wfpatch.mod.c",
}


@pytest.fixture
def folder(tmp_path):
    for name in NEEDED | LITTER:
        path = tmp_path / "kmod" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CONF if name == "dkms.conf" else name)
    (tmp_path / "kmod/dkms_sign").chmod(0o755)
    return tmp_path / "kmod"


def test_only_what_a_build_needs(folder, tmp_path):
    source = KernelSource(str(folder))
    assert set(source.files) == NEEDED
    assert source.version == "1.2"
    source.archive(str(tmp_path / "a.tar"))
    target = tmp_path / "there"
    with tarfile.open(tmp_path / "a.tar") as archive:
        archive.extractall(target)
    assert digest(read_tree(str(target))) == source.digest
    assert os.access(target / "dkms_sign", os.X_OK)


def test_the_digest_follows_names_contents_and_modes(folder):
    known = {KernelSource(str(folder)).digest}
    (folder / "load.c").write_text("changed")
    known.add(KernelSource(str(folder)).digest)
    (folder / "load.c").rename(folder / "loading.c")
    known.add(KernelSource(str(folder)).digest)
    (folder / "dkms_sign").chmod(0o644)
    known.add(KernelSource(str(folder)).digest)
    assert len(known) == 4
    (folder / "load.o").write_text("changed")
    assert KernelSource(str(folder)).digest in known


def test_a_folder_that_is_no_source(tmp_path):
    with pytest.raises(AnsibleError, match=r"no dkms\.conf that names a version"):
        KernelSource(str(tmp_path))


def test_the_version_is_that_of_the_collection():
    version = yaml.safe_load((FLEET / "galaxy.yml").read_text())["version"]
    assert KernelSource(str(FLEET / "kmod")).version == version


def test_dkms_and_the_module_agree_on_the_oldest_kernel():
    conf = (FLEET / "kmod/dkms.conf").read_text()
    pattern = dkms_settings(conf)["BUILD_EXCLUSIVE_KERNEL"]
    for release in ("4.19.0", "5.4.0-1-amd64", "5.9.16", "5.10.0-30-amd64", "5.19.1", "6.1.0-56"):
        numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
        assert bool(re.search(pattern, release)) is (numbers >= OLDEST_KERNEL), release
    for release in ("6.12.1", "7.3.0", "10.0.1"):
        assert re.search(pattern, release)
