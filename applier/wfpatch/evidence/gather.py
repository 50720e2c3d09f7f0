# SPDX-License-Identifier: GPL-3.0-or-later
"""The verb ``compliance``: all evidence of one host, as one document
(schemas/evidence.schema.json)."""

from __future__ import annotations

import datetime
import os
import platform
import pwd
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wfpatch import __version__
from wfpatch.backend.selection import select_backend
from wfpatch.bundle import Bundle
from wfpatch.discovery import Target
from wfpatch.errors import Refused, Usage
from wfpatch.mapped_object import BuildIds
from wfpatch.opt_out import OptOut, opted_out, unit_of
from wfpatch.report import ProcessReport, boot_id, plain, printable, worst
from wfpatch.store import Store
from wfpatch.tasks import read_proc, read_process_stat, read_status
from wfpatch.verify import inspect_process

from .advisories import Advisory, parse_advisories
from .known import Known, RefusedPart, read_known
from .packages import Package, database, find_owners, purl, read_system
from .running_images import RunningImage, running_images, shares_our_root
from .states import CveState, affected_states, namesake_states
from .unexplained import explained, objects_with_region

#: Threads of a process that are listed by name.
LISTED_THREADS = 256


@dataclass(frozen=True)
class SeenProcess:
    """A process and those of its images that have something to tell."""

    pid: int
    start_time: int
    comm: str
    own_root: bool
    images: tuple[RunningImage, ...]


def _time(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _processes(
    cache: BuildIds, tells: Callable[[RunningImage, frozenset[int]], bool]
) -> Iterator[SeenProcess]:
    """``tells`` is also told where the process has objects with a region of ours."""
    own = os.getpid()
    for name in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        pid = int(name)
        stat = read_process_stat(pid) if pid != own else None
        if stat is None or stat.kernel_thread:
            continue
        regions = objects_with_region(pid)
        images = tuple(image for image in running_images(pid, cache) if tells(image, regions))
        if images:
            yield SeenProcess(pid, stat.start_time, stat.comm, shares_our_root(pid), images)


def _executable(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def _unit(pid: int) -> str | None:
    return printable(unit_of(pid))[:255] or None


def _user(pid: int, own_root: bool) -> tuple[int | None, str | None]:
    status = read_status(pid, pid) or {}
    words = status.get("Uid", "").split()
    if len(words) < 2:
        return None, None
    uid = int(words[1])  # real, effective, saved, of the file system
    if not own_root:
        return uid, None
    try:
        return uid, printable(pwd.getpwuid(uid).pw_name)[:255]
    except KeyError:
        return uid, None


def _threads(pid: int) -> list[dict[str, Any]]:
    try:
        tids = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []
    found = []
    for tid in tids[:LISTED_THREADS]:
        comm = read_proc(f"/proc/{pid}/task/{tid}/comm")
        if comm is not None:
            found.append(
                {"tid": tid, "comm": printable(comm.decode("utf-8", "replace").rstrip("\n"))}
            )
    return found


class Gatherer:
    """What is the same for all processes of the host."""

    def __init__(self, known: Known, rules: tuple[OptOut, ...]) -> None:
        self.known = known
        self.rules = rules
        self.backend = select_backend("auto")
        self.database = database()
        self.system = read_system()
        self.affected = {
            build_id for bundle in known.bundles for build_id in bundle.patch.object.build_ids
        } | {build_id for advisory in known.advisories for build_id in advisory.build_ids}
        self.owners: dict[str, Package] = {}

    def _tells(self, image: RunningImage, regions: frozenset[int]) -> bool:
        return (
            image.outdated
            or image.mapped.start in regions
            or image.mapped.build_id in self.affected
            or bool(self.known.named(image.mapped.path, None))
        )

    def processes(self) -> list[dict[str, Any]]:
        """Every process with an affected, namesake or outdated image."""
        seen = list(_processes(BuildIds(), self._tells))
        self.owners = dict(
            find_owners(
                self.database,
                (i.mapped.path for each in seen if each.own_root for i in each.images),
                self.system,
            )
        )
        described = (self._process(each) for each in seen)
        return [process for process in described if process is not None]

    def _process(self, seen: SeenProcess) -> dict[str, Any] | None:
        exe = _executable(seen.pid)
        objects = [self._object(seen, exe, image) for image in seen.images]
        objects = [
            item for item in objects if item["cves"] or item["outdated"] or item["unexplained"]
        ]
        stat = read_process_stat(seen.pid)
        if not objects or stat is None or stat.start_time != seen.start_time:
            return None
        uid, user = _user(seen.pid, seen.own_root)
        return {
            "pid": seen.pid,
            "start_time": seen.start_time,
            "comm": printable(seen.comm),
            "exe": printable(exe),
            "uid": uid,
            "user": user,
            "unit": _unit(seen.pid),
            "opted_out": self._opted_out(seen, exe),
            "threads": _threads(seen.pid),
            "objects": objects,
        }

    def _opted_out(self, seen: SeenProcess, exe: str) -> str | None:
        rule = opted_out(self.rules, seen.pid, seen.comm, exe)
        return printable(rule)[:4096] if rule is not None else None

    def _object(self, seen: SeenProcess, exe: str, image: RunningImage) -> dict[str, Any]:
        mapped = image.mapped
        package = self.owners.get(mapped.path) if seen.own_root else None
        reading: ProcessReport | None = None
        states: list[CveState] = []
        unexplained: list[str] = []
        if mapped.build_id:
            target = Target(
                seen.pid,
                seen.start_time,
                seen.comm,
                exe,
                os.path.basename(mapped.path),
                mapped.build_id,
                mapped.path,
                mapped.deleted,
                mapped.start,
                True,
            )
            if mapped.build_id in self.affected:
                reading, states = affected_states(self.backend, target, self.known, mapped.build_id)
            elif mapped.start in objects_with_region(seen.pid):
                reading = inspect_process(self.backend, target, ())
            if reading is not None:
                reading, unexplained = explained(reading, self.known)
        debian = self.database is not None and self.database.name == "dpkg"
        states += namesake_states(
            self.known, image, package, debian, {state.id for state in states}
        )
        closed = bool(states) and all(each.state in ("patched", "fixed") for each in states)
        return {
            "path": printable(mapped.path),
            "build_id": mapped.build_id or None,
            "file": image.file,
            "file_build_id": image.file_build_id or None,
            "package": self._package(image, package),
            "reading": plain(reading) if reading is not None else None,
            "cves": [plain(state) for state in sorted(states, key=lambda each: each.id)],
            "unexplained": unexplained,
            "outdated": image.outdated,
            # What a restart would bring for the CVEs in question may be in force already.
            "flagged": image.outdated and not closed,
        }

    def _package(self, image: RunningImage, package: Package | None) -> dict[str, Any] | None:
        """The package that the *running* image is of: after an upgrade another version is
        installed, and the manifest may know the one that runs."""
        targets = [b.manifest.target for b in self.known.bundles_for(image.mapped.build_id)]
        installed = package.version if package is not None else None
        if package is not None and image.is_installed:
            return {
                "name": package.name,
                "version": package.version,
                "installed": installed,
                "architecture": package.architecture,
                "purl": package.purl,
            }
        versions = {version for target in targets for version in target.versions}
        name = package.name if package is not None else targets[0].package if targets else None
        if name is None:
            return None
        architecture = package.architecture if package is not None else targets[0].architecture
        version = versions.pop() if len(versions) == 1 else None
        kind = "rpm" if self.database is not None and self.database.name == "rpm" else "deb"
        return {
            "name": name,
            "version": version,
            "installed": installed,
            "architecture": architecture,
            "purl": purl(kind, self.system, name, version or "", architecture),
        }


def _cves(known: Known, processes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    states: dict[str, list[str]] = {}
    for process in processes:
        for item in process["objects"]:
            for state in item["cves"]:
                states.setdefault(state["id"], []).append(state["state"])
    return [
        {
            "id": cve.id,
            "severity": cve.severity,
            "references": list(cve.references),
            "patches": list(cve.patches),
            "state": worst(states.get(cve.id, ()), "not_affected"),
        }
        for cve in known.cves()
    ]


def _patch(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "id": manifest.id,
        "digest": bundle.digest,
        "signer": printable(bundle.signer),
        "summary": printable(manifest.summary),
        "released": manifest.released,
        "cves": [cve.id for cve in manifest.cves],
        "object": manifest.target.object,
        "build_ids": list(manifest.target.build_ids),
        "package": manifest.target.package,
        "versions": list(manifest.target.versions),
    }


def gather(store: Store, advisories: tuple[Advisory, ...] = ()) -> dict[str, Any]:
    """The evidence of this host, now; it fits schemas/evidence.schema.json."""
    begun = _now()
    known = read_known(store, advisories)
    refused = list(known.refused)
    rules: tuple[OptOut, ...] = ()
    try:
        rules = store.opt_outs()
    except Refused as error:  # states can be read all the same
        refused.append(RefusedPart(None, error.reason, printable(error.message)))
    gatherer = Gatherer(known, rules)
    processes = gatherer.processes()
    system = gatherer.system
    return {
        "schema": 1,
        "begun": _time(begun),
        "ended": _time(_now()),
        "applier": {"version": __version__, "backend": gatherer.backend.name},
        "host": {
            "boot_id": boot_id(),
            "hostname": socket.gethostname(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "system": {"id": system.id, "version": system.version, "name": system.name},
        },
        "packages": gatherer.database.name if gatherer.database is not None else None,
        "patches": [_patch(bundle) for bundle in known.bundles],
        "refused": [plain(each) for each in refused],
        "opted_out": any(rule.kind == "host" for rule in rules),
        "cves": _cves(known, processes),
        "processes": processes,
    }


def read_advisories(path: Path | None) -> tuple[Advisory, ...]:
    """The controller's advisories; raises Usage when the file cannot be read."""
    if path is None:
        return ()
    try:
        return parse_advisories(path.read_bytes())
    except OSError as error:
        raise Usage("usage", f"{path}: {error.strerror}") from None


def human(evidence: dict[str, Any]) -> str:
    """The evidence for a person: the CVEs, then what is to be said of each process."""
    lines = [f"{cve['id']} {cve['severity']} {cve['state']}" for cve in evidence["cves"]]
    for process in evidence["processes"]:
        for item in process["objects"]:
            for cve in item["cves"]:
                why = cve["reason"] or cve["ground"] or cve["patch"] or ""
                lines.append(
                    f"{process['comm']}[{process['pid']}] {item['path']}: {cve['id']} "
                    f"{cve['state']}{f' ({why})' if why else ''}"
                )
            lines.extend(
                f"{process['comm']}[{process['pid']}] {item['path']}: {patch} is in force, "
                "and no manifest at hand is its"
                for patch in item["unexplained"]
            )
            if item["outdated"]:
                lines.append(
                    f"{process['comm']}[{process['pid']}] {item['path']}: outdated, its file was "
                    f"{item['file']}" + ("" if item["flagged"] else "; patched in memory")
                )
    lines.extend(
        f"{each['id'] or 'opt-outs'}: {each['reason']}: {each['message']}"
        for each in evidence["refused"]
    )
    return "\n".join(lines) or "no manifest names a CVE, and nothing that runs is outdated"
