# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which host belongs to which wave of a rollout."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._inventory_hosts import InventoryHosts
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_policy import (
    PolicyInvalid,
    RolloutPolicy,
    WavePolicy,
)

MAX_NAMES = 10


@dataclass(frozen=True)
class Wave:
    """A wave with its hosts, at least one."""

    policy: WavePolicy
    hosts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The wave's name."""
        return self.policy.name


@dataclass(frozen=True)
class Waves:
    """All waves that have hosts, and the hosts that no patch touches."""

    waves: tuple[Wave, ...]
    opted_out: tuple[str, ...]

    @property
    def hosts(self) -> list[str]:
        """The hosts of all waves, in the order in which they are patched."""
        return [host for wave in self.waves for host in wave.hosts]

    @property
    def sizes(self) -> list[int]:
        """How many hosts each wave has."""
        return [len(wave.hosts) for wave in self.waves]


def _some(names: t.Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _known(inventory: InventoryHosts, wanted: tuple[str, ...], place: str) -> set[str]:
    """The hosts of the whole inventory that these patterns match; none at all is a mistake."""
    try:
        found = set(inventory.matching(list(wanted)))
    except AnsibleError as exc:
        raise PolicyInvalid([f"{place}: {exc}"]) from exc
    if not found:
        raise PolicyInvalid([f"{place}: no host of the inventory matches {', '.join(wanted)}"])
    return found


def make_waves(
    policy: RolloutPolicy, inventory: InventoryHosts, wanted: list[str], limit: str | None
) -> Waves:
    """The waves over the hosts that a play with the patterns ``wanted`` and this limit has.

    A percentage is of the wave's own hosts, whether earlier waves took them or not, and at least
    one host. Raises PolicyInvalid for patterns that match nothing in the whole inventory and for
    hosts that are in no wave, AnsibleError with empty_host_set when no host is left.
    """
    hosts = inventory.matching(wanted, limit)
    opted_out: set[str] = set()
    if policy.opt_out_hosts:
        opted_out = _known(inventory, policy.opt_out_hosts, "opt_out.hosts")
    taking_part = [host for host in hosts if host not in opted_out]
    if not taking_part:
        why = "all of them are opted out" if hosts else "no host matches"
        raise AnsibleError(
            f"empty_host_set: the rollout {policy.name} has no host: {why}. An empty set is an "
            "error, never a success."
        )
    waves: list[Wave] = []
    taken: set[str] = set()
    for index, wave in enumerate(policy.waves):
        candidates = taking_part
        if wave.hosts:
            known = _known(inventory, wave.hosts, f"waves[{index}].hosts")
            candidates = [host for host in taking_part if host in known]
        left = [host for host in candidates if host not in taken]
        if wave.count:
            left = left[: wave.count]
        elif wave.percent:
            left = left[: max(1, len(candidates) * wave.percent // 100)]
        taken.update(left)
        if left:
            waves.append(Wave(wave, tuple(left)))
    missing = [host for host in taking_part if host not in taken]
    if missing:
        raise PolicyInvalid(
            [
                f"waves: {len(missing)} of {len(taking_part)} hosts are in no wave "
                f"({_some(missing)}); a last wave without count and percent takes all that are left"
            ]
        )
    return Waves(tuple(waves), tuple(host for host in hosts if host in opted_out))
