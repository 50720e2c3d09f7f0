# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a task says, without what only an action half may say to its module."""

from __future__ import annotations

import typing as t

OURS = ("background", "digest", "events", "offset", "payloads", "staged")


def task_arguments(action: t.Any) -> dict[str, t.Any]:
    """The task's arguments for the module, less those that the action half sets itself."""
    return {name: value for name, value in action._task.args.items() if name not in OURS}
