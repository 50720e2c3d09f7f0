# SPDX-License-Identifier: GPL-3.0-or-later
"""Applying and reverting in the test's own process, so that a rule can be switched off there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import wfpatch.apply
import wfpatch.plan
from wfpatch.host import Host, Options
from wfpatch.report import ProcessReport, Result

from proof import backends
from proof.bundles import SignedStore


class Patching:
    """A store below ``directory`` and its patches, put into one process and taken out again."""

    def __init__(self, directory: Path, pid: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.signed = SignedStore(directory)
        self.pid = pid
        self._host = Host(self.signed.store())

    def add(self, patch_id: str, patch_elf: bytes, **fields: Any) -> str:
        """Put a bundle into the store."""
        return self.signed.add(patch_id, patch_elf, **fields)

    def _options(self, **options: Any) -> Options:
        return Options(pids=(self.pid,), backend=backends.NAME, **options)

    def apply(self, patch_id: str, **options: Any) -> ProcessReport:
        """Apply; ``timeout``, ``policy`` and ``until`` as for the command line."""
        return self._only(self._host.apply([patch_id], self._options(**options)))

    def everywhere(self, patch_id: str, **options: Any) -> Result:
        """Apply to whatever process maps the object."""
        return self._host.apply([patch_id], Options(**options))

    def revert(self, patch_id: str, **options: Any) -> ProcessReport:
        return self._only(self._host.revert([patch_id], self._options(**options)))

    def plan(self, patch_id: str, **options: Any) -> ProcessReport:
        return self._only(self._host.plan([patch_id], self._options(**options)))

    def status(self) -> ProcessReport:
        return self._only(self._host.status([], self._options()))

    @staticmethod
    def _only(result: Result) -> ProcessReport:
        assert len(result.processes) == 1, result
        return result.processes[0]

    @staticmethod
    def _to_its_end(options: dict[str, Any]) -> dict[str, Any]:
        """The options of a run that must come to its end: an emulated machine takes its time."""
        if backends.NAME != "kernel":
            return options
        return {**options, "timeout": max(options.get("timeout", 0), 240)}

    def patched(self, patch_id: str, **options: Any) -> ProcessReport:
        """Apply, and insist that it came to its end."""
        report = self.apply(patch_id, **self._to_its_end(options))
        assert (report.state, report.reason) == ("patched", None), told(report)
        return report

    def reverted(self, patch_id: str, **options: Any) -> ProcessReport:
        """Revert, and insist that it came to its end."""
        report = self.revert(patch_id, **self._to_its_end(options))
        states = {patch.id: patch.state for patch in report.patches}
        assert report.reason is None and states.get(patch_id) == "vulnerable", told(report)
        return report


def told(report: ProcessReport) -> str:
    """What an assertion message needs."""
    stragglers = [(s.tid, s.comm, s.function, s.reason) for s in report.threads.stragglers]
    return f"{report.state} {report.reason} {report.message} {stragglers}"


def between_sweeps(monkeypatch: Any, actions: Sequence[Callable[[], None]]) -> None:
    """Have the engine's observation do ``actions`` one by one, one after each of its sweeps."""
    original = wfpatch.apply.pauses
    left = list(actions)

    def pauses(deadline: float) -> Iterator[None]:
        for turn, _ in enumerate(original(deadline)):
            if turn and left:
                left.pop(0)()
            yield None

    monkeypatch.setattr(wfpatch.apply, "pauses", pauses)


def only_way(monkeypatch: Any, way: str) -> None:
    """Have every entry armed that way, or not at all."""
    occupied = wfpatch.plan.Occupied
    monkeypatch.setattr(
        wfpatch.plan,
        "Occupied",
        lambda **fields: dataclasses.replace(occupied(**fields), ways=frozenset({way})),
    )
