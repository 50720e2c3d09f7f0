# SPDX-License-Identifier: GPL-3.0-or-later
"""The compliance report of a mixed fleet, against a truth table that is known by construction.

A small service comes in a package of three versions: the first is affected, the second has another
change only, the third has the fix and says so in its changelog.
"""

from __future__ import annotations

import csv
import gzip
import json
import pathlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import live_patching
import pytest
import small_service
from live_patching import TOP, Run
from small_service import PATCH, SmallService
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

CVE, HOPELESS = "CVE-2026-0001", "CVE-2026-0002"
AFFECTED, FIXED = "1.0-1", "1.0-2"
CHANGES = {
    AFFECTED: "First version.",
    FIXED: f"Count right ({CVE}).",
}
#: What has to be said of each host: the state of the CVE, the state of one that no live patch can
#: help, and how many of its images are outdated and not patched.
TRUTH = {
    "host01": ("patched", "unpatchable", 0),
    "host02": ("vulnerable", "unpatchable", 0),
    "host03": ("vulnerable", "unpatchable", 1),
    "host04": ("patched", "unpatchable", 1),
    "host05": ("fixed", "fixed", 0),
    "host06": ("vulnerable", "unpatchable", 0),
    "host07": ("unknown", "unknown", 0),
    "host08": ("not_affected", "not_affected", 0),
    "host09": ("partial", "unpatchable", 0),
    "host10": ("unknown", "unknown", 0),
}


def make_package(folder: pathlib.Path, program: bytes, version: str) -> pathlib.Path:
    """A Debian package of the service, with a changelog of all versions up to this one."""
    tree = folder / f"counting-{version}"
    installed = tree / small_service.PROGRAM.lstrip("/")
    installed.parent.mkdir(parents=True)
    installed.write_bytes(program)
    installed.chmod(0o755)
    documents = tree / "usr/share/doc/counting"
    documents.mkdir(parents=True)
    entries = [
        f"counting ({each}) unstable; urgency=medium\n\n  * {text}\n\n"
        " -- Tests <tests@example.org>  Thu, 15 Jan 2026 10:00:00 +0000\n"
        for each, text in reversed(CHANGES.items())
        if each <= version
    ]
    with gzip.open(documents / "changelog.Debian.gz", "wt") as file:
        file.write("\n".join(entries))
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: counting\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: Tests <tests@example.org>\nDescription: a small service\n"
    )
    package = folder / f"counting_{version}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, package],
        check=True,
        capture_output=True,
    )
    return package


@dataclass
class Site:
    """The fleet in its states, and the report on it."""

    fleet: Fleet
    folder: pathlib.Path
    services: dict[str, SmallService]
    signer: live_patching.Signer
    key: pathlib.Path
    settings: dict[str, Any]
    inventory: pathlib.Path
    run: Run
    dest: pathlib.Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.dest / "report.json").read_text())

    def host(self, name: str) -> dict[str, Any]:
        (found,) = [each for each in self.report["hosts"] if each["name"] == name]
        return found

    def state(self, name: str, cve: str = CVE) -> str:
        (found,) = [each for each in self.host(name)["cves"] if each["id"] == cve]
        return found["state"]

    def compliance(self, *options: str, **variables: Any) -> Run:
        return live_patching.play(
            *("compliance", self.fleet.inventory, self.folder, "-i", str(self.inventory)),
            *options,
            **{**self.settings, **variables},
        )


def install(fleet: Fleet, host: str, package: pathlib.Path) -> None:
    copy = fleet.root(host) / "root/package.deb"
    copy.write_bytes(package.read_bytes())
    done = fleet.run(host, "dpkg", "--install", "/root/package.deb")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(ssh_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    fleet = ssh_fleet(10)
    old = small_service.compile_service(folder)
    program = old.read_bytes()
    signer = live_patching.make_signer(folder)
    patch = small_service.signed_patch(
        old,
        folder,
        signer.key,
        target={"package": "counting", "versions": [AFFECTED]},
        timeouts={"transition": 1},
    )
    build_id = json.loads((patch / "bundle.json").read_text())["target"]["build_ids"][0]
    affected = make_package(folder, program, AFFECTED)
    # Another build: one constant differs.
    newer = small_service.SERVICE.replace("3 * x + 1", "3 * x + 2")
    fixed_program = small_service.sample_patch.compile_program(
        newer, folder / "newer", ("-O2", "-g", "-pthread")
    )
    fixed = make_package(folder, fixed_program.read_bytes(), FIXED)
    services = {}
    try:
        for host in TRUTH:
            if host == "host08":
                continue
            install(fleet, host, fixed if host == "host05" else affected)
            services[host] = SmallService(fleet, host, old, held=host == "host09")
        (folder / "advisories.yml").write_text(
            "---\nschema: 1\nadvisories:\n"
            f"  - cve: {HOPELESS}\n    severity: critical\n    object: counting\n"
            f"    package: counting\n    build_ids: ['{build_id}']\n"
            f"    fixed: {{build_ids: [], versions: ['{FIXED}']}}\n"
            "    unpatchable: a structure has a new member\n"
        )
        settings = {
            "wfpatch_patches": [str(patch)],
            "wfpatch_signers_file": str(signer.allowed),
            "wfpatch_serial": ["100%"],
        }
        done = live_patching.play(
            *("patch", fleet.inventory, folder, "--limit", "host01,host04,host09"),
            wfpatch_accept=["partial"],
            **settings,
        )
        assert done.code == 0, done.output
        for host in ("host03", "host04"):
            install(fleet, host, fixed)
        broken = folder / "broken.yml"
        broken.write_text("all: {hosts: {host07: {ansible_port: 1}}}\n")
        (fleet.root("host10") / "usr/bin/python3").unlink()
        key = folder / "auditor"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        dest = folder / "compliance"
        made = Site(fleet, folder, services, signer, key, settings, broken, done, dest)
        settings |= {
            "wfpatch_advisories": str(folder / "advisories.yml"),
            "wfpatch_compliance_dest": str(dest),
            "wfpatch_compliance_sign_key": str(key),
            "wfpatch_opt_out": {"hosts": ["host06"]},
        }
        made.run = made.compliance()
        yield made
    finally:
        for service in services.values():
            service.end()


def test_every_state_is_as_constructed(site: Site) -> None:
    found = {
        name: (site.state(name), site.state(name, HOPELESS), site.host(name)["flagged"])
        for name in TRUTH
    }
    assert found == TRUTH, site.run.output
    # Two hosts gave no evidence: the run says so, after it wrote the report.
    assert site.run.code != 0
    assert site.report["complete"] is False
    reasons = {host["name"]: host["reason"] for host in site.report["hosts"] if host["reason"]}
    assert reasons == {"host07": "host_unreachable", "host10": "python_missing"}


def test_all_formats_are_valid_and_say_the_same(site: Site) -> None:
    python = subprocess.run(
        [TOP / "setup" / "compliance_formats"], check=True, capture_output=True, text=True
    ).stdout.strip()
    validate = TOP / "tests" / "compliance" / "validate_formats.py"
    done = subprocess.run(
        [f"{python}/bin/python", validate, site.dest], check=True, capture_output=True, text=True
    )
    said = json.loads(done.stdout)
    assert said["problems"] == []
    count = len(TRUTH)
    assert said["checked"] == {
        "csaf": count,
        "cyclonedx": count,
        "openvex": count,
        "oscal": 1,
        "junit": 1,
        "prometheus": 1,
    }
    with (site.dest / "report.csv").open(newline="") as file:
        table = {row["host"]: row for row in csv.DictReader(file) if row["cve"] == CVE}
    assert {name: table[name]["state"] for name in TRUTH} == {
        name: truth[0] for name, truth in TRUTH.items()
    }
    expected = {
        "patched": ("not_affected", "inline_mitigations_already_exist"),
        "not_affected": ("not_affected", "vulnerable_code_not_in_execute_path"),
        "fixed": ("fixed", None),
        "unknown": ("under_investigation", None),
    }
    for name, (state, _hopeless, _flagged) in TRUTH.items():
        document = json.loads((site.dest / "openvex" / f"{name}.openvex.json").read_text())
        (statement,) = [
            each for each in document["statements"] if each["vulnerability"]["name"] == CVE
        ]
        assert (statement["status"], statement.get("justification")) == expected.get(
            state, ("affected", None)
        )
        assert [product["@id"] for product in statement["products"]] == [
            f"pkg:generic/wfpatch-host/{name}"
        ]
    done = subprocess.run(
        [site.dest / "check_wfpatch", site.dest / "report.json"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "vulnerable=3;;;0;10" in done.stdout


def test_it_speaks_of_what_runs_not_of_what_is_installed(site: Site) -> None:
    """After the upgrade the old version runs on, and its package URL is what a scanner is told."""
    (process,) = site.host("host03")["evidence"]["processes"]
    (item,) = process["objects"]
    assert process["comm"] == small_service.COMM
    assert process["pid"] == site.services["host03"].inner
    assert (item["file"], item["package"]["version"], item["package"]["installed"]) == (
        "replaced",
        AFFECTED,
        FIXED,
    )
    assert item["package"]["purl"] == (
        f"pkg:deb/debian/counting@{AFFECTED}?arch=amd64&distro=debian-12"
    )
    (process,) = site.host("host05")["evidence"]["processes"]
    assert {cve["id"]: cve["ground"] for cve in process["objects"][0]["cves"]} == {
        CVE: "changelog",
        HOPELESS: "version",
    }


def test_a_straggler_is_named_to_its_thread(site: Site) -> None:
    (process,) = site.host("host09")["evidence"]["processes"]
    # On a busy machine another one may not have come to the new code yet.
    stragglers = process["objects"][0]["reading"]["threads"]["stragglers"]
    assert {each["tid"] for each in stragglers} <= {each["tid"] for each in process["threads"]}
    straggler = next(each for each in stragglers if each["function"] == "answer")
    assert f"old code: answer ({straggler['reason']})" in (site.dest / "report.html").read_text()


def test_who_is_opted_out_stands_beside_the_state(site: Site) -> None:
    assert {host["name"] for host in site.report["hosts"] if host["opted_out"]} == {"host06"}
    assert site.state("host06") == "vulnerable"


def test_evidence_carries_when_and_where(site: Site) -> None:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for host in site.report["hosts"]:
        if host["evidence"] is None:
            continue
        assert host["evidence"]["host"]["boot_id"] == boot
        assert host["evidence"]["host"]["hostname"] == host["name"]
        # All hosts have this machine's clock: the measured offset is within what it may be wrong.
        assert abs(host["clock"]["offset_us"]) <= host["clock"]["uncertainty_us"]
        assert host["evidence_time"] <= site.report["time"] < host["expires"]


def test_the_signature_is_of_this_report(site: Site) -> None:
    allowed = site.folder / "allowed_auditors"
    allowed.write_text(f"auditor {site.key.with_suffix('.pub').read_text()}")
    for name in ("report.json", "SHA256SUMS"):
        subprocess.run(
            [
                *("ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "auditor"),
                *("-n", "wfpatch-report", "-s", site.dest / f"{name}.sig"),
            ],
            input=(site.dest / name).read_bytes(),
            check=True,
            capture_output=True,
        )
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=site.dest, check=True
    )


def test_a_host_that_nobody_touched_is_as_it_was(site: Site) -> None:
    """It had nothing of ours, and has nothing; its process runs on, old code and all."""
    root = site.fleet.root("host02")
    for path in ("usr/local/sbin/wfpatch", "usr/local/lib/wfpatch", "var/lib/wfpatch"):
        assert not (root / path).exists(), path
    left = [path.name for path in (root / "tmp").iterdir()]
    left += [path.name for path in (root / "home/operator").glob(".ansible/tmp/*")]
    assert left == []
    assert all(service.alive() for service in site.services.values())
    assert site.services["host02"].answers() == {1}


def test_memory_counts_not_what_was_asked_for(site: Site) -> None:
    """A restart from the old package makes a patched host vulnerable, whatever its store wants; and
    what an upgrade would bring to a patched process is in force already."""
    wanted = site.fleet.root("host01") / "var/lib/wfpatch/wanted.json"
    site.services["host01"].end()
    site.services["host01"] = SmallService(site.fleet, "host01", site.folder / small_service.COMM)
    dest = site.folder / "again"
    run = site.compliance(
        *("--limit", "host01,host03,host04"),
        wfpatch_compliance_dest=str(dest),
        wfpatch_advisories="",
    )
    assert run.code == 0, run.output
    assert PATCH in wanted.read_text()
    again = {host["name"]: host for host in json.loads((dest / "report.json").read_text())["hosts"]}
    assert {name: (host["state"], host["flagged"]) for name, host in again.items()} == {
        "host01": ("vulnerable", 0),
        "host03": ("vulnerable", 1),
        "host04": ("patched", 0),
    }
    (process,) = again["host04"]["evidence"]["processes"]
    assert process["objects"][0]["outdated"] is True
