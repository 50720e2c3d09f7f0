# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines while a host works: a straggler is named before the run knows how it ends."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import live_patching
import pytest
import small_service
import yaml
from live_patching import CONTROLLER, TOP
from small_service import PATCH, SmallService
from sshfleet.fixture import FleetFactory
from sshfleet.fleet import Fleet

ASKED = "host01 is asked over Ansible's own connection: "


class Site:
    """Two hosts, a program, and a patch that somebody signed."""

    def __init__(self, fleet: Fleet, folder: pathlib.Path) -> None:
        self.fleet, self.folder = fleet, folder
        self.program = small_service.compile_service(folder)
        signer = live_patching.make_signer(folder)
        patch = small_service.signed_patch(self.program, folder, signer.key)
        self.variables = {
            "wfpatch_patches": [str(patch)],
            "wfpatch_signers_file": str(signer.allowed),
            "wfpatch_report": str(folder / "report.json"),
            "wfpatch_progress": "always",
        }


class Playing:
    """A playbook while it runs, and what it has said so far."""

    def __init__(self, site: Site, *options: str, **environment: str) -> None:
        self.path = site.folder / "output"
        command = [
            *(CONTROLLER / "ansible-playbook", TOP / "playbooks" / "patch.yml"),
            *("-i", site.fleet.inventory, "--limit", "host01"),
            *("-e", json.dumps(site.variables), *options),
        ]
        variables = {
            "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(TOP / ".work" / "collections"),
            "ANSIBLE_FORCE_COLOR": "0",
        }
        with self.path.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **variables, **environment},
            )

    def text(self) -> str:
        return self.path.read_text()

    def until(self, pattern: str) -> None:
        """Waits until a line like that was said; the run must not have ended before."""
        limit = time.monotonic() + 120
        while not re.search(pattern, self.text(), re.M):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < limit, self.text()
            time.sleep(0.05)
        assert self.process.poll() is None, self.text()

    def end(self) -> str:
        """All that was said by a run that went well."""
        assert self.process.wait(120) == 0, self.text()
        return self.text()


@pytest.fixture(scope="module")
def site(ssh_fleet: FleetFactory, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(ssh_fleet(2), tmp_path_factory.mktemp("site"))


@pytest.fixture
def held(site: Site) -> Iterator[SmallService]:
    """The service, with a thread that stays in old code until it is let go."""
    service = SmallService(site.fleet, "host01", site.program, held=True)
    yield service
    service.end()


def inventory(site: Site, **variables: Any) -> str:
    """A further inventory that says more of host01; its path."""
    path = site.folder / "more.yml"
    path.write_text("---\n" + yaml.safe_dump({"all": {"hosts": {"host01": variables}}}))
    return str(path)


def watch(held: SmallService, playing: Playing) -> str:
    """The straggler is told of while it keeps the transition open; then all ends well."""
    who = rf"^host01 counting\[{held.inner}\] {PATCH}: "
    playing.until(who + r"threads: 1 of 2 done, 1 straggler: \d+ counting in answer: ")
    held.let_go()
    text = playing.end()
    steps = (
        "plan: 1 function ",
        "loaded in ",
        "armed in ",
        "threads: ",
        "finished: patched, 2 of ",
    )
    places = [re.search(who + re.escape(step), text, re.M) for step in (*steps, "verified in ")]
    starts = [place.start() for place in places if place]
    assert len(starts) == len(places), text
    assert starts == sorted(starts), text
    assert held.answers() == {2}
    return text


def left_over(site: Site) -> list[str]:
    """What lies on the host of what was told."""
    folder = site.fleet.root("host01") / "run/wfpatch/events"
    return [path.name for path in folder.iterdir()] if folder.exists() else []


@pytest.mark.skipif(
    CONTROLLER != live_patching.COMMANDS, reason="paramiko is optional, and this one has none"
)
def test_over_a_channel_of_its_own(site: Site, held: SmallService) -> None:
    assert ASKED not in watch(held, Playing(site))
    assert left_over(site) == []


@pytest.mark.slow
@pytest.mark.skipif(
    CONTROLLER != live_patching.COMMANDS, reason="paramiko is optional, and this one has none"
)
def test_through_a_jump_host_and_with_a_password_for_become(site: Site, held: SmallService) -> None:
    more = inventory(
        site,
        ansible_ssh_common_args=f"-F {site.fleet.ssh_config} -o ProxyJump=host02 "
        "-o ProxyUseFdpass=no",
        ansible_become_password="nobody asks for it",
    )
    assert ASKED not in watch(held, Playing(site, "-i", more))


@pytest.mark.slow
@pytest.mark.skipif(
    CONTROLLER != live_patching.COMMANDS, reason="paramiko is optional, and this one has none"
)
def test_a_host_whose_key_is_not_known(site: Site, held: SmallService) -> None:
    """ssh was told not to mind; the other channel minds, and the run goes on without it."""
    more = inventory(
        site,
        ansible_ssh_common_args="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
        f"-F {site.fleet.ssh_config}",
    )
    text = watch(held, Playing(site, "-i", more))
    assert re.search(ASKED + "SSHException: Server '10[0-9.]+' not found in known_hosts", text)


@pytest.mark.slow
def test_without_paramiko(site: Site, held: SmallService, tmp_path: pathlib.Path) -> None:
    (tmp_path / "paramiko.py").write_text("raise ImportError('not here')\n")
    text = watch(held, Playing(site, PYTHONPATH=str(tmp_path)))
    assert f"{ASKED}the Python that runs Ansible has no paramiko" in text
    assert left_over(site) == []


@pytest.mark.slow
def test_where_nobody_looks_on(site: Site) -> None:
    service = SmallService(site.fleet, "host01", site.program)
    text = Playing(site, "-e", "wfpatch_progress=auto").end()
    assert re.findall(r"^host01 counting\[\d+\] ", text, re.M) == []
    assert service.answers() == {2}
    service.end()
