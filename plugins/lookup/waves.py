# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The hosts of a rollout in the order of its waves, and the waves' sizes."""

from __future__ import annotations

DOCUMENTATION = r"""
name: waves
short_description: Hosts of a rollout in the order of its waves, or the sizes of the waves
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Returns what a play's C(hosts) and C(serial) need for Ansible to patch wave after wave, as the
    rollout policy says.
  - Fails when the policy is not valid, when a host is in no wave, and when no host is left.
  - Without a policy it is as P(wfpatch.fleet.targets#lookup), and the sizes are those of
    O(default).
options:
  _terms:
    description: Host patterns, as in a play's C(hosts).
    type: list
    elements: str
    required: true
  policy:
    description:
      - Path of the rollout policy on the controller, or the policy itself.
      - Empty for none.
    type: raw
    default: ""
  want:
    description: What is returned.
    type: str
    choices: [hosts, sizes]
    default: hosts
  default:
    description: The sizes when there is no policy.
    type: raw
    default: [1, 25%, 100%]
"""

EXAMPLES = r"""
- name: Patch wave after wave
  hosts: "{{ query('wfpatch.fleet.waves', 'all', policy='rollout.yml') }}"
  serial: "{{ query('wfpatch.fleet.waves', 'all', policy='rollout.yml', want='sizes') }}"
  tasks: []
"""

RETURN = r"""
_list:
  description: Names of hosts or host patterns; sizes of waves.
  type: list
  elements: raw
  sample:
    - web1
    - web2
"""

import typing as t

from ansible import context
from ansible.plugins.loader import lookup_loader
from ansible.plugins.lookup import LookupBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._inventory_hosts import (
    InventoryHosts,
    patterns,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_policy import read_policy
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_waves import make_waves


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(
        self, terms: list[t.Any], variables: dict[str, t.Any] | None = None, **kwargs: t.Any
    ) -> list[t.Any]:
        """Run the lookup."""
        self.set_options(var_options=variables, direct=kwargs)
        given, want = self.get_option("policy"), self.get_option("want")
        if not given or context.CLIARGS.get("syntax"):
            if want == "sizes":
                sizes = self.get_option("default")
                return list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]
            targets = lookup_loader.get(
                "wfpatch.fleet.targets", loader=self._loader, templar=self._templar
            )
            return targets.run(terms, variables)
        inventory = InventoryHosts(self._loader, (variables or {}).get("groups") or {})
        waves = make_waves(
            read_policy(given), inventory, patterns(terms), context.CLIARGS.get("subset")
        )
        return waves.sizes if want == "sizes" else waves.hosts
