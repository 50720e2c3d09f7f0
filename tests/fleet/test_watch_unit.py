# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit of the watch under a real systemd: installed, killed, started again, and removed."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import secrets
import subprocess
import sys
import time

import pytest
import yaml

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests" / "engine"), str(TOP / "applier")]

import sample_patch  # noqa: E402
from booted_host import BootedHost  # noqa: E402
from proof.bundles import canonical, make_key, manifest, signature  # noqa: E402

pytestmark = pytest.mark.slow

UNIT = "wfpatch-watch.service"
SERVICE = """
#include <stdio.h>
#include <unistd.h>
__attribute__((noinline)) int answer(int x) { return 3 * x + 1; }
int main(void) {
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0;; i++) { printf("%d %d\\n", (int)getpid(), answer(i) - 3 * i); usleep(10000); }
}
"""
NEW_CODE = "int answer(int x) { return 3 * x + 2; }"
SERVICE_UNIT = b"""[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/local/bin/answering
StandardOutput=append:/run/answers
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A booted host with the service answering."""
    folder = tmp_path_factory.mktemp("booted")
    booted = BootedHost(folder)
    try:
        booted.boot()
        program = sample_patch.compile_program(
            SERVICE,
            folder / "answering",
            ("-O2", f"-Wl,--build-id=0x{secrets.token_hex(20)}"),
        )
        booted.program = program
        booted.write("/usr/local/bin/answering", program.read_bytes(), "755")
        booted.write("/etc/systemd/system/answering.service", SERVICE_UNIT)
        booted.run("systemctl", "daemon-reload")
        booted.run("systemctl", "start", "answering")
        yield booted
    finally:
        booted.end()


@pytest.fixture(scope="module")
def playbooks(host, tmp_path_factory):
    """run(playbook, *options, **variables): a run that must succeed; how many tasks changed."""
    folder = tmp_path_factory.mktemp("controller")
    elf = sample_patch.build(host.program, NEW_CODE, ["answer"])
    patch = folder / "fix-answer"
    patch.mkdir()
    values = manifest("fix-answer", elf, target={"object": "answering"})
    values["cves"] = [{"id": "CVE-2026-0001", "severity": "high", "references": []}]
    assert values["artifact"]["sha256"] == hashlib.sha256(elf).hexdigest()
    (patch / "patch.elf").write_bytes(elf)
    (patch / "manifest.yml").write_text("---\n" + yaml.safe_dump(values))
    (patch / "bundle.json").write_bytes(canonical(values))
    key = make_key(folder / "key")
    (patch / "bundle.json.sig").write_bytes(signature(canonical(values), key))
    signers = folder / "signers"
    signers.write_text(f"release@example {key.with_suffix('.pub').read_text()}")
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"booted": host.variables()}}}))
    collections = subprocess.run(
        [TOP / "setup" / "collection"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    given = {
        "wfpatch_patches": [str(patch)],
        "wfpatch_signers_file": str(signers),
        "wfpatch_report": str(folder / "report.json"),
        "wfpatch_watch": True,
    }

    def run(name, *options, **variables):
        program = pathlib.Path(sys.executable).with_name(
            "ansible-playbook" if name.startswith("wfpatch") else "ansible"
        )
        extra = ["-e", json.dumps({**given, **variables})] if name.startswith("wfpatch") else []
        done = subprocess.run(
            [program, name, "-i", inventory, *extra, *options],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "LC_ALL": "C.UTF-8",
                "ANSIBLE_COLLECTIONS_PATH": collections,
                "ANSIBLE_NOCOLOR": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            timeout=300,
        )
        print(done.stdout)
        assert done.returncode == 0
        if name.startswith("wfpatch"):
            return int(re.search(r"^booted .*changed=(\d+)", done.stdout, re.MULTILINE)[1])
        return done.stdout

    return run


def main_pid(host, unit):
    return int(host.run("systemctl", "show", "--value", "-p", "MainPID", unit).stdout)


def answers(host, number, timeout=30.0):
    """Wait until the process that the service now is answers so; seconds that took."""
    begun = time.monotonic()
    expected = f"{main_pid(host, 'answering')} {number}"
    while host.run("tail", "-n", "1", "/run/answers").stdout.strip() != expected:
        assert time.monotonic() - begun < timeout, expected
        time.sleep(0.01)
    return time.monotonic() - begun


def patched_by_the_watch(host):
    """The watch's own words in the journal: pid of each process that it patched."""
    words = ["journalctl", "-o", "json", "-t", "wfpatch-watch", "WFPATCH_EVENT=patched"]
    return {
        int(entry["WFPATCH_PID"]): entry
        for entry in map(json.loads, host.run(*words).stdout.splitlines())
    }


def test_the_unit(host, playbooks):
    assert answers(host, 1) >= 0
    assert playbooks("wfpatch.fleet.patch", "--check", "--diff") > 0
    assert host.run("systemctl", "is-active", UNIT, check=False).stdout == "inactive\n"
    assert playbooks("wfpatch.fleet.patch") > 0
    answers(host, 2)
    assert host.run("systemctl", "is-active", UNIT).stdout == "active\n"
    assert host.run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
    assert playbooks("wfpatch.fleet.patch") == 0
    assert playbooks("wfpatch.fleet.patch", "--check") == 0

    # Restarted, it is patched again, and the journal says by whom and what.
    taken = []
    for _ in range(5):
        host.run("systemctl", "restart", "answering")
        taken.append(answers(host, 2))
    print("restarts, seconds:", [round(each, 2) for each in taken])
    entry = patched_by_the_watch(host)[main_pid(host, "answering")]
    assert entry["WFPATCH_UNIT"] == "answering.service"
    assert (entry["WFPATCH_PATCHES"], entry["WFPATCH_STATE"]) == ("fix-answer", "patched")
    status = host.run("systemctl", "show", "--value", "-p", "StatusText", UNIT).stdout
    assert "by fanotify" in status and "1 patches wanted" in status, status

    # Killed, it comes again, and goes on.
    watch = main_pid(host, UNIT)
    host.run("systemctl", "kill", "-s", "KILL", UNIT)
    host.run("systemctl", "restart", "answering")
    answers(host, 2)
    assert main_pid(host, UNIT) not in (0, watch)

    facts = playbooks("booted", "-m", "ansible.builtin.setup", "-a", "filter=ansible_local")
    facts = json.loads(facts.partition("=>")[2])["ansible_facts"]["ansible_local"]["wfpatch"]
    assert (facts["state"], facts["watch"]) == ("patched", True)
    assert facts["cves"] == {"CVE-2026-0001": "patched"}
    log = host.run("cat", "/var/log/wfpatch/audit.log").stdout.splitlines()
    assert {json.loads(line)["by"] for line in log} == {"command", "watch"}

    # What was reverted is not in force.
    assert playbooks("wfpatch.fleet.revert") > 0
    answers(host, 1)
    host.run("systemctl", "restart", "answering")
    time.sleep(2)
    answers(host, 1)

    assert playbooks("wfpatch.fleet.install", wfpatch_watch=False) > 0
    assert host.run("systemctl", "is-active", UNIT, check=False).stdout == "inactive\n"
    assert playbooks("wfpatch.fleet.install") > 0
    assert host.run("systemctl", "is-active", UNIT).stdout == "active\n"
    assert playbooks("wfpatch.fleet.uninstall") > 0
    shown = host.run("systemctl", "show", "--value", "-p", "LoadState", UNIT).stdout
    assert shown == "not-found\n"
    assert playbooks("wfpatch.fleet.uninstall") == 0
