# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names of groups for a host, by the states of its CVEs."""

from __future__ import annotations

import re
import typing as t

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: cve_groups
short_description: Names of groups for a host, by the states of its CVEs
version_added: 0.1.0
author:
  - The WfPatch authors (@wfpatch)
description:
  - Makes names of groups from what a host says of itself, as C(wfpatch_state_vulnerable) and
    C(wfpatch_CVE_2026_0001_patched), for C(ansible.builtin.group_by).
  - The inventory plugin C(ansible.builtin.constructed) makes groups of such names from cached
    facts, without this filter. See C(docs/watch.md).
positional: _input
options:
  _input:
    description:
      - What M(wfpatch.fleet.live_patch_info) or M(wfpatch.fleet.live_patch) returned, its
        RV(wfpatch.fleet.live_patch_info#module:result), or the facts C(ansible_local.wfpatch).
    type: dict
    required: true
  prefix:
    description: What the names begin with.
    type: str
    default: wfpatch
"""

EXAMPLES = r"""
- name: Read what is in force
  wfpatch.fleet.live_patch_info:
  become: true
  register: live

- name: Group the hosts by the states of their CVEs
  ansible.builtin.group_by:
    key: "{{ item }}"
  loop: "{{ live | wfpatch.fleet.cve_groups }}"
"""

RETURN = r"""
_value:
  description: Names of groups, sorted.
  type: list
  elements: str
  sample:
    - wfpatch_CVE_2026_0001_patched
    - wfpatch_state_patched
"""


def _name(*words: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", "_".join(words)).strip("_")


def cve_groups(value: t.Any, prefix: str = "wfpatch") -> list[str]:
    """See DOCUMENTATION."""
    if isinstance(value, t.Mapping) and isinstance(value.get("result"), t.Mapping):
        value = value["result"]
    if not isinstance(value, t.Mapping) or not isinstance(value.get("state"), str):
        raise AnsibleFilterError(
            "cve_groups takes what live_patch_info returned or the facts ansible_local.wfpatch; "
            f"this has no state: {str(value)[:200]}"
        )
    cves = value.get("cves") or {}
    if isinstance(cves, t.Mapping):
        pairs = [(str(cve), str(state)) for cve, state in cves.items()]
    else:
        pairs = [(str(cve["id"]), str(cve["state"])) for cve in cves]
    names = {_name(prefix, cve, state) for cve, state in pairs}
    return sorted({*names, _name(prefix, "state", value["state"])})


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """By name."""
        return {"cve_groups": cve_groups}
