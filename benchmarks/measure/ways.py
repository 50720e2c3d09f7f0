# SPDX-License-Identifier: GPL-3.0-or-later
"""Which way the functions of stock objects would be armed, all at once, as a process has them.

The applier plans, nothing is written and nobody is stopped. Where landings are free depends on
where the loader has put things, so the processes are those of running services.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from arm_all import PlanAll
from sshfleet import fleet

#: service -> the objects looked at: "" is the executable.
OBJECTS = {
    "memcached": ("", "libevent-2.1.so"),
    "redis": ("", "libssl.so.3", "libcrypto.so.3"),
    "slapd": ("",),
}


def measure(starts: int) -> list[dict[str, Any]]:
    """One row for each object and start of its service."""
    rows = []
    for service, objects in OBJECTS.items():
        for number in range(starts):
            with fleet.running(1, [service], f"ways{number}") as hosts:
                host = hosts.hosts[0]
                pid = hosts.outer_pid(host.name, host.services[service])
                for name in objects:
                    found = PlanAll(pid, name).ways()
                    rows.append({**dataclasses.asdict(found), "without": found.without})
    return rows
