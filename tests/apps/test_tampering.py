# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof by tampering: what is changed behind the tool's back in live memory, it says by itself."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

import live_patching
import pytest
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

RECIPE = "memcached-incr-large-number"
#: Two functions with the same parameters: a call that is led to the other one does no harm.
FUNCTION, OTHER = "safe_strtoull", "safe_strtoull_hex"
TAMPERED = 5


@dataclasses.dataclass
class Patched:
    """A memcached that was patched, and what the report and gdb say of it."""

    fleet: Fleet
    folder: pathlib.Path
    settings: dict[str, Any]
    pid: int
    inner: int
    report: dict[str, Any]
    functions: dict[str, dict[str, Any]]

    def write(self, address: int, data: bytes) -> bytes:
        """Changes the process' memory; returns what was there."""
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            before = os.pread(memory.fileno(), len(data), address)
            os.pwrite(memory.fileno(), data, address)
        return before

    def applier(self, command: str) -> tuple[int, dict[str, Any]]:
        """Exit code and result of the applier on the host."""
        done = self.fleet.run("host01", "/usr/local/sbin/wfpatch", "--json", command)
        return done.returncode, json.loads(done.stdout)

    def expect_seen(self) -> None:
        """status, verify, the playbook, its report and gdb: all say that something is wrong."""
        for command in ("status", "verify"):
            code, result = self.applier(command)
            assert code == TAMPERED, result
            (process,) = result["processes"]
            assert process["reason"] == "tampered"
            assert process["state"] != "patched"
        run = live_patching.play("status", self.fleet.inventory, self.folder, **self.settings)
        assert run.code != 0
        assert run.report["state"] != "patched"
        agrees, seen = live_patching.gdb_agrees(self.pid, self.inner, self.report, "host01")
        assert not agrees, seen

    def expect_whole(self) -> None:
        """Nothing is wrong any more."""
        assert self.applier("status")[0] == 0
        assert self.applier("verify")[0] == 0


@pytest.fixture(scope="module")
def patched(ssh_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Patched:
    folder = tmp_path_factory.mktemp("tampering")
    signer = live_patching.make_signer(folder)
    bundle, said = live_patching.build(RECIPE, folder, signer)
    assert bundle, said
    fleet = ssh_fleet(1, "memcached")
    settings = {"wfpatch_patches": [str(bundle)], "wfpatch_signers_file": str(signer.allowed)}
    run = live_patching.play("patch", fleet.inventory, folder, **settings)
    assert run.code == 0, run.output
    inner = fleet.host("host01").services["memcached"]
    pid = fleet.outer_pid("host01", inner)
    agrees, seen = live_patching.gdb_agrees(pid, inner, run.report, "host01")
    assert agrees, seen
    functions = {function["name"]: function for function in json.loads(seen)["functions"]}
    return Patched(fleet, folder, settings, pid, inner, run.report, functions)


def test_a_redirected_table_slot_is_seen(patched: Patched) -> None:
    function = patched.functions[FUNCTION]
    elsewhere = set(patched.functions[OTHER]["threads"].values()).pop()
    # Row 0, in which threads that never entered the function are and new ones begin.
    before = patched.write(function["cell"], elsewhere.to_bytes(8, "little"))
    try:
        patched.expect_seen()
    finally:
        patched.write(function["cell"], before)
    patched.expect_whole()


def test_an_entry_jump_taken_away_is_seen(patched: Patched) -> None:
    """The first bytes as in the file again: calls reach the old code, whatever the table says."""
    entry = patched.functions[FUNCTION]["entry"]
    shipped = shipped_bytes(patched.pid, entry, 5)
    before = patched.write(entry, shipped)
    assert before != shipped
    try:
        patched.expect_seen()
    finally:
        patched.write(entry, before)
    patched.expect_whole()


def shipped_bytes(pid: int, address: int, length: int) -> bytes:
    """The bytes of the object's file for that address.

    The page may have been replaced by an anonymous one: the mapping before it counts.
    """
    found = None
    for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, _, offset, _, _, *path = line.split(maxsplit=5)
        start = int(addresses.split("-")[0], 16)
        if start <= address and path and path[0].startswith("/"):
            found = (path[0], int(offset, 16) + address - start)
    assert found, f"nothing is mapped below {address:#x}"
    with open(f"/proc/{pid}/root{found[0]}", "rb") as file:
        return os.pread(file.fileno(), length, found[1])
