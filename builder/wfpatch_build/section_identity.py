# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a rebuilt binary is the stock binary, section by section."""

from __future__ import annotations

from dataclasses import dataclass

from wfpatch_build.object_file import ObjectFile

# What a link stamps on its output rather than computes from its input.
_STAMPS = (".note.gnu.build-id", ".gnu_debuglink", ".gnu_debugaltlink")


@dataclass(frozen=True)
class SectionReport:
    """``verdict``: identical, differs, moved (same bytes elsewhere), missing or extra."""

    name: str
    size: int
    loaded: bool
    verdict: str


@dataclass(frozen=True)
class Identity:
    sections: tuple[SectionReport, ...]
    same_file: bool
    same_build_id: bool

    @property
    def exact(self) -> bool:
        """Whether all that is loaded is the same but, at most, the build-id."""
        return all(
            s.verdict == "identical" for s in self.sections if s.loaded and s.name not in _STAMPS
        )

    @property
    def differing(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.sections if s.verdict != "identical")

    def summary(self) -> str:
        """One line for people."""
        if self.same_file:
            return f"bit-identical ({len(self.sections)} sections)"
        loaded = [s for s in self.sections if s.loaded]
        same = sum(s.verdict == "identical" for s in loaded)
        rest = ", ".join(self.differing)
        return f"{same} of {len(loaded)} loaded sections identical; not: {rest}"


def compare(stock: ObjectFile, rebuilt: ObjectFile) -> Identity:
    """Compare two linked files by their sections' places and bytes."""
    theirs = {s.name: s for s in rebuilt.sections if s.name}
    reports = []
    for section in stock.sections:
        if not section.name:
            continue
        other = theirs.pop(section.name, None)
        if other is None:
            verdict = "missing"
        elif stock.section_bytes(section) != rebuilt.section_bytes(other):
            verdict = "differs"
        elif section.address != other.address or section.size != other.size:
            verdict = "moved"
        else:
            verdict = "identical"
        reports.append(SectionReport(section.name, section.size, section.allocated, verdict))
    reports += [SectionReport(s.name, s.size, s.allocated, "extra") for s in theirs.values()]
    return Identity(tuple(reports), stock.data == rebuilt.data, stock.build_id == rebuilt.build_id)
