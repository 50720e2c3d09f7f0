# SPDX-License-Identifier: GPL-3.0-or-later
"""What the order of code says: a linker keeps each unit's code of one kind together.

Linker scripts gather sections by kind (``Definition.group``), unit after unit, each unit's in the
order in which the compiler wrote them. So stock code between two functions of a unit belongs to
that unit, and as many functions as pieces between two known ones are those, one by one.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wfpatch_build.definitions import Definition, Definitions

Part = tuple[int, str]  # a unit's code of one group


@dataclass(frozen=True)
class Gap:
    """Functions and pieces between two located neighbours, one for one."""

    functions: tuple[Definition, ...]
    addresses: tuple[int, ...]


class CodeOrder:
    """The order of stock pieces (by start) and of the functions of all units."""

    def __init__(self, pieces: Sequence[tuple[int, int]], definitions: Definitions) -> None:
        self._starts = [start for start, size in pieces if size]
        self._parts: dict[Part, list[Definition]] = {}
        for function in definitions.functions:
            if function.size:
                self._parts.setdefault(_part(function), []).append(function)
        for functions in self._parts.values():
            functions.sort(key=lambda f: f.order)

    def _runs(self, located: Mapping[Definition, int]) -> list[list[Definition]]:
        """Located functions by address, cut where the part changes."""
        runs: list[list[Definition]] = []
        for function in sorted(located, key=lambda f: located[f]):
            if runs and _part(runs[-1][0]) == _part(function):
                runs[-1].append(function)
            else:
                runs.append([function])
        return runs

    def strays(self, located: Mapping[Definition, int]) -> set[Definition]:
        """Located functions that lie apart from the rest of their part, among others' code: the
        fewest that must go for each part to be in one place."""
        kept = dict(located)
        while True:
            runs = self._runs(kept)
            parts = [_part(run[0]) for run in runs]
            torn = [run for run, part in zip(runs, parts, strict=True) if parts.count(part) > 1]
            if not torn:
                return located.keys() - kept.keys()
            shortest = min(len(run) for run in torn)
            for run in torn:
                if len(run) == shortest:
                    for function in run:
                        del kept[function]

    def owners(self, located: Mapping[Definition, int]) -> Owners:
        return Owners([(_part(r[0]), located[r[0]], located[r[-1]]) for r in self._runs(located)])

    def gaps(self, located: Mapping[Definition, int]) -> Iterable[Gap]:
        """Stretches between neighbours that hold as many pieces as functions.

        Only in parts of which at least half is located, all of it in the compiler's order: another
        compiler option or source may have made another order.
        """
        ordered = sorted(located, key=lambda f: located[f])
        sound = {part for part in self._parts if self._in_order(part, located)}
        for before, after in zip(ordered, ordered[1:], strict=False):
            if not {_part(before), _part(after)} <= sound or before.group != after.group:
                continue  # between groups the linker's own start code may lie
            low = bisect.bisect_right(self._starts, located[before])
            high = bisect.bisect_left(self._starts, located[after])
            functions = self._between(before, after)
            if functions and len(functions) == high - low:
                yield Gap(tuple(functions), tuple(self._starts[low:high]))

    def _in_order(self, part: Part, located: Mapping[Definition, int]) -> bool:
        functions = self._parts[part]
        addresses = [located[f] for f in functions if f in located]
        return 2 * len(addresses) >= len(functions) and addresses == sorted(addresses)

    def unsupported(self, located: Mapping[Definition, int]) -> set[Definition]:
        """Located functions that are farther from, or nearer to, a located neighbour than the
        compiler put them: there is code between that one side does not have, and which of the
        functions beside it are what they seem cannot be told from their places."""
        ordered = sorted(located, key=lambda f: located[f])
        found: set[Definition] = set()
        for before, after in zip(ordered, ordered[1:], strict=False):
            if before.group != after.group:
                # The linker's own start code may lie between, so only the ends are certain.
                found |= {before} if self._parts[_part(before)][-1] is not before else set()
                found |= {after} if self._parts[_part(after)][0] is not after else set()
                continue
            low = bisect.bisect_right(self._starts, located[before])
            high = bisect.bisect_left(self._starts, located[after])
            turned = _part(before) == _part(after) and before.order > after.order
            if turned or len(self._between(before, after)) != high - low:
                found |= {before, after}
        return found

    def _between(self, before: Definition, after: Definition) -> list[Definition]:
        first, second = self._parts[_part(before)], self._parts[_part(after)]
        if first is second:
            return [f for f in first if before.order < f.order < after.order]
        return [f for f in first if f.order > before.order] + [
            f for f in second if f.order < after.order
        ]


class Owners:
    """Which part the stock code at an address belongs to, as far as located functions tell."""

    def __init__(self, spans: Sequence[tuple[Part, int, int]]) -> None:
        self._spans = sorted(spans, key=lambda span: span[1])
        self._starts = [low for _, low, _ in self._spans]

    def allows(self, function: Definition, address: int) -> bool:
        """Whether ``address`` is not among the code of another part."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return True
        part, low, high = self._spans[index]
        return part == _part(function) or not low <= address <= high


def _part(function: Definition) -> Part:
    return function.unit, function.group
