# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a rollout goes on after a wave, and which hosts go back. Nothing here asks a host."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

Values = dict[str, t.Any]

REVERTED = "rollout_reverted"
LOST = "host_unreachable"


@dataclass(frozen=True)
class HostOutcome:
    """What a run knows of a host. ``failure``: the result that made it fail, None when well.

    ``reached``: a wave came to it and was judged. ``brought``: ids of the patches that this
    rollout brought into force, or may have. ``reverted``: they were taken back.
    """

    name: str
    failure: Values | None = None
    reached: bool = False
    brought: tuple[str, ...] = ()
    reverted: bool = False

    @property
    def to_revert(self) -> bool:
        """Whether there is something to take back."""
        return bool(self.brought) and not self.reverted


@dataclass(frozen=True)
class Verdict:
    """``revert``: ids to take back, by host. ``why``: of a stop, for people."""

    stop: bool
    failed: tuple[str, ...]
    revert: dict[str, list[str]]
    why: str


def told(name: str, failure: Values) -> str:
    """A host's failure in one line."""
    said = " ".join(str(failure.get("msg") or "").split())
    return ": ".join(part for part in (name, failure.get("reason") or "", said) if part)


def judge(plan: Values, outcomes: t.Sequence[HostOutcome], batch: t.Container[str]) -> Verdict:
    """The verdict on a wave; ``outcomes`` are those of all hosts of the rollout, ``batch`` the
    wave's hosts.

    A gate that was asked once for the whole wave ends the rollout however many hosts may fail.
    """
    failed = [outcome for outcome in outcomes if outcome.failure]
    here = [outcome for outcome in failed if outcome.name in batch]
    of_wave = any(outcome.failure and outcome.failure.get("wave") for outcome in here)
    stop = of_wave or len(failed) > plan["failures_allowed"]
    scope = plan["on_failure"]
    going: list[HostOutcome] = []
    if scope != "stop":
        going = here
        if stop and scope in ("revert_wave", "revert_all"):
            going = [outcome for outcome in outcomes if outcome.name in batch]
    why = ""
    if stop:
        why = f"{len(failed)} of {len(outcomes)} hosts failed" + (
            f" ({told(here[0].name, here[0].failure or {})[:500]})" if here else ""
        )
    return Verdict(
        stop,
        tuple(outcome.name for outcome in here),
        {outcome.name: list(outcome.brought) for outcome in going if outcome.to_revert},
        why,
    )


def to_revert_at_end(plan: Values, outcomes: t.Sequence[HostOutcome]) -> dict[str, list[str]]:
    """What is taken back of all waves once the rollout has stopped, by host."""
    if plan["on_failure"] != "revert_all":
        return {}
    return {outcome.name: list(outcome.brought) for outcome in outcomes if outcome.to_revert}
