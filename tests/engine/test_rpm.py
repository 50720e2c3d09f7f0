# SPDX-License-Identifier: GPL-3.0-or-later
"""The package of a file by RPM's own database, in a root that has rpm."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
from wfpatch.evidence.packages import Rpm, System

TOP = Path(__file__).resolve().parents[2]
PACKAGES = "rpm"

#: A command in the root, whose /tmp is a folder of the test's.
INSIDE = """#!/bin/sh
exec unshare --mount --propagation private sh -c '
    mount --bind "$1" "$2/tmp" && mount -t proc proc "$2/proc" && shift && exec chroot "$@"
' sh {tmp} {root} "$@"
"""
#: A package with one file and an epoch, in a database of its own.
BUILD = r"""
set -e
cd /tmp
cat >served.spec <<'SPEC'
Name: served
Epoch: 2
Version: 1.0
Release: 3.fc40
Summary: A small service
License: GPL-3.0-or-later
%description
A small service.
%install
mkdir -p %{buildroot}/usr/sbin
echo served >%{buildroot}/usr/sbin/served
%files
/usr/sbin/served
SPEC
rpmbuild -bb --define "_topdir /tmp/build" --define "_dbpath /tmp/db" --target x86_64 served.spec
rpm --dbpath /tmp/db --initdb
rpm --dbpath /tmp/db --install --nodeps --justdb build/RPMS/x86_64/*.rpm
"""


@pytest.mark.slow
def test_the_package_that_rpm_names(tmp_path):
    made = subprocess.run(
        [TOP / "setup" / "root", "bookworm", PACKAGES], check=True, capture_output=True, text=True
    )
    shared = tmp_path / "tmp"
    shared.mkdir()
    enter = tmp_path / "enter"
    enter.write_text(INSIDE.format(tmp=shared, root=made.stdout.strip()))
    enter.chmod(0o755)
    done = subprocess.run([enter, "/bin/sh", "-c", BUILD], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rpm = tmp_path / "rpm"
    rpm.write_text(f'#!/bin/sh\nexec {enter} rpm --dbpath /tmp/db "$@"\n')
    rpm.chmod(0o755)
    found = Rpm(str(rpm)).owners(["/usr/sbin/served", "/no/such"], System("fedora", "40", ""))
    assert {path: dataclasses.asdict(package) for path, package in found.items()} == {
        "/usr/sbin/served": {
            "name": "served",
            "version": "2:1.0-3.fc40",
            "architecture": "x86_64",
            "source": "served",
            "source_version": "",
            "purl": "pkg:rpm/fedora/served@1.0-3.fc40?arch=x86_64&epoch=2&distro=fedora-40",
        }
    }
