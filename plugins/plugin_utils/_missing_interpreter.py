# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host without Python runs no module, so the controller has to find the reason code itself."""

from __future__ import annotations

import typing as t

#: What a shell exits with when it does not find a command (POSIX, Shell Command Language 2.8.2).
COMMAND_NOT_FOUND = 127


def name_missing_interpreter(outcome: dict[str, t.Any]) -> dict[str, t.Any]:
    """The outcome of a module, with the reason ``python_missing`` where that was it.

    Ansible recognises the shell's complaint and speaks of the interpreter in its message
    (ansible-core, plugins/action/__init__.py); of become's command, missing, it does not.
    """
    if (
        outcome.get("failed")
        and outcome.get("rc") == COMMAND_NOT_FOUND
        and not outcome.get("reason")
        and "interpreter" in str(outcome.get("msg"))
    ):
        return {**outcome, "reason": "python_missing"}
    return outcome
