# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hosts by Ansible's own patterns, over a copy of the inventory's groups."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager


def patterns(terms: t.Iterable[t.Any]) -> list[str]:
    """Host patterns out of texts and lists of texts, without empty ones."""
    found: list[str] = []
    for term in terms:
        if isinstance(term, str):
            found.append(term.strip())
        elif isinstance(term, (list, tuple)):
            found.extend(patterns(term))
        else:
            raise AnsibleError(f"{term!r} is not a host pattern")
    return [pattern for pattern in found if pattern]


class InventoryHosts:
    """The hosts of an inventory, which ``groups`` (Ansible's variable of that name) describes."""

    def __init__(self, loader: t.Any, groups: t.Mapping[str, t.Iterable[str]]) -> None:
        self._inventory = InventoryManager(loader=loader, sources=None, parse=False)
        for group in groups:
            self._inventory.add_group(str(group))
        for group, hosts in groups.items():
            for host in hosts:
                self._inventory.add_host(str(host), group=str(group))

    def matching(self, wanted: list[str], limit: str | None = None) -> list[str]:
        """Names of the hosts that a play with these patterns has, in its order.

        Raises AnsibleError where Ansible's own matching does.
        """
        self._inventory.subset(limit)
        try:
            return [host.get_name() for host in self._inventory.get_hosts(wanted)]
        finally:
            self._inventory.subset(None)
