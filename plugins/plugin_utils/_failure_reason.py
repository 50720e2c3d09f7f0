# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where no module ran to its end on a host, the controller has to find the reason code itself."""

from __future__ import annotations

import typing as t

COMMAND_NOT_FOUND = 127
#: strerror() of ENOSPC and EDQUOT, as Python and the shell's commands print it; and what Python
#: says when it can write into no folder for temporary files, of which it tries several.
NO_ROOM = (
    "No space left on device",
    "Disk quota exceeded",
    "No usable temporary directory found",
)
#: Where Ansible puts what a host said when a module could not begin, or broke off.
SAID = ("msg", "module_stderr", "module_stdout", "exception")


def said_no_room(outcome: t.Mapping[str, t.Any]) -> str | None:
    """The line in which a host said that a file could not be written, if it did."""
    for key in SAID:
        for line in str(outcome.get(key) or "").splitlines():
            if any(words in line for words in NO_ROOM):
                return line.strip()
    return None


def name_reason(outcome: dict[str, t.Any]) -> dict[str, t.Any]:
    """The outcome of a module, with the reason ``python_missing`` or ``disk_full`` where that was
    it and the module could not say so.

    Ansible recognises the shell's complaint and speaks of the interpreter in its message
    (ansible-core, plugins/action/__init__.py); of become's command, missing, it does not.
    """
    if not outcome.get("failed") or outcome.get("reason"):
        return outcome
    if outcome.get("rc") == COMMAND_NOT_FOUND and "interpreter" in str(outcome.get("msg")):
        return {**outcome, "reason": "python_missing"}
    line = said_no_room(outcome)
    if line is not None:
        return {**outcome, "reason": "disk_full", "msg": line}
    return outcome
