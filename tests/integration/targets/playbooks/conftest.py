# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of the playbooks, signed patches, and a service to patch."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

FLEET = (
    pathlib.Path(os.environ["ANSIBLE_COLLECTIONS_PATH"].split(":")[0])
    / "ansible_collections/wfpatch/fleet"
)
sys.path[:0] = [str(FLEET / "tests/engine"), str(FLEET / "applier")]

RECAP = re.compile(r"^(\S+) +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", re.M)

SERVICE = """
#include <stdio.h>
#include <sys/prctl.h>
#include <time.h>
__attribute__((noinline)) int answer(int x) { return 3 * x + 1; }
int main(int argc, char **argv) {
    struct timespec pause = {0, 10 * 1000 * 1000};
    setvbuf(stdout, 0, _IOLBF, 0);
    if (argc > 1) prctl(PR_SET_NAME, argv[1]);
    for (int i = 0;; i++) {
        printf("%d\\n", answer(i) - 3 * i);
        nanosleep(&pause, 0);
    }
}
"""
NEW_CODE = "int answer(int x) { return 3 * x + 2; }"


class Run:
    """One run of ansible-playbook: exit code, output, changed tasks by host."""

    def __init__(self, done):
        self.code = done.returncode
        self.output = done.stdout
        self.changed = {match[1]: int(match[2]) for match in RECAP.finditer(done.stdout)}


class Playbooks:
    """Runs playbooks by their full names with no configuration file at all."""

    def __init__(self, folder, inventory):
        self.folder = folder
        self.inventory = folder / "inventory"
        self.inventory.write_text(inventory)
        self.report_file = folder / "report.json"

    def run(self, playbook, *options, inventory=None, **variables):
        """Run a playbook; ``variables`` are extra variables."""
        extra = {"wfpatch_report": str(self.report_file), **variables}
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
            "ANSIBLE_NOCOLOR": "1",
        }
        command = [os.environ.get("ANSIBLE_PLAYBOOK", "ansible-playbook"), playbook]
        command += ["-i", str(inventory or self.inventory), "-e", json.dumps(extra), *options]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        print(done.stdout)
        return Run(done)

    def succeed(self, playbook, *options, **variables):
        """As run, and it must succeed."""
        run = self.run(playbook, *options, **variables)
        assert run.code == 0
        return run

    @property
    def report(self):
        """The report of the last run."""
        return json.loads(self.report_file.read_text())


class Signer:
    """A signing key and the list of signers that allows it alone."""

    def __init__(self, folder, name):
        self.key = folder / name
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.key)],
            check=True,
        )
        public = self.key.with_suffix(".pub").read_text().strip()
        self.allowed_signers = folder / f"{name}.allowed_signers"
        self.allowed_signers.write_text(f'signer@example namespaces="wfpatch" {public}\n')

    def sign(self, folder):
        """Sign the bundle in the folder, anew if it was signed before."""
        (folder / "bundle.json.sig").unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-Y", "sign", "-n", "wfpatch", "-f", str(self.key)]
        subprocess.run(
            [*command, str(folder / "bundle.json")], check=True, stderr=subprocess.DEVNULL
        )


@pytest.fixture(scope="session")
def signer(tmp_path_factory):
    return Signer(tmp_path_factory.mktemp("signer"), "key")


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """The service's executable."""
    import sample_patch

    folder = tmp_path_factory.mktemp("service")
    return sample_patch.compile_program(SERVICE, folder / "counting")


@pytest.fixture
def patch(tmp_path, service, signer):
    """A signed patch for the service, in its folder on the controller."""
    import sample_patch
    from elftools.elf.elffile import ELFFile

    elf = sample_patch.build(str(service), NEW_CODE, ["answer"])
    with open(service, "rb") as file:
        notes = ELFFile(file).get_section_by_name(".note.gnu.build-id").iter_notes()
        build_id = next(iter(notes))["n_desc"]
    manifest = {
        "schema": 1,
        "id": "counting-answer",
        "summary": "The answer was one too small",
        "cves": [{"id": "CVE-2026-0001", "severity": "high", "references": []}],
        "released": "2026-01-15",
        "target": {
            "object": "counting",
            "build_ids": [build_id],
            "package": "counting",
            "versions": ["1"],
            "architecture": "amd64",
        },
        "artifact": {
            "file": "patch.elf",
            "sha256": hashlib.sha256(elf).hexdigest(),
            "size": len(elf),
        },
        "policy": "auto",
        "timeouts": {"transition": 30},
        "stragglers": "leave",
        "requires": [],
        "conflicts": [],
        "supersedes": [],
        "health_check": None,
        "stack_switching": "none",
    }
    folder = tmp_path / "counting-answer"
    folder.mkdir()
    (folder / "patch.elf").write_bytes(elf)
    write_manifest(folder, manifest)
    signer.sign(folder)
    return folder


def write_manifest(folder, manifest):
    """Write manifest.yml and bundle.json."""
    text = yaml.safe_dump(manifest, sort_keys=False)
    (folder / "manifest.yml").write_text("---\n" + text)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (folder / "bundle.json").write_bytes(text.encode())


class Service:
    """A running service; ``answer`` is what it prints."""

    def __init__(self, program, folder, name):
        self.output = folder / "service.out"
        with open(self.output, "wb") as output:
            command = [str(program)] + ([name] if name else [])
            self.process = subprocess.Popen(command, stdout=output)
        self.pid = self.process.pid

    def answer(self):
        """What the service prints now: the first line that it begins after this call."""
        seen = self.output.stat().st_size
        while True:
            assert self.process.poll() is None, "the service is gone"
            lines = self.output.read_bytes()[seen:].split(b"\n")
            if len(lines) > 3:
                return int(lines[2])

    def stop(self):
        """End it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(service, tmp_path):
    """start(name=None): start the service under a name that it gives itself."""
    started = []

    def begin(name=None):
        started.append(Service(service, tmp_path, name))
        return started[-1]

    yield begin
    for each in started:
        each.stop()


@pytest.fixture
def playbooks(tmp_path):
    """Playbooks for the host ``here``: this machine, with a place of its own for the applier."""
    place = tmp_path / "host"
    inventory = {
        "all": {
            "vars": {
                "ansible_connection": "local",
                "ansible_become": False,
                "ansible_python_interpreter": "/usr/bin/python3",
                "wfpatch_program": f"{place}/sbin/wfpatch",
                "wfpatch_library": f"{place}/lib",
                "wfpatch_store": f"{place}/store",
                "wfpatch_allowed_signers": f"{place}/etc/allowed_signers",
                "wfpatch_facts_file": f"{place}/etc/wfpatch.fact",
            },
            "children": {
                "patched": {"hosts": {"here": None}},
                "others": {"hosts": {"there": None}},
                "none": {"hosts": {}},
            },
        }
    }
    found = Playbooks(tmp_path, json.dumps(inventory))
    found.place = place
    return found
