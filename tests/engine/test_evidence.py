# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb `compliance`: what is said of each CVE in each running image, and on what ground.

Every state is brought about by construction, in processes of a small program.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import sample_patch
from proof.bundles import SignedStore, make_key
from wfpatch.errors import Refused
from wfpatch.evidence import grounds
from wfpatch.evidence.advisories import parse_advisories
from wfpatch.evidence.debian_version import compare
from wfpatch.evidence.known import Known, read_known
from wfpatch.evidence.packages import Package, System, database, find_owners, other_name, purl
from wfpatch.evidence.unexplained import explained
from wfpatch.report import FunctionReport, ObjectReport, PatchState, ProcessReport

PROGRAM = """
#include <stdio.h>
#include <unistd.h>
__attribute__((noinline)) int step(int x) { __asm__ volatile("" : "+r"(x)); return x + %d; }
__attribute__((noinline)) int other(int x) { __asm__ volatile("" : "+r"(x)); return x + 5; }
int main(void)
{
    char line[64];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%%d\\n", step(0) + other(0));
        fflush(stdout);
    }
    return 0;
}
"""
NEW_STEP = """
int step(int x);
__attribute__((noinline)) int step(int x) { __asm__ volatile("" : "+r"(x)); return x + 100; }
"""
NEW_OTHER = """
int other(int x);
__attribute__((noinline)) int other(int x) { __asm__ volatile("" : "+r"(x)); return x + 200; }
"""
FIRST, SECOND = "CVE-2026-1001", "CVE-2026-1002"


def cve(name: str, severity: str = "high") -> dict:
    return {"id": name, "severity": severity, "references": []}


class Site:
    """A program that is installed at a path, and a store with two patches for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "served"
        self.install(1)
        self.store = SignedStore(folder)
        self.store.add("step-fix", self.elf(NEW_STEP, "step"), cves=[cve(FIRST)])
        self.store.add("other-fix", self.elf(NEW_OTHER, "other"), cves=[cve(SECOND, "low")])

    def install(self, version: int) -> None:
        """Another version takes the name, as a package's upgrade would have it."""
        new = self.folder / "served.new"
        sample_patch.compile_program(PROGRAM % version, new, ("-O2", "-g"))
        new.rename(self.path)

    def elf(self, source: str, name: str) -> bytes:
        return sample_patch.build(self.path, source, [name])

    def build_id(self) -> str:
        return sample_patch._Program(self.path).build_id

    def evidence(self, *advisories: dict) -> dict:
        words: list[object] = ["compliance"]
        if advisories:
            given = self.folder / "advisories.json"
            given.write_text(json.dumps({"schema": 1, "advisories": list(advisories)}))
            words += ["--advisories", given]
        run = self.store.run(*words)
        assert run.code == 0, str(run.stderr)
        return run.result

    def item(self, pid: int, *advisories: dict) -> dict:
        """The one image of the process that is told of."""
        (process,) = [p for p in self.evidence(*advisories)["processes"] if p["pid"] == pid]
        (item,) = process["objects"]
        return item


def states(item: dict) -> dict[str, str]:
    return {each["id"]: each["state"] for each in item["cves"]}


def advisory(**fields: object) -> dict:
    return {
        "cve": FIRST,
        "severity": "high",
        "object": "served",
        "package": "served",
        "build_ids": [],
        "fixed": {"build_ids": [], "versions": []},
        "unpatchable": None,
        **fields,
    }


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_each_process_has_a_state_of_its_own(site, start):
    """One is patched, the other is not, and the host takes the worse."""
    patched, vulnerable = start(site.path), start(site.path)
    assert site.store.run("apply", "step-fix", "--pid", patched.pid).code == 0
    assert states(site.item(patched.pid)) == {FIRST: "patched", SECOND: "vulnerable"}
    assert states(site.item(vulnerable.pid)) == {FIRST: "vulnerable", SECOND: "vulnerable"}
    found = site.evidence()
    assert {each["id"]: each["state"] for each in found["cves"]} == {
        FIRST: "vulnerable",
        SECOND: "vulnerable",
    }
    assert [each["severity"] for each in found["cves"]] == ["high", "low"]
    (process,) = [p for p in found["processes"] if p["pid"] == patched.pid]
    assert [thread["tid"] for thread in process["threads"]] == [patched.pid]
    assert process["uid"] == 0
    assert process["objects"][0]["reading"]["generation"] == 1
    assert patched.ask("?") == "105"
    assert vulnerable.ask("?") == "6"


def test_no_process_is_not_affected(site):
    found = site.evidence()
    assert {each["id"]: each["state"] for each in found["cves"]} == {
        FIRST: "not_affected",
        SECOND: "not_affected",
    }


def test_an_open_transition_is_pending(site, start):
    running = start(site.path)
    assert site.store.run("apply", "step-fix", "--pid", running.pid, "--until", "arm").code == 4
    assert states(site.item(running.pid))[FIRST] == "pending"


def test_what_would_be_refused_is_blocked(site, start):
    """The reason is that of the plan, and the process is as it was."""
    running = start(site.path)
    site.store.add(
        "step-fix", site.elf(NEW_STEP, "step"), cves=[cve(FIRST)], requires=["nowhere-fix"]
    )
    item = site.item(running.pid)
    assert states(item) == {FIRST: "blocked", SECOND: "vulnerable"}
    (blocked,) = [each for each in item["cves"] if each["id"] == FIRST]
    assert blocked["reason"] == "required_patch_missing"
    assert running.ask("?") == "6"


def test_the_patch_that_got_furthest_counts(site, start):
    """Two patches close one CVE: the one in force makes it patched, the other is out of the way."""
    running = start(site.path)
    site.store.add(
        "both-fix", site.elf(NEW_STEP, "step"), cves=[cve(FIRST)], supersedes=["step-fix"]
    )
    assert site.store.run("apply", "both-fix", "--pid", running.pid).code == 0
    item = site.item(running.pid)
    assert states(item)[FIRST] == "patched"
    assert [each["patch"] for each in item["cves"] if each["id"] == FIRST] == ["both-fix"]


def test_memory_that_was_tampered_with_is_unknown(site, start):
    running = start(site.path)
    assert site.store.run("apply", "step-fix", "--pid", running.pid).code == 0
    function = site.item(running.pid)["reading"]["functions"][0]
    with open(f"/proc/{running.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(function["address"])
        first = memory.read(1)
        memory.seek(function["address"])
        memory.write(bytes([first[0] ^ 0xFF]))
    (found,) = [each for each in site.item(running.pid)["cves"] if each["id"] == FIRST]
    assert (found["state"], found["reason"]) == ("unknown", "tampered")


def test_a_bundle_that_does_not_verify_is_named_and_hides_no_other(site, start):
    running = start(site.path)
    (site.store.folder("step-fix") / "patch.elf").write_bytes(b"\x7fELF")
    found = site.evidence()
    assert [(each["id"], each["reason"]) for each in found["refused"]] == [
        ("step-fix", "bundle_altered")
    ]
    (process,) = [p for p in found["processes"] if p["pid"] == running.pid]
    assert states(process["objects"][0]) == {SECOND: "vulnerable"}


def test_a_patch_of_a_signer_who_is_not_believed_is_no_fix(site, start):
    """It is in force, and memory says so; but nobody vouches for it any more."""
    running = start(site.path)
    assert site.store.run("apply", "step-fix", "--pid", running.pid).code == 0
    other = make_key(site.folder / "other_key")
    site.store.signers.write_text(
        f'else namespaces="wfpatch" {other.with_suffix(".pub").read_text()}'
    )
    found = site.evidence()
    assert {each["reason"] for each in found["refused"]} == {"signer_unknown"}
    (process,) = [p for p in found["processes"] if p["pid"] == running.pid]
    (item,) = process["objects"]
    assert states(item) == {FIRST: "unknown", SECOND: "blocked"}
    assert {each["reason"] for each in item["cves"]} == {"signer_unknown"}


def test_who_is_opted_out_is_said_and_changes_no_state(site, start):
    running = start(site.path)
    rules = {"schema": 1, "rules": [{"kind": "process", "pattern": "serv*"}]}
    (site.store.path / "opt-outs.json").write_text(json.dumps(rules))
    (process,) = [p for p in site.evidence()["processes"] if p["pid"] == running.pid]
    assert process["opted_out"] == "process serv*"
    assert states(process["objects"][0]) == {FIRST: "vulnerable", SECOND: "vulnerable"}
    assert site.evidence()["opted_out"] is False
    rules["rules"] = [{"kind": "host", "pattern": ""}]
    (site.store.path / "opt-outs.json").write_text(json.dumps(rules))
    assert site.evidence()["opted_out"] is True
    (site.store.path / "opt-outs.json").write_text("{")
    found = site.evidence()
    assert [(each["id"], each["reason"]) for each in found["refused"]] == [
        (None, "opt_outs_invalid")
    ]


def test_a_patch_in_force_that_nobody_here_knows_is_named(site, start):
    """Its bundle is gone, with all that named its object; memory still has it."""
    running, bystander = start(site.path), start(site.path)
    assert site.item(running.pid)["unexplained"] == []
    assert site.store.run("apply", "step-fix", "--pid", running.pid).code == 0
    assert site.item(running.pid)["unexplained"] == []
    shutil.rmtree(site.store.folder("step-fix"))
    item = site.item(running.pid)
    assert item["unexplained"] == ["step-fix"]
    assert states(item) == {SECOND: "vulnerable"}
    shutil.rmtree(site.store.folder("other-fix"))
    found = site.evidence()
    assert found["cves"] == []
    (process,) = [p for p in found["processes"] if p["pid"] in (running.pid, bystander.pid)]
    (item,) = process["objects"]
    assert (process["pid"], item["unexplained"], item["cves"]) == (running.pid, ["step-fix"], [])
    assert item["reading"]["patches"] == [{"id": "step-fix", "state": "patched"}]


def test_an_id_that_is_none_spoils_no_evidence():
    """Of a region's header a process can make what it likes; an id has a form."""
    reading = ProcessReport(
        pid=1,
        start_time=1,
        comm="x",
        exe="/x",
        object=ObjectReport("x", "ab" * 20, "/x", False),
        state="patched",
        patches=(PatchState("NO ID <b>", "patched"), PatchState("fix", "patched")),
        functions=(FunctionReport("", "NO ID <b>", 1, None, "new", 2),),
    )
    known = Known((), (), ())
    sane, strangers = explained(reading, known)
    assert strangers == ["fix", "unnamed"]
    assert [patch.id for patch in sane.patches] == ["unnamed", "fix"]
    assert [(each.name, each.patch) for each in sane.functions] == [("unnamed", "unnamed")]


def test_a_replaced_file_is_flagged_unless_memory_has_the_fixes(site, start):
    running, bystander = start(site.path), start(site.path)
    old = site.build_id()
    assert site.item(running.pid)["file"] == "same"
    site.install(2)
    item = site.item(running.pid)
    assert (item["file"], item["build_id"], item["file_build_id"]) == (
        "replaced",
        old,
        site.build_id(),
    )
    assert (item["outdated"], item["flagged"]) == (True, True)
    assert states(item) == {FIRST: "vulnerable", SECOND: "vulnerable"}
    # One of two fixes is not enough.
    assert site.store.run("apply", "step-fix", "--pid", running.pid).code == 0
    assert site.item(running.pid)["flagged"] is True
    assert site.store.run("apply", "other-fix", "--pid", running.pid).code == 0
    item = site.item(running.pid)
    assert states(item) == {FIRST: "patched", SECOND: "patched"}
    assert (item["outdated"], item["flagged"]) == (True, False)
    assert site.item(bystander.pid)["flagged"] is True


def test_the_same_build_installed_again_is_not_outdated(site, start):
    running = start(site.path)
    shutil.copy(site.path, site.folder / "again")
    os.replace(site.folder / "again", site.path)
    item = site.item(running.pid)
    assert (item["file"], item["outdated"], item["flagged"]) == ("rebuilt", False, False)


def test_a_deleted_library_is_outdated_though_no_patch_is_for_it(site, start, tmp_path):
    """Like needrestart: the file is gone from a place of packages."""
    library = Path("/var/cache/libwfpatch-test-outdated.so")
    sample_patch.compile_program("int f(void) { return 1; }", library, ("-shared", "-fPIC"))
    try:
        running = start(site.path, env={"LD_PRELOAD": str(library)})
        items = {
            item["path"]: item
            for process in site.evidence()["processes"]
            if process["pid"] == running.pid
            for item in process["objects"]
        }
        assert str(library) not in items
    finally:
        library.unlink()
    (process,) = [p for p in site.evidence()["processes"] if p["pid"] == running.pid]
    (item,) = [each for each in process["objects"] if each["path"] == str(library)]
    assert (item["file"], item["flagged"], item["cves"]) == ("deleted", True, [])


def test_a_file_that_its_program_deleted_is_not_outdated(site, start):
    """What programs map and delete in places for scratch was not upgraded."""
    running = start(site.path)
    site.path.unlink()
    item = site.item(running.pid)
    assert (item["file"], item["outdated"]) == ("unknown", False)


def test_another_build_is_unknown_until_it_is_known_to_be_fixed(site, start):
    site.install(3)
    running = start(site.path)
    assert states(site.item(running.pid)) == {FIRST: "unknown", SECOND: "unknown"}
    known = advisory(fixed={"build_ids": [site.build_id()], "versions": []})
    item = site.item(running.pid, known)
    assert states(item) == {FIRST: "fixed", SECOND: "unknown"}
    assert [each["ground"] for each in item["cves"]] == ["build_id", None]


LIBRARY = """
__attribute__((noinline)) int served(int x) { __asm__ volatile("" : "+r"(x)); return x + %d; }
"""


def test_a_library_goes_by_its_soname(site, start, tmp_path):
    """A newer file of another name, libserved.so.1.3 for libserved.so.1.2, is no stranger."""
    files = {}
    for minor in (2, 3, 4):
        files[minor] = tmp_path / f"libserved.so.1.{minor}"
        soname = "libserved.so.2" if minor == 4 else "libserved.so.1"
        flags = ("-O2", "-g", "-shared", "-fPIC", f"-Wl,-soname,{soname}")
        sample_patch.compile_program(LIBRARY % minor, files[minor], flags)
    files[4] = files[4].rename(tmp_path / "libserved.so.2.0")
    new = LIBRARY.replace("%d", "9")
    site.store.add(
        "library-fix",
        sample_patch.build(files[2], new, ["served"]),
        cves=[cve("CVE-2026-1004")],
    )
    expected = {2: ["vulnerable"], 3: ["unknown"], 4: []}
    for minor, path in files.items():
        running = start(site.path, env={"LD_PRELOAD": str(path)})
        (process,) = [p for p in site.evidence()["processes"] if p["pid"] == running.pid]
        found = [item for item in process["objects"] if item["path"] == str(path)]
        assert [states(item)["CVE-2026-1004"] for item in found] == expected[minor], minor


def test_a_file_of_another_package_is_another_object(site):
    """The same name, but the package database says whose it is."""
    known = read_known(site.store.store(), ())
    path = "/usr/sbin/served"
    assert set(known.named(path, None)) == {FIRST, SECOND}
    package = Package("test", "1", "amd64", "test", "1", "")
    assert known.named(path, package) == {FIRST: ["1"], SECOND: ["1"]}
    assert known.named(path, dataclasses.replace(package, name="other")) == {}
    assert known.named("/usr/sbin/served-not", None) == {}


def test_a_build_that_no_patch_can_help_is_unpatchable(site, start):
    running = start(site.path)
    why = advisory(
        cve="CVE-2026-1003", build_ids=[site.build_id()], unpatchable="a structure has a new member"
    )
    item = site.item(running.pid, why)
    assert states(item)["CVE-2026-1003"] == "unpatchable"
    assert [each["message"] for each in item["cves"] if each["state"] == "unpatchable"] == [
        "a structure has a new member"
    ]
    without = advisory(cve="CVE-2026-1003", build_ids=[site.build_id()])
    assert states(site.item(running.pid, without))["CVE-2026-1003"] == "vulnerable"


def test_the_words_for_people(site, start):
    running = start(site.path)
    done = subprocess.run(
        [word for word in site.store.command("compliance") if word != "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"served[{running.pid}] {site.path}: {FIRST} vulnerable (step-fix)" in done.stdout


VERSIONS = (
    *(
        "1",
        "1.0",
        "1.0-1",
        "1.0-1+deb12u1",
        "1.0~rc1-1",
        "1:0.1",
        "1.0-1~bpo1",
        "0",
        "0a1",
        "1.0+b",
    ),
    *("5:7.0.15-1~deb12u7", "5:7.0.15-1~deb12u10", "2.5.13+dfsg-5", "2.5.13-5", "1.6.38-1", "1.a"),
    *("1.0.0", "1.0.~", "1.0.~~", "1-1-1", "10", "09", "1.0A", "1.0a"),
)


def test_versions_are_ordered_as_dpkg_orders_them():
    for left, right in itertools.product(VERSIONS, VERSIONS):
        dpkg = ["dpkg", "--compare-versions", left]
        if subprocess.run([*dpkg, "lt", right]).returncode == 0:
            expected = -1
        else:
            expected = subprocess.run([*dpkg, "gt", right]).returncode == 0
        assert compare(left, right) == int(expected), (left, right)


def test_packages_are_those_that_dpkg_names():
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    libc = next(
        path for path in mapped if re.fullmatch(r"libc(\.so\.6|-2\..*\.so)", Path(path).name)
    )
    paths = [libc, other_name(libc), "/usr/bin/dpkg-query", "/no/such/file"]
    found = find_owners(database(), paths, System("debian", "12", "Debian"))
    said = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Version}", "libc6"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {path: package.name for path, package in found.items()} == {
        libc: "libc6",
        other_name(libc): "libc6",
        "/usr/bin/dpkg-query": "dpkg",
    }
    assert found[libc].version == said
    assert found[libc].source == "glibc"


def test_package_urls():
    """The examples of the purl specification's types deb and rpm, and a Debian epoch."""
    debian, fedora = System("debian", "12", ""), System("fedora", "25", "")
    assert (
        purl("deb", debian, "redis-server", "5:7.0.15-1~deb12u7", "amd64")
        == "pkg:deb/debian/redis-server@5%3A7.0.15-1~deb12u7?arch=amd64&distro=debian-12"
    )
    assert purl("deb", debian, "g++", "1+b", "") == "pkg:deb/debian/g%2B%2B@1%2Bb?distro=debian-12"
    assert (
        purl("rpm", fedora, "curl", "1:7.50.3-1.fc25", "i386")
        == "pkg:rpm/fedora/curl@7.50.3-1.fc25?arch=i386&epoch=1&distro=fedora-25"
    )


CHANGELOG = """\
served (1.0-3) unstable; urgency=high

  * Better messages.

 -- A Person <person@example.org>  Thu, 15 Jan 2026 10:00:00 +0000

served (1.0-2) unstable; urgency=high

  * Fix CVE-2026-10011 and CVE-2026-1001 (Closes: #1).

 -- A Person <person@example.org>  Wed, 14 Jan 2026 10:00:00 +0000

served (1.0-1) unstable; urgency=high

  * Fix CVE-2026-1002.

 -- A Person <person@example.org>  Tue, 13 Jan 2026 10:00:00 +0000
"""


@pytest.mark.parametrize(
    ("version", "affected", "cve_id", "expected"),
    [
        ("1.0-3", ("1.0-1",), "CVE-2026-1001", True),
        ("1.0-3", ("1.0-2",), "CVE-2026-1001", False),  # named before the affected version
        ("1.0-3", ("1.0-1",), "CVE-2026-1002", False),  # by the affected version itself
        ("1.0-3", ("1.0-1",), "CVE-2026-100", False),  # another CVE's beginning
        ("1.0-1", ("1.0-1",), "CVE-2026-1001", False),  # the affected version
        ("1.0-3", (), "CVE-2026-1001", False),
    ],
)
def test_a_changelog_is_a_ground(tmp_path, monkeypatch, version, affected, cve_id, expected):
    monkeypatch.setattr(grounds, "DOCUMENTS", tmp_path)
    (tmp_path / "served").mkdir()
    with gzip.open(tmp_path / "served" / "changelog.Debian.gz", "wt") as file:
        file.write(CHANGELOG)
    package = Package("served", version, "amd64", "served", version, "")
    assert grounds.changelog_names(package, cve_id, affected) is expected
    nameless = Package("../served", version, "amd64", "served", version, "")
    assert grounds.changelog_names(nameless, cve_id, affected) is False


def test_advisories_are_read_strictly():
    whole = {"schema": 1, "advisories": [advisory()]}
    assert parse_advisories(json.dumps(whole).encode())[0].cve == FIRST
    for name in advisory():
        part = advisory()
        del part[name]
        with pytest.raises(Refused) as refused:
            parse_advisories(json.dumps({"schema": 1, "advisories": [part]}).encode())
        assert refused.value.reason == "manifest_invalid"
    with pytest.raises(Refused):
        parse_advisories(json.dumps({"schema": 1, "advisories": [advisory(more=1)]}).encode())
