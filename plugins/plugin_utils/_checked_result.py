# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Nothing that a host says is used before it was found to fit the schema."""

from __future__ import annotations

import typing as t

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._failure_reason import name_reason
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import problems

MAX_LISTED = 20
#: What modules make out of a result, and what goes with it when it does not fit.
DERIVED = ("state", "verified", "diff")


def check_result(outcome: dict[str, t.Any]) -> dict[str, t.Any]:
    """A module's return values with ``result`` checked; a result that does not fit is taken out
    and fails the task.
    """
    return _checked(outcome, "result", "the applier's result", DERIVED)


def check_evidence(outcome: dict[str, t.Any]) -> dict[str, t.Any]:
    """As check_result, of ``evidence``."""
    return _checked(outcome, "evidence", "the host's evidence", ())


def _checked(
    outcome: dict[str, t.Any], key: str, what: str, derived: tuple[str, ...]
) -> dict[str, t.Any]:
    if key not in outcome:
        return name_reason(outcome)
    found = problems(key, outcome[key])
    if not found:
        return outcome
    kept = {name: value for name, value in outcome.items() if name not in (key, *derived)}
    kept.update(
        failed=True,
        reason="result_invalid",
        msg=f"{what} does not fit schemas/{key}.schema.json: " + "; ".join(found[:MAX_LISTED]),
    )
    return kept
