# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The files of a compliance report: their names and contents, their signature, and how they are
written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import typing as t

from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils import _compliance_check
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_csaf import (
    csaf,
    csaf_file_name,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_csv import to_csv
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_cyclonedx import cyclonedx
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_html import to_html
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_junit import junit
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_openvex import openvex
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_oscal import oscal
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._compliance_prometheus import prometheus

Values = dict[str, t.Any]

FORMATS = (
    *("csv", "html", "openvex", "csaf", "cyclonedx", "oscal", "junit", "prometheus"),
    "nagios",
)
REPORT = "report.json"
SUMS = "SHA256SUMS"
#: What a signature of a report is good for, and nothing else (ssh-keygen(1), -n).
SIGNATURE_NAMESPACE = "wfpatch-report"
#: Folders with a file per host: what an earlier run left there for a host that is no more goes.
_PER_HOST = ("openvex", "csaf", "cyclonedx")
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,199}\Z")
_SUM = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._/+-]+)\Z")


def host_file_name(name: str) -> str:
    """A file name for a host of the inventory; two hosts never share one, whatever their names."""
    if _PLAIN_NAME.match(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip(".-")[:100] + f"_{digest[:16]}"


def _json(value: Values) -> bytes:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode("utf-8", "replace")


def _check_program() -> bytes:
    with open(_compliance_check.__file__, encoding="utf-8") as file:
        return ("#!/usr/bin/python3\n" + file.read()).encode()


def contents(
    report: Values, formats: t.Collection[str], control: str, plan: str
) -> dict[str, bytes]:
    """Path below the report's folder -> contents. The JSON report is always among them."""
    files = {REPORT: _json(report)}
    texts: tuple[tuple[str, str, t.Callable[[], bytes]], ...] = (
        ("csv", "report.csv", lambda: to_csv(report).encode("utf-8", "replace")),
        ("html", "report.html", lambda: to_html(report).encode("utf-8", "replace")),
        ("oscal", "oscal-assessment-results.json", lambda: _json(oscal(report, control, plan))),
        ("junit", "junit.xml", lambda: junit(report).encode("utf-8", "replace")),
        ("prometheus", "wfpatch.prom", lambda: prometheus(report).encode("utf-8", "replace")),
        ("nagios", "check_wfpatch", _check_program),
    )
    files.update({path: make() for name, path, make in texts if name in formats})
    for host in report["hosts"]:
        own = host_file_name(host["name"])
        if "openvex" in formats:
            files[f"openvex/{own}.openvex.json"] = _json(openvex(report, host))
        if "cyclonedx" in formats:
            files[f"cyclonedx/{own}.cdx.json"] = _json(cyclonedx(report, host))
        if "csaf" in formats:
            document = csaf(report, host)
            # The standard makes the file's name of the tracking id, so the host is a folder.
            tracking = csaf_file_name(document["document"]["tracking"]["id"])
            files[f"csaf/{own}/{tracking}"] = _json(document)
    return files


def sums(files: t.Mapping[str, bytes]) -> bytes:
    """What sha256sum(1) checks."""
    return "".join(
        f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(files.items())
    ).encode()


def sign(data: bytes, key: str) -> bytes:
    """The armoured signature over ``data`` by ssh-keygen. Raises AnsibleError."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", SIGNATURE_NAMESPACE, "-f", key]
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False)
    except OSError as exc:
        raise AnsibleError(f"the report cannot be signed: ssh-keygen: {exc.strerror}") from exc
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise AnsibleError(f"the report cannot be signed with {key}: {said[-500:]}")
    return done.stdout


def _write(path: str, data: bytes, mode: int) -> None:
    """In one piece: nobody reads half a file, and a collector of *.prom does not see the scratch
    file.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    scratch = os.path.join(folder, f".{name}.{os.getpid()}~")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(scratch, path)
    except OSError:
        if os.path.exists(scratch):
            os.unlink(scratch)
        raise


def _written_before(dest: str) -> set[str]:
    """Files per host that an earlier run wrote, by its list of digests."""
    try:
        with open(os.path.join(dest, SUMS), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    found = {match[2] for match in map(_SUM.match, lines) if match}
    return {path for path in found if path.split("/")[0] in _PER_HOST and ".." not in path}


def write_files(dest: str, files: t.Mapping[str, bytes], key: str | None) -> list[str]:
    """Write the files, the list of their digests and, with a key, signatures of the report and of
    the list; returns the paths below ``dest``. Raises AnsibleError.
    """
    listed = dict(files)
    listed[SUMS] = sums(files)
    signed = {}
    if key:
        for name in (REPORT, SUMS):
            signed[f"{name}.sig"] = sign(listed[name], key)
    obsolete = _written_before(dest) - set(files)
    if not key:
        obsolete |= {f"{REPORT}.sig", f"{SUMS}.sig"}
    try:
        for path, data in {**listed, **signed}.items():
            mode = 0o755 if path == "check_wfpatch" else 0o644
            _write(os.path.join(dest, path), data, mode)
        for path in obsolete:
            if os.path.lexists(os.path.join(dest, path)):
                os.unlink(os.path.join(dest, path))
    except OSError as exc:
        raise AnsibleError(
            f"the report cannot be written to {dest}: {exc.filename}: {exc.strerror}"
        ) from exc
    return sorted({**listed, **signed})
