# SPDX-License-Identifier: GPL-3.0-or-later
"""Pytest fixtures: a factory of fleets that are taken down when the module's tests are over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from .fleet import Fleet, running

FleetFactory = Callable[..., Fleet]


@pytest.fixture(scope="module")
def ssh_fleet() -> Iterator[FleetFactory]:
    """Called with the number of hosts and names of services.toml, brings up a fleet of its own.

    Fleets of several test runs at a time do not meet: each has this process' pid in its name.
    """
    if os.geteuid():
        pytest.skip("namespaces need root")
    with contextlib.ExitStack() as fleets:
        made = 0

        def make(count: int, *services: str, **more: list[str]) -> Fleet:
            nonlocal made
            made += 1
            name = f"test-{os.getpid()}-{made}"
            return fleets.enter_context(running(count, services, name, **more))

        yield make
