# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules of the collection support, in the words of Ansible's documentation."""

from __future__ import annotations


class ModuleDocFragment:
    """Attributes that differ from module to module are completed there."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying
      target.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in
      C(check_mode)), when in diff mode.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second
      invocation indicates no change.
  platform:
    description: The operating systems that the module works on.
"""

    FLEET = r"""
options: {}
attributes:
  platform:
    support: full
    platforms: linux
  action_group:
    description: Use C(group/wfpatch.fleet.fleet) in C(module_defaults) to set defaults for this
      module.
    support: full
    membership:
      - wfpatch.fleet.fleet
"""

    CONTROLLER = r"""
options: {}
attributes:
  platform:
    support: full
    platforms: posix
  action:
    description: Indicates this has a corresponding action plugin so some parts of the options
      can be executed on the controller.
    support: full
  bypass_host_loop:
    description: Forces a "global" task that does not execute per host.
    support: none
"""
