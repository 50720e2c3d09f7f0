# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible's facts say of a host (``ansible_local.wfpatch``): quick, and never a failure.

States are those of live memory at that moment, as ``wfpatch status`` reads them; ``reason`` says
why where they could not be read.
"""

from __future__ import annotations

import datetime
from typing import Any

from . import __version__
from .backend.selection import kernel_service_problem
from .errors import Crashed, WfpatchError
from .host import Host, Options
from .report import boot_id, printable, worst
from .store import Store


def facts_of(store: Store) -> dict[str, Any]:
    """The facts as JSON values."""
    facts: dict[str, Any] = {
        "version": __version__,
        "store": str(store.path),
        "state": "unknown",
        "reason": None,
        "cves": {},
        "patches": {},
        "processes": {},
        "opted_out": 0,
        "wanted": [],
        "watch": store.watched(),
        "kernel_service": not kernel_service_problem(),
        "boot_id": boot_id(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    try:
        facts["wanted"] = list(store.wanted())
        result = Host(store).status((), Options())
    except WfpatchError as error:
        facts["reason"] = error.reason
        return facts
    except Exception as error:  # noqa: BLE001 - gathering facts fails for nobody
        facts["reason"] = Crashed(error).reason
        return facts
    facts["state"], facts["reason"] = result.state, result.reason
    for cve in result.cves:
        facts["cves"][cve.id] = worst([cve.state, facts["cves"].get(cve.id, "not_affected")], "")
    for patch_id in store.ids():
        states = [
            patch.state
            for process in result.processes
            for patch in process.patches
            if patch.id == patch_id
        ]
        facts["patches"][printable(patch_id)] = worst(states, "not_affected")
    for process in result.processes:
        facts["processes"][process.state] = facts["processes"].get(process.state, 0) + 1
        facts["opted_out"] += process.opted_out is not None
    return facts
