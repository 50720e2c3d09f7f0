# SPDX-License-Identifier: GPL-3.0-or-later
"""The module with the real applier: what the host lacks is stood in for, and nothing stays."""

from __future__ import annotations

import base64
import json
import os
import sys

import pytest
from ansible_collections.wfpatch.fleet.plugins.modules import compliance_evidence
from ansible_collections.wfpatch.fleet.tests.unit.conftest import FLEET, payload

APPLIER = FLEET / "dist" / "wfpatch"


@pytest.fixture
def gather(host, run_module):
    host.program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {APPLIER} "$@"\n')

    def run(**options):
        return run_module(compliance_evidence, **{**host.paths(), **options})

    return run


def test_evidence_has_all_that_its_schema_asks_for(gather):
    found = gather()
    assert (found["changed"], found["reason"]) == (False, None)
    # Whether it fits is the action half's to say, and in the schema is what it looks for.
    schema = json.loads((FLEET / "schemas" / "evidence.schema.json").read_text())
    assert sorted(found["evidence"]) == sorted(schema["required"])
    assert found["evidence"]["cves"] == []


def test_bundles_that_were_sent_along_are_read_beside_the_hosts_own(gather, host, make_patch):
    """Both are looked at; these two are no patches, and that is said of each."""
    host.add(make_patch("example-a"))
    sent = payload(make_patch("example-b"))
    found = gather(payloads=[sent])["evidence"]["refused"]
    assert [(each["id"], each["reason"]) for each in found] == [
        ("example-a", "patch_elf_malformed"),
        ("example-b", "patch_elf_malformed"),
    ]
    assert os.listdir(host.store / "bundles") == ["example-a"]


def test_signers_that_were_sent_along_come_beside_the_hosts_own(gather, host, tmp_path):
    seen = tmp_path / "seen"
    host.program.write_text(
        f'#!/bin/sh\ncat "$4" >{seen}\nexec {sys.executable} -I {APPLIER} "$@"\n'
    )
    own = host.allowed_signers.read_text()
    gather()
    assert seen.read_text() == own
    gather(signers="other ssh-ed25519 AAAA\n")
    assert seen.read_text() == own + "other ssh-ed25519 AAAA\n"
    assert host.allowed_signers.read_text() == own
    host.allowed_signers.unlink()
    gather(signers="other ssh-ed25519 AAAA\n")
    assert seen.read_text() == "other ssh-ed25519 AAAA\n"


def test_who_is_revoked_on_the_host_is_so_for_what_is_sent_along(gather, host, tmp_path):
    """Unless the controller has a list of its own, which is what the next run brings there."""
    seen = tmp_path / "seen"
    host.program.write_text(
        f'#!/bin/sh\ncat "$(dirname "$4")/revoked_keys" >{seen}\n'
        f'exec {sys.executable} -I {APPLIER} "$@"\n'
    )
    host.allowed_signers.with_name("revoked_keys").write_bytes(b"the host's\n")
    gather(signers="other ssh-ed25519 AAAA\n")
    assert seen.read_bytes() == b"the host's\n"
    ours = base64.b64encode(b"ours\n").decode()
    gather(signers="other ssh-ed25519 AAAA\n", revoked=ours)
    assert seen.read_bytes() == b"ours\n"
    gather(revoked=ours)
    assert seen.read_bytes() == b"ours\n"
    assert host.allowed_signers.with_name("revoked_keys").read_bytes() == b"the host's\n"


def test_advisories_reach_the_applier(gather):
    known = {
        "cve": "CVE-2026-0001",
        "severity": "low",
        "object": "example",
        "package": "example",
        "build_ids": [],
        "fixed": {"build_ids": [], "versions": []},
        "unpatchable": None,
    }
    found = gather(known=json.dumps({"schema": 1, "advisories": [known]}))
    assert [(each["id"], each["state"]) for each in found["evidence"]["cves"]] == [
        ("CVE-2026-0001", "not_affected")
    ]
    found = gather(known='{"schema": 2}')
    assert (found["failed"], found["reason"]) == (True, "manifest_invalid")


def test_a_host_without_an_applier(gather, host):
    host.program.unlink()
    found = gather()
    assert (found["failed"], found["reason"]) == (True, "applier_missing")
    assert gather(staged=str(APPLIER))["reason"] is None
    assert not host.program.exists()
