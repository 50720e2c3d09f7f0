# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""One row per host, CVE and running image, as comma-separated values (RFC 4180)."""

from __future__ import annotations

import csv
import io
import typing as t

Values = dict[str, t.Any]

COLUMNS = (
    *("host", "cve", "severity", "state", "reason", "opted_out", "patch", "ground"),
    *("pid", "comm", "unit", "user", "path", "build_id", "file", "flagged", "unexplained"),
    *("package", "version", "installed_version", "purl"),
    *("generation", "threads", "stragglers"),
    *("evidence_time", "expires", "stale", "boot_id", "kernel", "applier"),
)
#: A spreadsheet takes a cell that begins like this for a formula (OWASP, "CSV Injection"); a
#: separator of lines or tabs may move what stands behind it into a cell of its own.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def cell(value: t.Any) -> str:
    """A value as a cell that no spreadsheet evaluates. Texts of hosts are hostile."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if isinstance(value, int):
        return text
    return f"'{text}" if text.startswith(_FORMULA) else text


def _host_facts(host: Values) -> Values:
    evidence = host["evidence"]
    return {
        "evidence_time": host["evidence_time"],
        "expires": host["expires"],
        "stale": host["stale"],
        "boot_id": evidence["host"]["boot_id"] if evidence else None,
        "kernel": evidence["host"]["kernel"] if evidence else None,
        "applier": evidence["applier"]["version"] if evidence else None,
    }


def _image(process: Values, item: Values) -> Values:
    package, reading = item["package"] or {}, item["reading"] or {}
    threads = reading.get("threads", {})
    return {
        **{name: process[name] for name in ("pid", "comm", "unit", "user")},
        **{name: item[name] for name in ("path", "build_id", "file", "flagged")},
        "unexplained": " ".join(item["unexplained"]),
        "package": package.get("name"),
        "version": package.get("version"),
        "installed_version": package.get("installed"),
        "purl": package.get("purl"),
        "generation": reading.get("generation"),
        "threads": threads.get("total"),
        "stragglers": len(threads["stragglers"]) if threads else None,
    }


def rows(report: Values) -> t.Iterator[Values]:
    """The rows: of a host and CVE without an image there is one, and of an outdated image that no
    CVE is known of.
    """
    severities = {cve["id"]: cve["severity"] for cve in report["cves"]}
    for host in report["hosts"]:
        facts = {"host": host["name"], **_host_facts(host)}
        processes = host["evidence"]["processes"] if host["evidence"] else []
        images = [(process, item) for process in processes for item in process["objects"]]
        out = {each["pid"] for each in host["opted_out_processes"]}
        for row in host["cves"]:
            known = {**facts, "cve": row["id"], "severity": severities[row["id"]]}
            found = [
                {
                    **known,
                    **_image(process, item),
                    **{name: state[name] for name in ("state", "reason", "patch", "ground")},
                    "opted_out": host["opted_out"] or process["pid"] in out,
                }
                for process, item in images
                for state in item["cves"]
                if state["id"] == row["id"] and not host["stale"]
            ]
            yield from found or [
                {**known, **{name: row[name] for name in ("state", "reason", "opted_out")}}
            ]
        for process, item in images:
            if (item["outdated"] or item["unexplained"]) and not item["cves"]:
                yield {**facts, **_image(process, item)}


def to_csv(report: Values) -> str:
    """The table as text with CRLF at the end of each line."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in rows(report):
        writer.writerow([cell(row.get(name)) for name in COLUMNS])
    return stream.getvalue()
