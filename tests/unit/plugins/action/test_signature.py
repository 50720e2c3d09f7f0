# SPDX-License-Identifier: GPL-3.0-or-later
"""Bundles are signed by keys in files and agents, and by none that the hosts would not believe."""

from __future__ import annotations

import os
import subprocess
from unittest import mock

import pytest
from ansible.playbook.task import Task
from ansible_collections.wfpatch.fleet.plugins.action.signature import ActionModule
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _signing as signing


@pytest.fixture
def run(tmp_path):
    """run(check=..., **args): the task's result."""

    def run(check=False, **args):
        task = mock.MagicMock(spec=Task)
        task.async_val = False
        task.args = {name: value for name, value in args.items() if value is not None}
        task.check_mode = check
        task.diff = True
        action = ActionModule(
            task,
            connection=mock.MagicMock(),
            play_context=mock.MagicMock(check_mode=check),
            loader=mock.MagicMock(),
            templar=mock.MagicMock(),
            shared_loader_obj=None,
        )
        return action.run(task_vars={})

    return run


def make_key(path, *words):
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "", "-f", str(path), *words], check=True)
    return path


def public(key):
    return key.with_name(key.name + ".pub").read_text()


@pytest.fixture
def key(tmp_path):
    return make_key(tmp_path / "release", "-t", "ed25519")


@pytest.fixture
def signers(tmp_path, key):
    path = tmp_path / "signers"
    path.write_text(f'release@example namespaces="wfpatch" {public(key)}')
    return path


def verifies(folder, signers):
    words = ["ssh-keygen", "-Y", "verify", "-n", "wfpatch", "-f", str(signers)]
    words += ["-I", "release@example", "-s", str(folder / "bundle.json.sig")]
    done = subprocess.run(
        words, input=(folder / "bundle.json").read_bytes(), capture_output=True, check=False
    )
    return done.returncode == 0


def test_sign_check_and_again(run, make_patch, key, signers):
    first, second = make_patch("example-a"), make_patch("example-b", cve="CVE-2026-0002")
    (second / "bundle.json.sig").unlink()
    given = {"src": [str(first), str(second)], "key": str(key), "signers": str(signers)}
    planned = run(check=True, **given)
    assert [each["changed"] for each in planned["bundles"]] == [True, True]
    assert not (second / "bundle.json.sig").exists()
    done = run(**given)
    assert done["changed"] and "failed" not in done
    assert [each["signer"] for each in done["bundles"]] == ["release@example"] * 2
    assert done["fingerprint"] in subprocess.check_output(
        ["ssh-keygen", "-l", "-f", str(key)], text=True
    )
    assert done["diff"]["after"].count(f"signed by {done['fingerprint']}") == 2
    assert verifies(first, signers) and verifies(second, signers)
    again = run(**given)
    assert not again["changed"] and again["bundles"][0]["signer"] == "release@example"
    assert os.stat(first / "bundle.json.sig").st_mode & 0o777 == 0o644
    assert sorted(os.listdir(first)) == [
        "bundle.json",
        "bundle.json.sig",
        "manifest.yml",
        "patch.elf",
    ]


def test_a_rotated_key_signs_anew(run, make_patch, key, signers, tmp_path):
    folder = make_patch()
    assert run(src=[str(folder)], key=str(key), signers=str(signers))["changed"]
    new = make_key(tmp_path / "new", "-t", "ecdsa")
    refused = run(src=[str(folder)], key=str(new), signers=str(signers))
    assert (refused["failed"], refused["reason"]) == (True, "signer_unknown")
    assert verifies(folder, signers), "the signature that hosts believe stays"
    with open(signers, "a", encoding="utf-8") as file:
        file.write(f'release@example namespaces="wfpatch" {public(new)}')
    assert run(src=[str(folder)], key=str(new), signers=str(signers))["changed"]
    found = signing.signing_key((folder / "bundle.json.sig").read_bytes())
    assert found == signing.public_blob(str(new))
    assert verifies(folder, signers)


def test_a_revoked_key_signs_nothing(run, make_patch, key, signers, tmp_path):
    folder = make_patch()
    before = (folder / "bundle.json.sig").read_bytes()
    revoked = tmp_path / "revoked"
    revoked.write_text(public(key))
    given = {"key": str(key), "signers": str(signers), "revoked": str(revoked)}
    found = run(src=[str(folder)], **given)
    assert (found["failed"], found["reason"]) == (True, "signer_revoked")
    assert (folder / "bundle.json.sig").read_bytes() == before
    # Nor is it a success that it signed before it was revoked.
    run(src=[str(folder)], key=str(key))
    assert run(src=[str(folder)], **given)["reason"] == "signer_revoked"


def test_a_key_that_only_the_agent_has(run, make_patch, key, signers, tmp_path, monkeypatch):
    address = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.PIPE)
    try:
        agent.stdout.readline()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        subprocess.run(["ssh-add", "-q", str(key)], check=True, capture_output=True)
        key.unlink()
        folder = make_patch()
        given = {"src": [str(folder)], "key": f"{key}.pub", "signers": str(signers)}
        assert run(**given)["changed"]
        assert verifies(folder, signers)
        assert not run(**given)["changed"]
    finally:
        agent.terminate()
        agent.wait(10)
        agent.stdout.close()
    monkeypatch.delenv("SSH_AUTH_SOCK")
    (folder / "bundle.json.sig").unlink()
    found = run(**given)
    assert (found["failed"], found["reason"]) == (True, "signing_failed")


def test_a_passphrase_is_not_asked_for(run, make_patch, tmp_path):
    key = tmp_path / "secret"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True
    )
    found = run(src=[str(make_patch())], key=str(key))
    assert (found["failed"], found["reason"]) == (True, "signing_failed")


def test_no_key_and_no_patch(run, make_patch, tmp_path):
    found = run(src=[str(make_patch())], key=str(tmp_path / "none"))
    assert (found["failed"], found["reason"]) == (True, "signing_failed")
    (tmp_path / "bad.pub").write_text("ssh-ed25519 !!!\n")
    found = run(src=[str(make_patch("example-b"))], key=str(tmp_path / "bad.pub"))
    assert (found["failed"], found["reason"]) == (True, "signing_failed")


def test_what_is_not_valid_is_not_signed(run, make_patch, key):
    folder = make_patch()
    (folder / "bundle.json.sig").unlink()
    (folder / "patch.elf").write_bytes(b"\x7fELF another")
    found = run(src=[str(folder)], key=str(key))
    assert (found["failed"], found["reason"]) == (True, "manifest_invalid")
    assert any("digest of patch.elf" in text for text in found["violations"])
    assert not any("bundle.json.sig" in text for text in found["violations"])
    assert not (folder / "bundle.json.sig").exists()


def test_what_is_no_signature():
    assert signing.signing_key(b"") is None
    head, end = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
    for body in (b"", b"!!!!", b"U1NIU0lH", b"U1NIU0lHAAAAAf////8="):
        assert signing.signing_key(b"\n".join((head, body, end, b""))) is None
