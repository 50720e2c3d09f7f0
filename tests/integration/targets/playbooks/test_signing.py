# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches are signed by a playbook; what a revoked key signed is applied nowhere."""

from __future__ import annotations

from conftest import FLEET, Signer

HERE = ("--limit", "here")


def test_sign_apply_revoke_and_sign_anew(playbooks, patch, signer, start):
    service = start()
    (patch / "bundle.json.sig").unlink()
    signing = {
        "wfpatch_patches": [str(patch)],
        "wfpatch_sign_key": str(signer.key),
        "wfpatch_signers_file": str(signer.allowed_signers),
    }
    applying = {**signing, "wfpatch_applier_src": str(FLEET / "dist/wfpatch")}
    assert playbooks.succeed("wfpatch.fleet.sign", "--check", **signing).changed == {"localhost": 1}
    assert not (patch / "bundle.json.sig").exists()
    assert playbooks.succeed("wfpatch.fleet.sign", **signing).changed == {"localhost": 1}
    again = playbooks.succeed("wfpatch.fleet.sign", **signing)
    assert again.changed == {"localhost": 0}
    assert "was signed by SHA256:" in again.output and "of signer@example" in again.output
    playbooks.succeed("wfpatch.fleet.patch", *HERE, **applying)
    assert service.answer() == 2
    playbooks.succeed("wfpatch.fleet.revert", *HERE, **applying)

    # The key was lost: the hosts get the list that says so, and what it signed is applied no more.
    revoked = playbooks.folder / "revoked"
    revoked.write_text(signer.key.with_suffix(".pub").read_text())
    for options in (("--check",), ()):
        run = playbooks.run(
            "wfpatch.fleet.patch", *HERE, *options, wfpatch_revoked_file=str(revoked), **applying
        )
        assert run.code == 2
        assert playbooks.report["hosts"][0]["reason"] == "signer_revoked", options
        assert (playbooks.place / "etc/revoked_keys").exists() != bool(options)
    assert service.answer() == 1

    new = Signer(playbooks.folder, "new")
    signing["wfpatch_revoked_file"] = str(revoked)
    signing["wfpatch_signers_file"] = str(new.allowed_signers)
    signing["wfpatch_sign_key"] = str(new.key)
    assert playbooks.succeed("wfpatch.fleet.sign", **signing).changed == {"localhost": 1}
    applying = {**applying, **signing}
    playbooks.succeed("wfpatch.fleet.patch", *HERE, **applying)
    assert service.answer() == 2


def test_signing_nothing_is_no_success(playbooks, patch, signer):
    key = {"wfpatch_sign_key": str(signer.key)}
    assert playbooks.run("wfpatch.fleet.sign", wfpatch_patches=[], **key).code == 2
    assert playbooks.run("wfpatch.fleet.sign", wfpatch_patches=[str(patch)]).code == 2
    limited = playbooks.run("wfpatch.fleet.sign", *HERE, wfpatch_patches=[str(patch)], **key)
    assert limited.code != 0 and "empty_host_set" in limited.output
