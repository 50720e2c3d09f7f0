# SPDX-License-Identifier: GPL-3.0-or-later
"""DKMS tells its state in the words of two generations."""

from __future__ import annotations

from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service import COMPILER
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_dkms import (
    parse_status,
)


def test_dkms_3():
    assert parse_status(
        "wfpatch/0.1.0, 6.1.0-56-amd64, x86_64: installed\n"
        "wfpatch/0.1.0, 6.12.1, x86_64: built\n"
        "wfpatch/0.2.0: added\n"
        "wfpatch/0.3.0, 6.1.0-56-amd64, x86_64: installed "
        "(WARNING! Diff between built and installed module!)\n"
        "other/0.1.0, 6.1.0-56-amd64, x86_64: installed\n"
    ) == {
        "0.1.0": {"6.1.0-56-amd64": "installed", "6.12.1": "built"},
        "0.2.0": {},
        "0.3.0": {"6.1.0-56-amd64": "built"},
    }


def test_dkms_2():
    assert parse_status(
        "wfpatch, 0.1.0, 5.10.0-30-amd64, x86_64: installed\nwfpatch, 0.2.0: added\n"
    ) == {"0.1.0": {"5.10.0-30-amd64": "installed"}, "0.2.0": {}}


def test_nothing():
    assert parse_status("") == {}


def test_the_compiler_that_headers_name():
    for text, name in {
        "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0": "gcc-12",
        "x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0": "x86_64-linux-gnu-gcc-14",
        "gcc (GCC) 11.4.1 20231218 (Red Hat 11.4.1-3)": "gcc",
        "clang version 17.0.6": "clang",
        "Debian clang version 14.0.6": "clang",
    }.items():
        assert COMPILER.search(f'A=y\nCONFIG_CC_VERSION_TEXT="{text}"\n')[1] == name
