# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible's facts say of a host: from live memory, and whatever is wrong, an answer."""

from __future__ import annotations

import json

from watched.world import Watched
from wfpatch.facts import facts_of


def test_what_live_memory_says(tmp_path, start):
    world = Watched(tmp_path)
    cve = {"id": "CVE-2026-0001", "severity": "high", "references": []}
    elf = world.signed.folder("fix-answer").joinpath("patch.elf").read_bytes()
    world.signed.add("fix-answer", elf, cves=[cve])
    # Of two patches for a CVE, the one for another build says nothing about this host.
    (tmp_path / "other").mkdir()
    other = Watched(tmp_path / "other")
    elf = other.signed.folder("fix-answer").joinpath("patch.elf").read_bytes()
    world.signed.add("other-fix", elf, cves=[cve])

    def told():
        run = world.signed.run("facts")
        assert run.code == 0
        return run.result

    facts = told()
    assert (facts["state"], facts["cves"]) == ("not_affected", {"CVE-2026-0001": "not_affected"})
    start(world.program), start(world.program)
    facts = told()
    assert (facts["state"], facts["reason"], facts["wanted"]) == ("vulnerable", None, [])
    assert facts["processes"] == {"vulnerable": 2} and facts["watch"] is False
    assert world.signed.run("apply", "fix-answer").code == 0
    facts = told()
    assert facts["cves"] == {"CVE-2026-0001": "patched"}
    assert facts["patches"] == {"fix-answer": "patched", "other-fix": "not_affected"}
    assert (facts["processes"], facts["wanted"]) == ({"patched": 2}, ["fix-answer"])
    rules = {"schema": 1, "rules": [{"kind": "host", "pattern": ""}]}
    (world.signed.path / "opt-outs.json").write_text(json.dumps(rules))
    with world.signed.store().watching():
        facts = told()
    assert (facts["opted_out"], facts["watch"]) == (2, True)


def test_a_damaged_store_and_none_at_all(tmp_path):
    world = Watched(tmp_path)
    (world.signed.folder("fix-answer") / "bundle.json").write_text("{")
    facts = facts_of(world.signed.store())
    assert (facts["state"], facts["reason"]) == ("unknown", "signature_invalid")
    (world.signed.path / "wanted.json").write_text("[]")
    assert facts_of(world.signed.store())["reason"] == "store_invalid"
    run = world.signed.run("--store", tmp_path / "none", "facts")
    assert (run.code, run.result["state"]) == (0, "not_affected")
