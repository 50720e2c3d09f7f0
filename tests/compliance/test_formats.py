# SPDX-License-Identifier: GPL-3.0-or-later
"""Every format of the compliance report: valid by its own official schema or library, with every
state in it, and with texts that try to be something else.
"""

from __future__ import annotations

import base64
import copy
import csv
import datetime
import errno
import hashlib
import html.parser
import json
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree
from typing import Any

import pytest
import sample_fleet
from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _compliance_check as check
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_files import (
    FORMATS,
    contents,
    host_file_name,
    write_files,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import problems
from sample_fleet import CVES, HOSTILE

HERE = pathlib.Path(__file__).resolve().parent
TOP = HERE.parents[1]
NOW = datetime.datetime(2026, 1, 15, 10, tzinfo=datetime.UTC)
FIRST = CVES[0]


@pytest.fixture(scope="session")
def python() -> str:
    """The Python with the official schemas and libraries."""
    made = subprocess.run(
        [TOP / "setup" / "compliance_formats"], check=True, capture_output=True, text=True
    )
    return f"{made.stdout.strip()}/bin/python"


@pytest.fixture(scope="session")
def report() -> dict[str, Any]:
    return sample_fleet.with_history(NOW, 3)


@pytest.fixture(scope="session")
def folder(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("report")
    write_files(str(place), contents(report, FORMATS, "si-2_obj", "#"), None)
    return place


def validate(python: str, folder: pathlib.Path) -> dict[str, Any]:
    done = subprocess.run(
        [python, HERE / "validate_formats.py", folder], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def by_host(folder: pathlib.Path, pattern: str) -> dict[str, Any]:
    """host's file name -> document."""
    return {
        path.relative_to(folder).parts[1].split(".openvex")[0].split(".cdx")[0]: json.loads(
            path.read_text()
        )
        for path in folder.glob(pattern)
    }


def test_all_are_valid(python: str, folder: pathlib.Path, report: dict[str, Any]) -> None:
    said = validate(python, folder)
    assert said["problems"] == []
    hosts = len(report["hosts"])
    assert said["checked"] == {
        "csaf": hosts,
        "cyclonedx": hosts,
        "openvex": hosts,
        "oscal": 1,
        "junit": 1,
        "prometheus": 1,
    }


@pytest.mark.parametrize(
    ("pattern", "spoil", "named"),
    [
        ("csaf/*/*.json", lambda d: d["document"].pop("publisher"), "csaf/"),
        ("csaf/*/*.json", lambda d: d["vulnerabilities"][0].pop("notes"), "csaf/"),
        ("cyclonedx/*.json", lambda d: d.update(bomFormat="other"), "cyclonedx/"),
        (
            "cyclonedx/*.json",
            lambda d: d["vulnerabilities"][0]["affects"][0].update(ref="x"),
            "cyclonedx/",
        ),
        ("openvex/*.json", lambda d: d["statements"][0].update(status="safe"), "openvex/"),
        (
            "oscal*.json",
            lambda d: d["assessment-results"]["metadata"].pop("oscal-version"),
            "oscal",
        ),
        (
            "oscal*.json",
            lambda d: d["assessment-results"]["results"][0]["observations"].pop(),
            "oscal",
        ),
    ],
)
def test_the_validators_see_what_is_wrong(
    python: str,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    pattern: str,
    spoil: Any,
    named: str,
) -> None:
    source = sorted(folder.glob(pattern))[0]
    target = tmp_path / source.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    document = json.loads(source.read_text())
    spoil(document)
    target.write_text(json.dumps(document))
    found = validate(python, tmp_path)["problems"]
    assert found
    assert all(each.startswith(named) for each in found)


def test_one_vex_document_per_host(folder: pathlib.Path, report: dict[str, Any]) -> None:
    """The status of each state, in all three; a product is one host, with packages in it."""
    expected = {
        "patched": ("not_affected", "known_not_affected", "not_affected"),
        "vulnerable": ("affected", "known_affected", "exploitable"),
        "pending": ("affected", "known_affected", "exploitable"),
        "partial": ("affected", "known_affected", "exploitable"),
        "blocked": ("affected", "known_affected", "exploitable"),
        "unpatchable": ("affected", "known_affected", "exploitable"),
        "fixed": ("fixed", "fixed", "resolved"),
        "not_affected": ("not_affected", "known_not_affected", "not_affected"),
        "unknown": ("under_investigation", "under_investigation", "in_triage"),
    }
    openvex = by_host(folder, "openvex/*.json")
    csaf = by_host(folder, "csaf/*/*.json")
    cyclonedx = by_host(folder, "cyclonedx/*.json")
    seen = set()
    for host in report["hosts"]:
        name = host_file_name(host["name"])
        state = next(row["state"] for row in host["cves"] if row["id"] == FIRST)
        seen.add(state)
        (statement,) = [
            each for each in openvex[name]["statements"] if each["vulnerability"]["name"] == FIRST
        ]
        (vulnerability,) = [v for v in csaf[name]["vulnerabilities"] if v["cve"] == FIRST]
        (analysed,) = [v for v in cyclonedx[name]["vulnerabilities"] if v["id"] == FIRST]
        (status,) = vulnerability["product_status"]
        assert (statement["status"], status, analysed["analysis"]["state"]) == expected[state]
        (product,) = statement["products"]
        assert product["subcomponents"]
        mitigated = "inline_mitigations_already_exist"
        flags = [flag["label"] for flag in vulnerability.get("flags", ())]
        assert (statement.get("justification") == mitigated) is (state == "patched")
        assert (mitigated in flags) is (state == "patched")
        assert (analysed["analysis"].get("justification") == "protected_at_runtime") is (
            state == "patched"
        )
        if state == "patched":
            boot = host["evidence"]["host"]["boot_id"]
            for text in (
                statement["impact_statement"],
                vulnerability["threats"][0]["details"],
                analysed["analysis"]["detail"],
            ):
                assert boot in text
                assert host["evidence_time"] in text
                assert "in memory until restart" in text
        if statement["status"] == "affected":
            assert statement["action_statement"] == vulnerability["remediations"][0]["details"]
            assert analysed["recommendation"] == statement["action_statement"]
    assert seen == set(expected)
    everything = [json.dumps(document) for document in openvex.values()]
    assert len({json.loads(text)["@id"] for text in everything}) == len(everything)


def test_stale_evidence_is_unknown_everywhere(folder: pathlib.Path, report: dict[str, Any]) -> None:
    """Two days ago the host was patched; today nobody knows."""
    (host,) = [each for each in report["hosts"] if each["name"] == "stale.example.org"]
    assert (host["state"], host["stale"], host["reason"]) == ("unknown", True, "evidence_stale")
    with (folder / "report.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    rows = [row for row in table if row["host"] == host["name"] and row["cve"] == FIRST]
    assert [(row["state"], row["stale"]) for row in rows] == [("unknown", "yes")]
    assert f'cve="{FIRST}",state="unknown"' in next(
        line
        for line in (folder / "wfpatch.prom").read_text().splitlines()
        if line.startswith('wfpatch_host_cve_state{host="stale') and FIRST in line
    )


def test_a_host_without_evidence_is_never_left_out(report: dict[str, Any]) -> None:
    host = report["hosts"][-1]
    assert (host["state"], host["reason"]) == ("unknown", "host_unreachable")
    assert {row["state"] for row in host["cves"]} == {"unknown"}
    assert host["last_evidence"] is not None
    assert report["complete"] is False


def test_opting_out_changes_no_state(report: dict[str, Any]) -> None:
    (host,) = [each for each in report["hosts"] if each["name"] == "vulnerable.example.org"]
    assert host["opted_out"] is True
    assert [(row["state"], row["opted_out"]) for row in host["cves"]] == [
        ("vulnerable", True),
        ("not_affected", True),
    ]
    (by_rule,) = [each for each in report["hosts"] if each["name"] == "pending.example.org"]
    assert by_rule["opted_out_processes"] == [{"pid": 1000, "by": f"processes={HOSTILE[2]}"}]
    assert [(row["state"], row["opted_out"]) for row in by_rule["cves"]][0] == ("pending", True)


def test_no_cell_is_a_formula(folder: pathlib.Path, report: dict[str, Any]) -> None:
    with (folder / "report.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) >= 2 * len(report["hosts"])
    assert {row["host"] for row in table} == {host["name"] for host in report["hosts"]}
    cells = [cell for row in table for cell in row.values()]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    assert any(cell.startswith("'-2+3") for cell in cells)
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r\n|%")]


class _Page(html.parser.HTMLParser):
    """The elements of a page, and whether any could act."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.styles = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.handlers += [name] if name.startswith("on") else []
            self.links += [value or ""] if name in ("href", "src", "action") else []
            self.ids += [value or ""] if name == "id" else []
            self.styles += name == "style"


def test_the_page_has_nothing_of_a_host_but_text(folder: pathlib.Path) -> None:
    text = (folder / "report.html").read_text()
    page = _Page()
    page.feed(text)
    page.close()
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "link", "base"} & set(page.tags)
    assert page.handlers == []
    assert page.styles == 0
    outside = [link for link in page.links if not link.startswith("#")]
    assert set(outside) == {"https://example.org/?a=1&b=2"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    # Nothing is fetched: the policy names the two digests and nothing else.
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        body = re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)
        assert body
        made = hashlib.sha256(body[1].encode()).digest()
        assert f"{rule} 'sha256-{base64.b64encode(made).decode()}'" in policy[1]
    assert "default-src 'none'" in policy[1]


def test_the_junit_suites(folder: pathlib.Path, report: dict[str, Any]) -> None:
    root = xml.etree.ElementTree.parse(folder / "junit.xml").getroot()
    verdicts = {}
    for suite in root:
        (case,) = [each for each in suite.iter("testcase") if each.get("name") == FIRST]
        verdicts[suite.get("name")] = {child.tag for child in case} - {"system-out"}
    assert verdicts["patched.example.org"] == verdicts["fixed.example.org"] == set()
    for state in ("vulnerable", "pending", "partial", "blocked", "unpatchable"):
        assert verdicts[f"{state}.example.org"] == {"failure"}
    (outdated,) = [each for each in root if each.get("name") == "outdated.example.org"]
    cases = [each for each in outdated.iter("testcase") if "outdated" in (each.get("name") or "")]
    assert [len(case.findall("failure")) for case in cases] == [1]
    assert verdicts["unknown.example.org"] == verdicts[report["hosts"][-1]["name"]] == {"error"}


def checked(report: dict[str, Any], now: datetime.datetime) -> tuple[str, int]:
    return check.check(report, now)


PERFORMANCE = re.compile(r"[a-z_]+=\d+(s|)(;\d*){0,4}\Z")


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["patched", "fixed", "not_affected"], 0),
        (["patched", "pending"], 1),
        (["patched", "pending", "unknown"], 3),
        (["patched", "unknown", "vulnerable"], 2),
        (["partial"], 2),
        (["blocked"], 2),
        (["unpatchable"], 2),
    ],
)
def test_the_check(report: dict[str, Any], states: list[str], code: int) -> None:
    """Exit codes and performance data as the Monitoring Plugins' guidelines have them."""
    some = copy.deepcopy(report)
    some["hosts"] = [
        host for host in some["hosts"] if host["name"].split(".")[0].replace("-", "_") in states
    ]
    assert len(some["hosts"]) == len(states)
    line, found = checked(some, NOW)
    assert found == code
    text, separator, data = line.partition(" | ")
    assert text.startswith(f"WFPATCH {('OK', 'WARNING', 'CRITICAL', 'UNKNOWN')[code]} - ")
    assert separator and "\n" not in line and "|" not in text
    assert all(PERFORMANCE.match(each) for each in data.split(" "))
    for state in states:
        assert f"{state}=1;;;0;{len(states)}" in data
    # Nobody has written a newer report: what it says counts no more.
    line, found = checked(some, NOW + datetime.timedelta(days=2))
    assert found == 3
    assert f"evidence of {len(states)} hosts is stale" in line


def test_the_check_alone(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Beside the report lies a program that needs nothing but Python."""
    done = subprocess.run(
        [sys.executable, "-I", folder / "check_wfpatch", folder / "report.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert "evidence of 11 hosts is stale" in done.stdout
    (tmp_path / "broken.json").write_text("[]")
    done = subprocess.run(
        [folder / "check_wfpatch", tmp_path / "broken.json"], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stdout.startswith("WFPATCH UNKNOWN - the report cannot be read")
    assert done.stderr == ""


def test_trends_are_of_earlier_reports(report: dict[str, Any]) -> None:
    assert [each["time"] for each in report["history"]] == [
        f"2026-01-{day}T10:00:00Z" for day in (12, 13, 14)
    ]
    assert all(each["states"] == report["states"] for each in report["history"])


def test_a_report_of_no_cve_is_no_good_news() -> None:
    rows = sample_fleet.rows(NOW)[:1]
    rows[0].evidence = {**rows[0].evidence, "cves": [], "processes": [], "patches": []}
    made = sample_fleet.compliance_report(rows, sample_fleet.CONTROLLER, 600, {}, None, NOW)
    assert (made["state"], made["hosts"][0]["reason"]) == ("unknown", "manifest_missing")
    assert checked(made, NOW)[1] == 3


def test_the_same_report_gives_the_same_files(report: dict[str, Any]) -> None:
    """Each format is a function of the report alone."""
    first, second = (contents(copy.deepcopy(report), FORMATS, "si-2_obj", "#") for _ in range(2))
    assert first == second
    assert len(first) > 3 * len(report["hosts"])


def test_file_names_stay_in_the_folder_and_apart() -> None:
    names = [
        "web1",
        "Web1",
        "web1.",
        "../../etc/passwd",
        "..",
        "a/b",
        "a_b",
        "A B",
        "\n",
        "x" * 400,
    ]
    made = [host_file_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(
        re.fullmatch(r"[a-z0-9._-]{1,220}", each) and not each.startswith(".") for each in made
    )
    assert made[0] == "web1"


def test_a_host_that_is_no_more_leaves_no_document(
    report: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """An old "not affected" would silence a scanner for ever."""
    (tmp_path / "openvex").mkdir()
    mine = tmp_path / "openvex" / "own-notes.json"
    mine.write_text("{}")
    write_files(str(tmp_path), contents(report, FORMATS, "si-2_obj", "#"), None)
    gone = tmp_path / "openvex" / "patched.example.org.openvex.json"
    assert gone.exists()
    smaller = copy.deepcopy(report)
    smaller["hosts"] = smaller["hosts"][1:]
    write_files(str(tmp_path), contents(smaller, FORMATS, "si-2_obj", "#"), None)
    assert not gone.exists()
    assert mine.exists()
    assert not list(tmp_path.glob("**/*~"))
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_file_is_replaced_in_one_piece(
    report: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full in the middle leaves the old files whole, and no scratch."""
    files = contents(report, ["prometheus"], "si-2_obj", "#")
    write_files(str(tmp_path), files, None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "wfpatch.prom")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AnsibleError, match="cannot be written"):
        write_files(str(tmp_path), {**files, "wfpatch.prom": b"half"}, None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_signature_is_for_reports_only(report: dict[str, Any], tmp_path: pathlib.Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    place = tmp_path / "report"
    write_files(str(place), contents(report, ["csv"], "si-2_obj", "#"), str(key))
    allowed = tmp_path / "allowed"
    allowed.write_text(f"auditor {(tmp_path / 'key.pub').read_text()}")

    def verifies(name: str, namespace: str) -> bool:
        verify = ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", "auditor", "-n", namespace]
        done = subprocess.run(
            [*verify, "-s", place / f"{name}.sig"],
            input=(place / name).read_bytes(),
            capture_output=True,
        )
        return done.returncode == 0

    for name in ("report.json", "SHA256SUMS"):
        assert verifies(name, "wfpatch-report")
        assert not verifies(name, "wfpatch")
    (place / "report.json").write_text((place / "report.json").read_text() + " ")
    assert not verifies("report.json", "wfpatch-report")
    # A report that is not signed has no signature of an earlier one beside it.
    write_files(str(place), contents(report, ["csv"], "si-2_obj", "#"), None)
    assert not list(place.glob("*.sig"))


def test_the_sample_fits_the_schemas(report: dict[str, Any]) -> None:
    assert problems("compliance", report) == []
    broken = copy.deepcopy(report)
    broken["hosts"][0]["cves"][0]["state"] = "fine"
    assert problems("compliance", broken)
