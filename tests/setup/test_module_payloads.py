# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible sends to a host for each module stays small.

With pipelining the whole of it goes through one SSH channel for every task and host. It grows with
each module_utils import, direct or not, so the limit is on the built payload and not on the file.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
#: Bytes, compressed as sent, that a module may add to what ansible-core sends for any module
#: (ansible.builtin.ping: 168,694 with 2.19).
LIMIT = 16_000
#: What does more goes to a host once in a while only: when the kernel service is installed.
LARGER = {"kernel_service": 30_000}
#: Those that run on the controller only, as action plugins.
CONTROLLER_ONLY = {"compliance_report", "fleet_report", "manifest", "rollout", "signature"}
MODULES = sorted(
    path.stem
    for path in (TOP / "plugins" / "modules").glob("*.py")
    if path.stem not in CONTROLLER_ONLY
)

BUILD = """
import sys
from ansible.plugins.loader import init_plugin_loader, module_loader
init_plugin_loader()
from ansible.executor.module_common import modify_module
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
name = sys.argv[1]
found = module_loader.find_plugin_with_context(name)
assert found.resolved, name
built = modify_module(
    module_name=found.resolved_fqcn, module_path=found.plugin_resolved_path, module_args={},
    templar=Templar(loader=DataLoader()),
    task_vars={"ansible_python_interpreter": "/usr/bin/python3"},
    module_compression="ZIP_DEFLATED",
)
assert built.module_style == "new", built.module_style
sys.stdout.buffer.write(built.b_module_data)
"""


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    """Where the checkout is placed as a collection."""
    path = tmp_path_factory.mktemp("collections")
    subprocess.run([TOP / "setup" / "collection", path], check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module")
def size(collections, tmp_path_factory):
    """A function: the size in bytes of what is sent for a module of that name."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_LOCAL_TEMP": str(home),
        "HOME": str(home),
    }

    def build(name):
        done = subprocess.run(
            [sys.executable, "-c", BUILD, name], cwd=home, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
        return len(done.stdout)

    return build


@pytest.fixture(scope="module")
def bare(size):
    return size("ansible.builtin.ping")


@pytest.mark.parametrize("module", MODULES)
def test_a_payload_is_small(module, size, bare):
    assert 0 < size(f"wfpatch.fleet.{module}") - bare <= LARGER.get(module, LIMIT)


def test_pipelining_is_on():
    settings = configparser.ConfigParser()
    settings.read(TOP / "ansible.cfg")
    assert settings.getboolean("connection", "pipelining")
