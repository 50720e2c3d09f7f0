# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's page in a browser: it opens without a network, filters, and leads down to threads.

pytest -m slow tests/compliance/test_page.py --pictures docs      writes the documents' pictures
"""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import sample_fleet
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_files import (
    contents,
    write_files,
)
from browser import Browser
from sample_fleet import CVES, HOSTILE

pytestmark = pytest.mark.slow

SHOWN = "[...document.querySelectorAll('details.host')].filter((h) => !h.hidden)"
NAMES = f"{SHOWN}.map((h) => h.querySelector('summary b').textContent)"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return sample_fleet.with_history(datetime.datetime.now(datetime.UTC), 5)


@pytest.fixture(scope="module")
def folder(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("page")
    write_files(str(place), contents(report, ["html"], "si-2_obj", "#"), None)
    return place


@pytest.fixture(scope="module")
def browser(folder: pathlib.Path) -> Iterator[Browser]:
    with Browser(folder) as started:
        started.size(1100, 900)
        yield started


@pytest.fixture
def page(browser: Browser) -> Browser:
    browser.events.clear()
    browser.open("report.html")
    return browser


def test_it_opens_without_complaint_and_runs_nothing_of_a_host(
    page: Browser, report: dict[str, Any]
) -> None:
    """Texts of hosts are there as texts; the only request is for the file itself."""
    assert page.run("document.title") == f"Live patches: {report['state'].replace('_', ' ')}"
    assert page.run(f"{SHOWN}.length") == len(report["hosts"])
    text = page.run("document.body.textContent")
    assert all(hostile.strip() in text for hostile in HOSTILE[:8])
    assert page.run("document.querySelectorAll('img').length") == 0
    requests = [e for e in page.events if e.get("method") == "Network.requestWillBeSent"]
    assert {each["params"]["request"]["url"] for each in requests} == {
        "file:///tmp/page/report.html"
    }
    complaints = [
        event["params"]
        for event in page.events
        if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
    ]
    assert complaints == []


def test_the_policy_stops_what_is_not_the_pages_own(page: Browser) -> None:
    """Were a text ever to become markup, nothing of it would run."""
    page.run(
        "(() => { const s = document.createElement('script'); s.textContent = 'document.title=1';"
        " document.body.append(s);"
        " document.body.insertAdjacentHTML('beforeend', '<a id=x onclick=\"document.title=2\">');"
        " document.getElementById('x').click(); })()"
    )
    assert page.run("document.title").startswith("Live patches")


def test_the_search_finds_hosts_processes_and_packages(
    page: Browser, report: dict[str, Any]
) -> None:
    page.type_into("#search", "blocked.example.org")
    assert page.run(NAMES) == ["blocked.example.org"]
    assert page.run("document.getElementById('count').textContent") == (
        f"1 of {len(report['hosts'])} hosts shown"
    )
    rows = "[...document.querySelectorAll('.matrix tbody tr')].filter((r) => !r.hidden)"
    assert page.run(f"{rows}.map((r) => r.querySelector('th').textContent)") == [
        "blocked.example.org"
    ]
    page.click("#reset")
    assert page.run(f"{SHOWN}.length") == len(report["hosts"])
    page.type_into("#search", "served")
    assert 0 < page.run(f"{SHOWN}.length") < len(report["hosts"])
    page.click("#reset")
    page.type_into("#search", "nothing has this name")
    assert page.run(f"{SHOWN}.length") == 0


def test_a_tile_filters_by_state(page: Browser, report: dict[str, Any]) -> None:
    page.click('button.tile[data-state="vulnerable"]')
    assert sorted(page.run(NAMES)) == ["outdated.example.org", "vulnerable.example.org"]
    pressed = "document.querySelector('button.tile[data-state=vulnerable]').ariaPressed"
    assert page.run(pressed) == "true"
    page.click('button.tile[data-state="vulnerable"]')
    assert page.run(f"{SHOWN}.length") == len(report["hosts"])
    assert page.run(pressed) == "false"


def test_a_cve_and_a_state_filter_together(page: Browser) -> None:
    page.run(
        f"(() => {{ cve.value = {CVES[1]!r}; cve.dispatchEvent(new Event('input'));"
        " state.value = 'not_affected'; state.dispatchEvent(new Event('input')); })()"
    )
    shown = page.run(NAMES)
    assert "patched.example.org" in shown
    assert "stale.example.org" not in shown
    columns = "[...document.querySelectorAll('.matrix thead th')].filter((c) => !c.hidden)"
    assert page.run(f"{columns}.map((c) => c.textContent)") == ["Host", CVES[1]]


def test_a_cell_leads_to_its_host_and_down_to_the_thread(page: Browser) -> None:
    number = page.run(
        "[...document.querySelectorAll('details.host')].findIndex("
        "(h) => h.querySelector('summary b').textContent === 'partial.example.org')"
    )
    place = f"#host-{number}"
    assert page.run(f"document.querySelector('{place}').open") is False
    page.click(f'.matrix tr[data-host="host-{number}"] td a')
    page.until(f"document.querySelector('{place}').open")
    assert page.run(f"document.querySelector('{place} details.process').open") is False
    page.click(f"{place} details.process > summary")
    page.until(f"document.querySelector('{place} details.process').open")
    text = page.run(f"document.querySelector('{place} details.process').innerText")
    assert "1001" in text
    assert "old code: " in text
    assert "stragglers" in text


def test_ages_are_by_the_readers_clock(page: Browser, folder: pathlib.Path) -> None:
    """One host was stale when it was written; a week later all are."""
    assert page.run("document.getElementById('stale').hidden") is False
    assert page.run("document.getElementById('stale-count').textContent") == "1"
    assert page.run("document.querySelector('time[data-age]').nextSibling.textContent") == " "
    assert "old" in page.run(
        "document.querySelector('header time[data-age]').nextElementSibling.textContent"
    )
    later = "(() => { const now = Date.now; Date.now = () => now() + 7 * 86400e3; })();"
    added = page.command("Page.addScriptToEvaluateOnNewDocument", source=later)
    page.open("report.html")
    page.command("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
    hosts = page.run("document.querySelectorAll('details.host').length")
    # The host that gave no evidence has none that could be old.
    assert page.run("document.getElementById('stale-count').textContent") == str(hosts - 1)


def test_it_is_readable_on_a_phone(page: Browser) -> None:
    """No sideways scrolling of the page itself; the matrix scrolls in its own frame."""
    page.size(390, 844, phone=True)
    try:
        page.open("report.html")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run("getComputedStyle(document.body).fontSize") == "16px"
    finally:
        page.size(1100, 900)


def test_it_prints_with_all_details(page: Browser) -> None:
    page.run(
        "globalThis.shut = () => document.querySelectorAll('details:not([open])').length;"
        " addEventListener('beforeprint', () => { globalThis.during = shut(); }); 0"
    )
    before = page.run("shut()")
    assert before > 0
    printed = page.pdf()
    assert page.run("during") == 0
    assert page.run("shut()") == before
    assert printed.startswith(b"%PDF-")
    assert len(printed) > 20000


def test_it_is_readable_without_script(page: Browser, report: dict[str, Any]) -> None:
    page.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open("report.html")
        page.click("details.host > summary")
    finally:
        page.command("Emulation.setScriptExecutionDisabled", value=False)
    assert page.run("document.querySelector('details.host').open") is True
    assert page.run("document.getElementById('filter').hidden") is True
    assert page.run(f"{SHOWN}.length") == len(report["hosts"])


def test_the_trends_have_a_bar_per_report(page: Browser) -> None:
    rows = page.run("document.querySelectorAll('#trends ~ details tbody tr').length")
    assert rows == 6
    bars = page.run(
        "new Set([...document.querySelectorAll('.chart rect')].map("
        "(r) => r.getAttribute('x'))).size"
    )
    assert bars == 6


#: What a host that means no harm says in each place of its evidence.
FRIENDLY = (
    *("served", "usr/sbin/served", "www-data", "served", "parse_header"),
    "inside since before the patch",
    "1 thread(s) keep the transition open",
    *("read_request", "a structure has a new member", "Debian GNU/Linux 12 (bookworm)"),
)


@pytest.fixture(scope="module")
def friendly(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A page as a fleet would have it that means no harm."""
    patched = pytest.MonkeyPatch()
    patched.setattr(sample_fleet, "text", lambda _number, place: FRIENDLY[place])
    patched.setitem(sample_fleet.CONTROLLER, "publisher", "Operator of the fleet")
    made = sample_fleet.with_history(datetime.datetime.now(datetime.UTC), 9)
    patched.undo()
    place = tmp_path_factory.mktemp("friendly")
    write_files(str(place), contents(made, ["html"], "si-2_obj", "#"), None)
    return place


def test_pictures(
    friendly: pathlib.Path, tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    """The documents' pictures: they can be made, and each shows something."""
    target: pathlib.Path = request.config.getoption("--pictures") or tmp_path
    with Browser(friendly) as browser:
        browser.size(1000, 900)
        browser.open("report.html")
        browser.picture(target / "compliance-glance.png")
        number = browser.run(
            "[...document.querySelectorAll('details.host')].findIndex("
            "(h) => h.querySelector('summary b').textContent === 'partial.example.org')"
        )
        browser.run(f"location.hash = 'host-{number}'; 0")
        browser.until(f"document.querySelector('#host-{number}').open")
        browser.run(f"document.querySelector('#host-{number} details.process').open = true; 0")
        browser.run(f"document.querySelector('#host-{number} h3').scrollIntoView(); 0")
        browser.picture(target / "compliance-process.png")
        browser.size(390, 844, phone=True)
        browser.open("report.html")
        browser.picture(target / "compliance-phone.png")
    for name in ("glance", "process", "phone"):
        picture = (target / f"compliance-{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20000
