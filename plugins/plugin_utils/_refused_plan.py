# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The difference of a plan that refuses something: Ansible shows that of successful tasks only."""

from __future__ import annotations

import typing as t

from ansible.utils.display import Display
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._printable import printable

display = Display()


def show_refused_plan(host: str, outcome: dict[str, t.Any]) -> None:
    """A line for each of the difference's ``after``, where the task fails."""
    difference = outcome.get("diff")
    if not outcome.get("failed") or not difference:
        return
    for line in difference["after"].splitlines():
        display.display(printable(f"{host} plan: {line}", 1000))
