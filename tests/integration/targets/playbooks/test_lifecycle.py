# SPDX-License-Identifier: GPL-3.0-or-later
"""A running service is patched and reverted by the playbooks, and the report says so."""

from __future__ import annotations

import json

import yaml
from conftest import FLEET, write_manifest

HERE = ("--limit", "here")


def settings(patch, signer):
    return {
        "wfpatch_patches": [str(patch)],
        "wfpatch_signers_file": str(signer.allowed_signers),
        "wfpatch_applier_src": str(FLEET / "dist/wfpatch"),
    }


def only_host(report):
    assert [host["name"] for host in report["hosts"]] == ["here"]
    return report["hosts"][0]


def test_the_whole_life_of_a_patch(playbooks, patch, signer, start):
    service = start()
    given = settings(patch, signer)
    assert service.answer() == 1

    # Check mode on a host that has nothing yet: all is planned, nothing is there afterwards.
    planned = playbooks.succeed("wfpatch.fleet.patch", *HERE, "--check", "--diff", **given)
    assert planned.changed["here"] == 3
    assert "patches in force: counting-answer" in planned.output
    assert not playbooks.place.exists()
    assert playbooks.report["check_mode"] is True
    assert only_host(playbooks.report)["state"] == "vulnerable"
    assert service.answer() == 1

    patched = playbooks.succeed("wfpatch.fleet.patch", *HERE, wfpatch_progress="always", **given)
    assert patched.changed == {"here": 3}
    assert service.answer() == 2
    steps = ["plan: ", "loaded ", "armed in ", "threads: ", "finished: ", "verified in "]
    places = [
        patched.output.index(f"here counting[{service.pid}] counting-answer: {step}")
        for step in steps
    ]
    assert places == sorted(places)
    host = only_host(playbooks.report)
    assert (host["state"], host["verified"]) == ("patched", True)
    (process,) = host["result"]["processes"]
    assert (process["pid"], process["generation"]) == (service.pid, 1)
    assert [function["leads_to"] for function in process["functions"]] == ["new"]
    assert playbooks.report["complete"] is True

    again = playbooks.succeed("wfpatch.fleet.patch", *HERE, **given)
    assert again.changed == {"here": 0}
    assert "loaded " not in again.output

    status = playbooks.succeed("wfpatch.fleet.status", *HERE, wfpatch_expected=["patched"], **given)
    assert status.changed == {"here": 0}
    assert "1 hosts: 1 patched" in status.output

    planned = playbooks.succeed("wfpatch.fleet.revert", *HERE, "--check", "--diff", **given)
    assert planned.changed == {"here": 1}
    assert service.answer() == 2

    reverted = playbooks.succeed("wfpatch.fleet.revert", *HERE, **given)
    assert reverted.changed == {"here": 1}
    assert service.answer() == 1
    assert playbooks.succeed("wfpatch.fleet.revert", *HERE, **given).changed == {"here": 0}
    status = playbooks.run("wfpatch.fleet.status", *HERE, wfpatch_expected=["patched"], **given)
    assert status.code == 2
    assert only_host(playbooks.report)["state"] == "vulnerable"

    planned = playbooks.succeed("wfpatch.fleet.patch", *HERE, "--check", "--diff", **given)
    assert planned.changed == {"here": 1}
    assert "-state: vulnerable\n" in planned.output
    assert "+state: patched\n" in planned.output
    assert service.answer() == 1

    gone = playbooks.succeed("wfpatch.fleet.uninstall", *HERE, **given)
    assert gone.changed == {"here": 1}
    assert f"counting[{service.pid}] counting: the region and the armed entries" in gone.output
    left = [path.name for path in playbooks.place.rglob("*") if path.is_file()]
    assert left == ["audit.log"], "what was done stays on record"
    assert service.answer() == 1
    assert playbooks.succeed("wfpatch.fleet.uninstall", *HERE, **given).changed == {"here": 0}

    # A new applier finds what the last one left.
    playbooks.succeed("wfpatch.fleet.patch", *HERE, **given)
    assert service.answer() == 2


def test_the_canary_stops_the_run(playbooks, patch, signer, start):
    """``there`` is told that nobody may sign, and comes first: ``here`` is never touched."""
    service = start()
    inventory = json.loads(playbooks.inventory.read_text())
    nobody = playbooks.folder / "nobody"
    nobody.write_text("")
    children = inventory["all"]["children"]
    children["others"]["hosts"]["there"] = {"wfpatch_signers_file": str(nobody)}
    playbooks.inventory.write_text(json.dumps(inventory))
    given = settings(patch, signer)
    del given["wfpatch_signers_file"]
    children["patched"]["hosts"]["here"] = {"wfpatch_signers_file": str(signer.allowed_signers)}
    playbooks.inventory.write_text(json.dumps(inventory))
    run = playbooks.run("wfpatch.fleet.patch", wfpatch_hosts=["others", "patched"], **given)
    assert run.code == 2
    assert run.changed["here"] == 0
    assert service.answer() == 1
    report = playbooks.report
    rows = {host["name"]: (host["state"], host["reason"]) for host in report["hosts"]}
    assert rows["there"][1] == "signer_unknown"
    assert rows["here"] == ("unknown", "not_reached")
    assert report["complete"] is False
    assert "not reached: here" in run.output


def test_a_host_that_cannot_be_reached_is_in_the_report(playbooks, patch, signer, start):
    service = start()
    inventory = json.loads(playbooks.inventory.read_text())
    lost = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    inventory["all"]["children"]["others"]["hosts"]["there"] = lost
    playbooks.inventory.write_text(json.dumps(inventory))
    given = settings(patch, signer)
    run = playbooks.run("wfpatch.fleet.patch", wfpatch_serial=["100%"], **given)
    assert run.code != 0
    assert service.answer() == 2
    rows = {host["name"]: (host["state"], host["reason"]) for host in playbooks.report["hosts"]}
    assert rows == {"here": ("patched", None), "there": ("unknown", "host_unreachable")}
    run = playbooks.run("wfpatch.fleet.status", **given)
    assert run.code != 0
    rows = {host["name"]: (host["state"], host["reason"]) for host in playbooks.report["hosts"]}
    assert rows == {"here": ("patched", None), "there": ("unknown", "host_unreachable")}


def test_every_violation_is_listed_and_no_host_is_touched(playbooks, patch, signer, start):
    start()
    source = patch / "manifest.yml"
    text = source.read_text().replace("policy: auto", "policy: fast")
    source.write_text(text.replace("severity: high", "severity: urgent"))
    lines = source.read_text().splitlines()
    run = playbooks.run("wfpatch.fleet.patch", *HERE, **settings(patch, signer))
    assert run.code == 2
    for wrong in ("policy: fast", "severity: urgent"):
        number = next(index for index, line in enumerate(lines, 1) if wrong in line)
        assert f"{source}:{number}: " in run.output
    assert not playbooks.place.exists()


def test_a_manifest_that_was_signed_by_somebody_else(playbooks, patch, signer, start):
    service = start()
    manifest = yaml.safe_load((patch / "manifest.yml").read_text())
    write_manifest(patch, {**manifest, "summary": "Another text, under the old signature"})
    run = playbooks.run("wfpatch.fleet.patch", *HERE, **settings(patch, signer))
    assert run.code == 2
    assert only_host(playbooks.report)["reason"] == "signature_invalid"
    assert service.answer() == 1
    assert not (playbooks.place / "store/bundles").exists()


def test_no_process_to_patch(playbooks, patch, signer):
    given = settings(patch, signer)
    run = playbooks.run("wfpatch.fleet.patch", *HERE, **given)
    assert run.code == 2
    assert only_host(playbooks.report)["reason"] == "no_matching_process"
    playbooks.succeed("wfpatch.fleet.patch", *HERE, wfpatch_accept=["not_affected"], **given)
    assert only_host(playbooks.report)["state"] == "not_affected"


def test_no_patches_named(playbooks, signer):
    given = {"wfpatch_signers_file": str(signer.allowed_signers)}
    assert playbooks.run("wfpatch.fleet.patch", *HERE, **given).code == 2
    assert not playbooks.place.exists()


def test_names_are_not_templates(playbooks, patch, signer, start):
    """A process calls itself what it likes; nothing that it says is evaluated on the controller."""
    service = start("{{ 6 * 7 }}")
    given = settings(patch, signer)
    run = playbooks.succeed("wfpatch.fleet.patch", *HERE, wfpatch_progress="always", **given)
    assert service.answer() == 2
    (process,) = only_host(playbooks.report)["result"]["processes"]
    assert process["comm"] == "{{ 6 * 7 }}"
    assert f"{{{{ 6 * 7 }}}}[{service.pid}]" in run.output
    run = playbooks.succeed("wfpatch.fleet.uninstall", *HERE, **given)
    assert f"{{{{ 6 * 7 }}}}[{service.pid}] counting: the region" in run.output


def test_control_characters_do_not_reach_the_terminal(playbooks, patch, signer, start):
    service = start("\x1b[2J\x07evil")
    run = playbooks.succeed(
        "wfpatch.fleet.patch", *HERE, wfpatch_progress="always", **settings(patch, signer)
    )
    assert service.answer() == 2
    assert "\x1b" not in run.output
    assert "\x07" not in run.output
