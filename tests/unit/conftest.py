# SPDX-License-Identifier: GPL-3.0-or-later
"""Signed patches, and a host whose applier is the stand-in."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml
from ansible.module_utils import basic
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._canonical_json import canonical_json

FLEET = pathlib.Path(__file__).resolve().parents[2]
FAKE_APPLIER = pathlib.Path(__file__).parent / "fixtures" / "fake_applier.py"
BUILD_ID = "0123456789abcdef0123456789abcdef01234567"


def manifest(patch_id="example-a", cve="CVE-2026-0001", elf=b"\x7fELF", **changes):
    """A valid manifest."""
    return {
        "schema": 1,
        "id": patch_id,
        "summary": "Length check in the parser",
        "cves": [{"id": cve, "severity": "high", "references": ["https://example.org/a"]}],
        "released": "2026-01-15",
        "target": {
            "object": "example",
            "build_ids": [BUILD_ID],
            "package": "example",
            "versions": ["1:1.0-1"],
            "architecture": "amd64",
        },
        "artifact": {
            "file": "patch.elf",
            "sha256": hashlib.sha256(elf).hexdigest(),
            "size": len(elf),
        },
        "policy": "auto",
        "timeouts": {"transition": 30},
        "stragglers": "leave",
        "requires": [],
        "conflicts": [],
        "supersedes": [],
        "health_check": None,
        "stack_switching": "none",
        **changes,
    }


@pytest.fixture(scope="session")
def signer(tmp_path_factory):
    """A signing key; ``allowed_signers`` beside it lists it alone."""
    folder = tmp_path_factory.mktemp("signer")
    key = folder / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)], check=True
    )
    public = key.with_suffix(".pub").read_text().strip()
    (folder / "allowed_signers").write_text(f'signer@example namespaces="wfpatch" {public}\n')
    return key


@pytest.fixture
def make_patch(tmp_path, signer):
    """A function that makes a signed patch's folder: make_patch(id, cve, elf=..., **changes)."""

    def make(patch_id="example-a", cve="CVE-2026-0001", elf=None, **changes):
        elf = elf or b"\x7fELF" + patch_id.encode()
        value = manifest(patch_id, cve, elf, **changes)
        folder = tmp_path / "patches" / patch_id
        folder.mkdir(parents=True)
        (folder / "manifest.yml").write_text("---\n" + yaml.safe_dump(value, sort_keys=False))
        (folder / "bundle.json").write_bytes(canonical_json(value))
        (folder / "patch.elf").write_bytes(elf)
        subprocess.run(
            ["ssh-keygen", "-q", "-Y", "sign", "-n", "wfpatch", "-f", str(signer)]
            + [str(folder / "bundle.json")],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        return folder

    return make


def payload(folder):
    """A patch's folder as the action halves send it."""
    files = {"bundle": "bundle.json", "signature": "bundle.json.sig", "patch": "patch.elf"}
    contents = {field: (folder / name).read_bytes() for field, name in files.items()}
    encoded = {field: base64.b64encode(data).decode() for field, data in contents.items()}
    return {"id": folder.name, **encoded}


class Exited(Exception):
    """A module ended; ``result`` is what it returned."""

    def __init__(self, result):
        super().__init__(result.get("msg"))
        self.result = result


class FakeHost:
    """A host of which the store and the stand-in for the applier lie in a folder."""

    def __init__(self, folder, signer):
        self.store = folder / "store"
        self.store.mkdir(parents=True)
        self.program = folder / "wfpatch"
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_APPLIER} "$@"\n')
        self.program.chmod(0o755)
        self.allowed_signers = folder / "allowed_signers"
        shutil.copy(signer.with_name("allowed_signers"), self.allowed_signers)
        self.tell(processes=[{"pid": 812, "comm": "example", "patches": []}])

    def tell(self, **settings):
        """Change what the stand-in says; see its documentation."""
        path = self.store / "fake.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, **settings}))

    @property
    def processes(self):
        """The processes as the stand-in knows them."""
        return json.loads((self.store / "fake.json").read_text())["processes"]

    def add(self, folder):
        """Put a patch into the store."""
        target = self.store / "bundles" / folder.name
        target.mkdir(parents=True)
        for name in ("bundle.json", "bundle.json.sig", "patch.elf"):
            shutil.copy(folder / name, target / name)

    def paths(self):
        """The options that every module has."""
        return {
            "program": str(self.program),
            "store": str(self.store),
            "allowed_signers": str(self.allowed_signers),
        }


@pytest.fixture
def host(tmp_path, signer):
    """A host with one process and nothing in its store."""
    return FakeHost(tmp_path / "host", signer)


@pytest.fixture
def run_module(monkeypatch, tmp_path):
    """A function that runs a module in this process: run_module(module, check=..., **options)."""
    remote_tmp = tmp_path / "remote_tmp"
    remote_tmp.mkdir()

    def exit_json(_self, **result):
        raise Exited(result)

    def fail_json(_self, **result):
        raise Exited({**result, "failed": True})

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", exit_json)
    monkeypatch.setattr(basic.AnsibleModule, "fail_json", fail_json)

    def run(module, check=False, **options):
        arguments = {
            **{name: value for name, value in options.items() if value is not None},
            "_ansible_check_mode": check,
            "_ansible_diff": True,
            "_ansible_remote_tmp": str(remote_tmp),
            "_ansible_tmpdir": str(remote_tmp),
        }
        data = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", data)
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(Exited) as exited:
            module.main()
        assert not os.listdir(remote_tmp), "the module left something behind"
        return exited.value.result

    return run
