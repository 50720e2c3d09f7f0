# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Nothing that a host says is used before it was found to fit the schema."""

from __future__ import annotations

import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._missing_interpreter import (
    name_missing_interpreter,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import problems

MAX_LISTED = 20


def check_result(outcome: dict[str, t.Any]) -> dict[str, t.Any]:
    """A module's return values with ``result`` checked; a result that does not fit is taken out
    and fails the task.
    """
    if "result" not in outcome:
        return name_missing_interpreter(outcome)
    found = problems("result", outcome["result"])
    if not found:
        return outcome
    kept = {
        key: value
        for key, value in outcome.items()
        if key not in ("result", "state", "verified", "diff")
    }
    kept.update(
        failed=True,
        reason="result_invalid",
        msg="the applier's result does not fit schemas/result.schema.json: "
        + "; ".join(found[:MAX_LISTED]),
    )
    return kept
