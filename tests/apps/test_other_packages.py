# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing knows the demo: other packages go through the same commands, or are refused."""

from __future__ import annotations

import pathlib
import subprocess

import live_patching
import load_client
import pytest
from sshfleet.fixture import FleetFactory


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> live_patching.Signer:
    return live_patching.make_signer(tmp_path_factory.mktemp("signer"))


def test_a_library_of_another_package(
    ssh_fleet: FleetFactory, tmp_path: pathlib.Path, signer: live_patching.Signer
) -> None:
    """libevent's fix, in the memcached that maps the library, under load."""
    recipe = "libevent-cve-2026-63381"
    bundle, said = live_patching.build(recipe, tmp_path, signer)
    assert bundle, said
    assert said["functions"] == ["evbuffer_add_buffer_reference"]
    fleet = ssh_fleet(1, "memcached")
    inner = fleet.host("host01").services["memcached"]
    settings = {"wfpatch_patches": [str(bundle)], "wfpatch_signers_file": str(signer.allowed)}
    network = fleet.in_network("host01")
    with load_client.running("memcached", "--rate=300", prefix=network) as load:
        run = live_patching.play("patch", fleet.inventory, tmp_path, **settings)
        assert run.code == 0, run.output
        (process,) = run.processes("host01")
        assert process["pid"] == inner
        assert process["object"]["name"].startswith("libevent-2.1.so")
        assert live_patching.names([process], "patched") == [recipe]
        outer = fleet.outer_pid("host01", inner)
        agrees, seen = live_patching.gdb_agrees(outer, inner, run.report, "host01")
        assert agrees, seen
        run = live_patching.play("revert", fleet.inventory, tmp_path, **settings)
        assert run.code == 0, run.output
        assert live_patching.names(run.processes("host01"), "vulnerable") == [recipe]
        verdict = load.stop()
    assert verdict["verdict"] == "pass", verdict


def test_a_changed_structure_is_refused(
    tmp_path: pathlib.Path, signer: live_patching.Signer
) -> None:
    """apr-util's fix gives a structure a new member; the recipe says why that cannot be live."""
    bundle, said = live_patching.build("apr-util-cve-2026-32327", tmp_path, signer)
    assert bundle is None
    assert said["reason"] == "data_layout_changed"
    assert "apr_xml_parser" in said["message"]
    assert not (tmp_path / "apr-util-cve-2026-32327" / "bundle.json").exists()


@pytest.mark.slow
def test_a_server_of_another_package(
    ssh_fleet: FleetFactory, tmp_path: pathlib.Path, signer: live_patching.Signer
) -> None:
    """slapd, which is multi-threaded and confined in no way; its build takes minutes."""
    recipe = "openldap-utf8-validate"
    bundle, said = live_patching.build(recipe, tmp_path, signer)
    assert bundle, said
    fleet = ssh_fleet(1, "slapd")
    inner = fleet.host("host01").services["slapd"]

    def search() -> subprocess.CompletedProcess[str]:
        """A search whose value has two-byte characters, so that it passes through the function."""
        base = ("ldapsearch", "-x", "-H", "ldap://127.0.0.1", "-b", "dc=nodomain")
        return fleet.run("host01", *base, "(description=Z\u00fcrich)")

    assert search().returncode == 0
    settings = {"wfpatch_patches": [str(bundle)], "wfpatch_signers_file": str(signer.allowed)}
    run = live_patching.play("patch", fleet.inventory, tmp_path, **settings)
    assert run.code == 0, run.output
    assert live_patching.names(run.processes("host01"), "patched") == [recipe]
    outer = fleet.outer_pid("host01", inner)
    agrees, seen = live_patching.gdb_agrees(outer, inner, run.report, "host01")
    assert agrees, seen
    assert search().returncode == 0
    run = live_patching.play("revert", fleet.inventory, tmp_path, **settings)
    assert run.code == 0, run.output
    assert search().returncode == 0
    assert fleet.outer_pid("host01", inner) == outer
