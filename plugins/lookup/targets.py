# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The hosts of a play, or an error when there are none."""

from __future__ import annotations

DOCUMENTATION = r"""
name: targets
short_description: Host patterns of a play, never an empty set
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Returns the host patterns that it is given, for use as a play's C(hosts), but fails when no
    host of the inventory matches them.
  - C(ansible-playbook) ends with exit code 0 when a play matches no host. A guard play does not
    help, since C(--limit) removes its host as well. A play's C(hosts) are templated before hosts
    are matched, whatever the limit is, so an error here ends the run with a non-zero exit code.
  - The inventory and C(--limit) are taken into account.
options:
  _terms:
    description: Host patterns, as in a play's C(hosts).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Patch the hosts that were asked for
  hosts: "{{ query('wfpatch.fleet.targets', wfpatch_hosts | default('all')) }}"
  tasks: []
"""

RETURN = r"""
_list:
  description: The patterns.
  type: list
  elements: str
  sample:
    - webservers
    - "!web3"
"""

import typing as t

from ansible import context
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._inventory_hosts import (
    InventoryHosts,
    patterns,
)


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(
        self, terms: list[t.Any], variables: dict[str, t.Any] | None = None, **kwargs: t.Any
    ) -> list[str]:
        """Run the lookup."""
        self.set_options(var_options=variables, direct=kwargs)
        wanted = patterns(terms)
        if context.CLIARGS.get("syntax"):
            # A syntax check needs no inventory.
            return wanted
        limit = context.CLIARGS.get("subset")
        groups = {
            str(name): [str(host) for host in hosts]
            for name, hosts in ((variables or {}).get("groups") or {}).items()
        }
        try:
            if wanted and InventoryHosts(self._loader, groups).matching(wanted, limit):
                return wanted
            detail = ""
        except AnsibleError as exc:
            # With host_pattern_mismatch = error, Ansible's own matching raises.
            detail = f" ({exc})"
        limited = f" with --limit {limit}" if limit else ""
        asked = ", ".join(wanted) or "an empty pattern"
        raise AnsibleError(
            f"empty_host_set: no host matches {asked}{limited}{detail} (the inventory has "
            f"{len(groups.get('all', []))} hosts). An empty set is an error, never a success."
        )
