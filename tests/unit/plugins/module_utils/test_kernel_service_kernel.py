# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel says of itself, in files like those of machines that are not at hand."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_kernel import (
    SECURE_BOOT,
    Kernel,
)

VARIABLE = "sys/firmware/efi/efivars/" + SECURE_BOOT
LOCKDOWN = "sys/kernel/security/lockdown"
ENFORCED = "sys/module/module/parameters/sig_enforce"


@pytest.fixture
def kernel(tmp_path):
    """A function: the kernel of a root with these files."""

    def make(files=None, folders=()):
        for folder in folders:
            (tmp_path / folder).mkdir(parents=True)
        for path, data in (files or {}).items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return Kernel(str(tmp_path))

    return make


@pytest.mark.parametrize(
    ("files", "folders", "state"),
    [
        ({VARIABLE: b"\6\0\0\0\1"}, (), "enabled"),
        ({VARIABLE: b"\6\0\0\0\0"}, (), "disabled"),
        ({VARIABLE: b"\6\0\0\0"}, (), "unknown"),
        ({}, ("sys/firmware/efi",), "unknown"),
        ({}, ("sys/firmware/acpi",), "disabled"),
        ({}, (), "unknown"),
    ],
)
def test_secure_boot(kernel, files, folders, state):
    assert kernel(files, folders).secure_boot() == state


@pytest.mark.parametrize(
    ("files", "state", "wanted"),
    [
        ({LOCKDOWN: b"[none] integrity confidentiality\n"}, "none", False),
        ({LOCKDOWN: b"none [integrity] confidentiality\n"}, "integrity", True),
        ({LOCKDOWN: b"none integrity [confidentiality]\n"}, "confidentiality", True),
        ({LOCKDOWN: b"[none] integrity confidentiality\n", ENFORCED: b"Y\n"}, "none", True),
        ({ENFORCED: b"N\n"}, "unknown", False),
        # An upstream kernel does not lock itself down for Secure Boot.
        (
            {LOCKDOWN: b"[none] integrity confidentiality\n", VARIABLE: b"\6\0\0\0\1"},
            "none",
            False,
        ),
        ({VARIABLE: b"\6\0\0\0\1"}, "unknown", True),
    ],
)
def test_lockdown_and_signatures(kernel, files, state, wanted):
    found = kernel(files)
    assert found.lockdown() == state
    assert found.wants_signatures() is wanted


@pytest.mark.parametrize(
    ("value", "letters"), [(0, ""), (1, "P"), (12288, "OE"), (4609, "PWO"), (1 << 19, "J")]
)
def test_taint(kernel, value, letters):
    assert kernel({"proc/sys/kernel/tainted": b"%d\n" % value}).tainted() == letters


def test_nothing_of_it_is_there(kernel):
    found = kernel()
    assert found.loaded() is None
    assert found.device() == "/dev/wfpatch: No such file or directory"
    assert found.exposed() is None
    assert not found.takes_modules()
    assert "CAP_SYS_MODULE" in found.obstacle()


def test_a_module_that_is_built_in_is_not_loaded(kernel):
    """It has a folder in /sys/module for its parameters, and no initstate."""
    assert kernel({"sys/module/wfpatch/parameters/a": b"1\n"}).loaded() is None
