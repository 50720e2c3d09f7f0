# SPDX-License-Identifier: GPL-3.0-or-later
"""One object file in all its versions: stock, with the base patches, and with the patch itself."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.differ import CodeAndData, ObjectDiff
from wfpatch_build.linked_objects import Unit
from wfpatch_build.stock import Stock


@dataclass(frozen=True)
class ObjectChange:
    """``old`` is the stock source, ``pre`` has the patches that are in force before this one (the
    same object when there are none), ``post`` this patch too. ``rank`` counts the objects of the
    same file name that are linked before it."""

    unit: Unit
    old: CompiledObject
    pre: CompiledObject
    post: CompiledObject
    rank: int = 0

    @functools.cached_property
    def diff(self) -> ObjectDiff:
        """What this patch changes."""
        return ObjectDiff(self.pre, self.post)

    @functools.cached_property
    def base(self) -> ObjectDiff | None:
        """What the patches before it changed; None when there are none."""
        return None if self.pre is self.old else ObjectDiff(self.old, self.pre)

    @functools.cached_property
    def old_side(self) -> CodeAndData:
        return self.diff.old if self.base is None else self.base.old

    def stock_function(self, new_name: str) -> str | None:
        """The stock name of a function of ``post``; None when the stock object has none."""
        name = self.diff.functions.old_of.get(new_name)
        if name is None or self.base is None:
            return name
        return self.base.functions.old_of.get(name)

    def stock_datum(self, new_name: str) -> str | None:
        name = self.diff.data.old_of.get(new_name)
        if name is None or self.base is None:
            return name
        return self.base.data.old_of.get(name)

    def stock_unit(self, stock: Stock) -> int | None:
        return stock.unit_of(self.old, self.rank)
