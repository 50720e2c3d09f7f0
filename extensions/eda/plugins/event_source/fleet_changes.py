# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""An event source of ansible-rulebook: new patches, and reports that are missing or too old.

Files are read at intervals, with nothing but the standard library. Where an event leads to the
playbook `wfpatch.fleet.patch` it may come twice without harm, for what is in force is left alone;
so nothing is remembered over a restart.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import logging
import os
import pathlib
import re
import typing as t

DOCUMENTATION = r"""
---
short_description: New patches, and reports that are missing or too old
description:
  - Sends an event for each signed patch that is put into a folder, and when a report is missing or
    was written too long ago.
  - Events are mappings with one key, C(wfpatch). Its C(kind) is V(new_patch) or V(stale_report).
options:
  patches:
    description:
      - A folder with a folder for each patch, as the builder leaves it. A patch is new once its
        four files are there, and again when C(bundle.json) changes.
    type: str
  announce_present:
    description:
      - Whether patches that are there at the start are new.
    type: bool
    default: true
  report:
    description:
      - A report in JSON with the member C(time), as the playbooks write it.
    type: str
  max_age:
    description:
      - Seconds after which the report is stale.
    type: int
    default: 86400
  repeat:
    description:
      - Seconds after which a report that is still stale is told of again.
    type: int
    default: 3600
  interval:
    description:
      - Seconds between two looks.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Patch the fleet whenever there is a new patch
  hosts: all
  sources:
    - wfpatch.fleet.fleet_changes:
        patches: /srv/wfpatch/patches
        report: /srv/wfpatch/compliance.json
        max_age: 86400
  rules:
    - name: Apply a new patch
      condition: event.wfpatch.kind == "new_patch"
      action:
        run_playbook:
          name: wfpatch.fleet.patch
          extra_vars:
            wfpatch_patches:
              - "{{ event.wfpatch.folder }}"
"""

FILES = ("manifest.yml", "bundle.json", "bundle.json.sig", "patch.elf")
MAX_JSON = 64 << 20
#: As in schemas/manifest.schema.json.
ID = re.compile(r"[a-z0-9][A-Za-z0-9._-]{0,127}\Z")

Event = dict[str, t.Any]

log = logging.getLogger(__name__)


def read_json(path: pathlib.Path) -> t.Any:
    """The file's value. Raises OSError, ValueError (which RecursionError becomes)."""
    with path.open("rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise ValueError(f"larger than {MAX_JSON} bytes")
    try:
        return json.loads(data)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def patch_event(folder: pathlib.Path) -> tuple[str, Event] | None:
    """Digest of the signed bytes and the event for a patch's folder; None while files are
    missing. Raises OSError, ValueError.
    """
    if not all((folder / name).is_file() for name in FILES):
        return None
    data = (folder / "bundle.json").read_bytes()
    bundle = json.loads(data)
    if not isinstance(bundle, dict):
        raise ValueError("bundle.json: expected a JSON object")
    patch_id = bundle.get("id")
    if not isinstance(patch_id, str) or not ID.match(patch_id):
        raise ValueError(f"bundle.json: {patch_id!r} is not a patch id")
    cves = bundle.get("cves")
    named = [cve for cve in cves if isinstance(cve, dict)] if isinstance(cves, list) else []
    digest = hashlib.sha256(data).hexdigest()
    return digest, {
        "kind": "new_patch",
        "id": patch_id,
        "folder": str(folder),
        "digest": digest,
        "cves": [str(cve.get("id")) for cve in named],
        "severities": sorted({str(cve.get("severity")) for cve in named}),
    }


class Patches:
    """The folder of patches; knows which have been told of."""

    def __init__(self, folder: str, announce_present: bool) -> None:
        self.folder = pathlib.Path(os.path.abspath(os.path.expanduser(folder)))
        self._told: dict[str, str] = {}
        self._complained: dict[str, str] = {}
        if not announce_present:
            list(self.look())

    def look(self) -> t.Iterator[Event]:
        """Events for what is new since the last look."""
        try:
            names = sorted(os.listdir(self.folder))
        except OSError as exc:
            self._complain(str(self.folder), str(exc))
            return
        for name in names:
            folder = self.folder / name
            if name.startswith(".") or not folder.is_dir():
                continue
            try:
                found = patch_event(folder)
            except (OSError, ValueError, RecursionError) as exc:
                self._complain(name, f"{folder} is no patch: {exc}")
                continue
            if found and self._told.get(name) != found[0]:
                self._told[name] = found[0]
                self._complained.pop(name, None)
                yield found[1]

    def _complain(self, name: str, text: str) -> None:
        if self._complained.get(name) != text:
            self._complained[name] = text
            log.error("wfpatch.fleet.fleet_changes: %s", text)


class Report:
    """A report and the time at which it becomes stale."""

    def __init__(self, path: str, max_age: float, repeat: float) -> None:
        self.path = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
        self._max_age, self._repeat = max_age, repeat
        self._told_at: float | None = None
        self._told_of: tuple[str, str | None] | None = None

    def look(self, now: float) -> Event | None:
        """The event when the report is stale and that is news. ``now``: seconds of the epoch."""
        reason, time, age = self._judge(now)
        if reason is None:
            self._told_of = None
            return None
        fresh = self._told_of == (reason, time) and self._told_at is not None
        if fresh and self._told_at is not None and now - self._told_at < self._repeat:
            return None
        self._told_of, self._told_at = (reason, time), now
        return {
            "kind": "stale_report",
            "path": str(self.path),
            "reason": reason,
            "time": time,
            "age": age,
        }

    def _judge(self, now: float) -> tuple[str | None, str | None, int | None]:
        """Why the report is stale, if it is; its time as it says it; its age in seconds."""
        try:
            value = read_json(self.path)
        except FileNotFoundError:
            return "missing", None, None
        except (OSError, ValueError):
            return "unreadable", None, None
        time = value.get("time") if isinstance(value, dict) else None
        try:
            written = datetime.datetime.fromisoformat(str(time))
        except ValueError:
            return "unreadable", None, None
        if written.tzinfo is None:
            return "unreadable", str(time), None
        # A run begins its report with what it knows of no host yet. That is no reason to run again.
        age = int(now - written.timestamp())
        return ("too_old" if age > self._max_age else None), str(time), age


def number(args: dict[str, t.Any], name: str, default: float) -> float:
    """A positive number of the source's arguments. Raises ValueError."""
    value = args.get(name, default)
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = 0.0
    if not found > 0:
        raise ValueError(f"fleet_changes: {name} is {value!r}, expected is a number of seconds")
    return found


def flag(args: dict[str, t.Any], name: str, default: bool) -> bool:
    """A truth value of the source's arguments, which may come as a text. Raises ValueError."""
    value = args.get(name, default)
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "false": False, "no": False}
    if str(value).lower() not in words:
        raise ValueError(f"fleet_changes: {name} is {value!r}, expected is true or false")
    return words[str(value).lower()]


async def main(queue: asyncio.Queue[t.Any], args: dict[str, t.Any]) -> None:
    """Entry point that ansible-rulebook calls. Raises ValueError for arguments that are wrong."""
    if not args.get("patches") and not args.get("report"):
        raise ValueError("fleet_changes: nothing to watch; expected are patches, report or both")
    interval = number(args, "interval", 30)
    patches = report = None
    if args.get("patches"):
        patches = Patches(str(args["patches"]), flag(args, "announce_present", True))
    if args.get("report"):
        repeat = number(args, "repeat", 3600)
        report = Report(str(args["report"]), number(args, "max_age", 86400), repeat)
    while True:
        for event in patches.look() if patches else ():
            await queue.put({"wfpatch": event})
        stale = report.look(datetime.datetime.now().timestamp()) if report else None
        if stale:
            await queue.put({"wfpatch": stale})
        await asyncio.sleep(interval)


if __name__ == "__main__":
    import sys

    class Printer:
        """Shows what a rulebook would get: fleet_changes.py '{"patches": "bundles"}'."""

        async def put(self, event: t.Any) -> None:
            """Print the event."""
            print(json.dumps(event), flush=True)

    asyncio.run(main(t.cast("asyncio.Queue[t.Any]", Printer()), json.loads(sys.argv[1])))
