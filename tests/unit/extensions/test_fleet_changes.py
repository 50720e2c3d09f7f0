# SPDX-License-Identifier: GPL-3.0-or-later
"""The event source, driven as ansible-rulebook does: its main() in an event loop, with a queue."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import shutil

import pytest
from ansible_collections.wfpatch.fleet.extensions.eda.plugins.event_source import fleet_changes

#: Seconds between two looks, and how long to wait for something that must not come: many looks.
INTERVAL = 0.01
QUIET = 0.3


class Source:
    """main() as a running task."""

    def __init__(self, **args):
        self.queue = asyncio.Queue()
        self.task = asyncio.create_task(
            fleet_changes.main(self.queue, {"interval": INTERVAL, **args})
        )

    async def event(self):
        """The next event, or the task's exception."""
        getter = asyncio.create_task(self.queue.get())
        await asyncio.wait({getter, self.task}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            getter.cancel()
            self.task.result()
        assert getter.done(), "no event came"
        event = getter.result()
        assert list(event) == ["wfpatch"]
        # It has to survive the way through ansible-rulebook as JSON.
        return json.loads(json.dumps(event))["wfpatch"]

    async def quiet(self):
        """Nothing comes for a while."""
        await asyncio.sleep(QUIET)
        assert self.queue.empty(), self.queue.get_nowait()
        assert not self.task.done()


def drive(scenario, **args):
    """Run an async function with a Source."""

    async def run():
        source = Source(**args)
        try:
            await scenario(source)
        finally:
            source.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ValueError):
                await source.task

    asyncio.run(run())


def put(patches, name, patch_id=None, severity="high", leave_out=()):
    """A patch's folder with what the source reads."""
    folder = patches / name
    folder.mkdir(exist_ok=True)
    bundle = {
        "id": patch_id or name,
        "cves": [{"id": "CVE-2026-0001", "severity": severity, "references": []}],
    }
    files = {
        "manifest.yml": "---\n",
        "bundle.json": json.dumps(bundle),
        "bundle.json.sig": "signature",
        "patch.elf": "elf",
    }
    for file, text in files.items():
        if file not in leave_out:
            (folder / file).write_text(text)
    return folder


@pytest.fixture
def patches(tmp_path):
    folder = tmp_path / "patches"
    folder.mkdir()
    return folder


def test_a_patch_that_is_there_and_one_that_comes(patches):
    first = put(patches, "example-cve-2026-0001")

    async def scenario(source):
        event = await source.event()
        assert event.pop("digest") and event == {
            "kind": "new_patch",
            "id": "example-cve-2026-0001",
            "folder": str(first),
            "cves": ["CVE-2026-0001"],
            "severities": ["high"],
        }
        await source.quiet()
        put(patches, "example-cve-2026-0002")
        assert (await source.event())["id"] == "example-cve-2026-0002"
        await source.quiet()

    drive(scenario, patches=str(patches))


def test_a_patch_is_told_of_once_it_is_whole(patches):
    async def scenario(source):
        put(patches, "late", leave_out=("bundle.json.sig",))
        await source.quiet()
        put(patches, "late")
        assert (await source.event())["id"] == "late"

    drive(scenario, patches=str(patches))


def test_a_patch_with_other_contents_is_new(patches):
    put(patches, "changed")

    async def scenario(source):
        before = await source.event()
        put(patches, "changed", severity="critical")
        after = await source.event()
        assert (before["severities"], after["severities"]) == (["high"], ["critical"])
        assert before["digest"] != after["digest"]
        await source.quiet()

    drive(scenario, patches=str(patches))


def test_only_what_comes_later_where_that_is_wanted(patches):
    put(patches, "old")

    async def scenario(source):
        await source.quiet()
        put(patches, "new")
        assert (await source.event())["id"] == "new"

    # As a text, as templates of a rulebook leave it.
    drive(scenario, patches=str(patches), announce_present="false")


def test_what_is_no_patch_is_passed_over_and_named_once(patches, caplog):
    caplog.set_level(logging.ERROR)
    bad = put(patches, "bad")
    (bad / "bundle.json").write_text("[" * 100_000)
    put(patches, "worse", patch_id="../../etc")
    (put(patches, "empty") / "bundle.json").write_text("[]")
    put(patches, ".hidden")
    (patches / "a-file").write_text("")
    put(patches, "good")

    async def scenario(source):
        assert (await source.event())["id"] == "good"
        await source.quiet()

    drive(scenario, patches=str(patches))
    said = [record.getMessage() for record in caplog.records]
    assert [
        sum(f"/{name} is no patch" in text for text in said) for name in ("bad", "worse", "empty")
    ] == [1, 1, 1]
    assert len(said) == 3


def test_a_folder_that_comes_and_goes(patches):
    async def scenario(source):
        await source.quiet()
        put(patches, "first")
        assert (await source.event())["id"] == "first"
        shutil.rmtree(patches)
        await source.quiet()
        patches.mkdir()
        put(patches, "second")
        assert (await source.event())["id"] == "second"

    patches.rmdir()

    async def begin(source):
        await source.quiet()
        patches.mkdir()
        await scenario(source)

    drive(begin, patches=str(patches))


def write(path, age, **more):
    """A report of that age in seconds, replaced in one piece as the playbooks do."""
    time = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
    text = json.dumps({"schema": 1, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"), **more})
    scratch = path.with_suffix(".new")
    scratch.write_text(text)
    scratch.replace(path)


def test_a_report_becomes_stale_once_until_it_is_renewed(tmp_path):
    report = tmp_path / "report.json"
    write(report, 10, complete=True)

    async def scenario(source):
        await source.quiet()
        write(report, 7200, complete=True)
        event = await source.event()
        assert (event["kind"], event["reason"], event["path"]) == (
            "stale_report",
            "too_old",
            str(report),
        )
        assert 7200 <= event["age"] < 7300
        await source.quiet()
        write(report, 10, complete=True)
        await source.quiet()
        write(report, 7200, complete=True)
        assert (await source.event())["reason"] == "too_old"

    drive(scenario, report=str(report), max_age=3600)


def test_why_a_report_is_stale(tmp_path):
    report = tmp_path / "report.json"

    async def scenario(source):
        assert (await source.event())["reason"] == "missing"
        report.write_text("half a rep")
        assert (await source.event())["reason"] == "unreadable"
        # A run has begun: its report is no reason for another run.
        write(report, 10, complete=False)
        await source.quiet()
        write(report, 7200, complete=False)
        assert (await source.event())["reason"] == "too_old"

    drive(scenario, report=str(report), max_age=3600)


def test_a_report_that_stays_stale_is_told_of_again(tmp_path):
    async def scenario(source):
        for _time in range(3):
            assert (await source.event())["reason"] == "missing"

    drive(scenario, report=str(tmp_path / "none.json"), repeat=INTERVAL)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({}, "nothing to watch"),
        ({"patches": "p", "interval": "soon"}, "interval is 'soon'"),
        ({"report": "r", "max_age": -1}, "max_age is -1"),
        ({"patches": "p", "announce_present": "perhaps"}, "announce_present is 'perhaps'"),
    ],
)
def test_wrong_arguments_end_the_source(args, says):
    async def scenario(source):
        with pytest.raises(ValueError, match=says):
            await source.event()

    drive(scenario, **args)
