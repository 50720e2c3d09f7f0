# SPDX-License-Identifier: GPL-3.0-or-later
"""Which function or datum of one compilation is which of another.

Names are not enough: the compiler numbers clones (`f.constprop.0`, `f.isra.1`, `f.part.0`) and
static locals (`buffer.3`), and a patch shifts the numbers. Within a group of names that differ only
in such numbers, things are paired by equal shape, then by name, then by likeness, in that order.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

# GCC: cgraphclones.cc and varasm; lto_priv and the rest appear only with options we meet rarely.
_NUMBERED = re.compile(r"\.(constprop|isra|part|cold|lto_priv|localalias|clone)\.\d+")
_STATIC_LOCAL = re.compile(r"\.\d+$")
_CLONE = re.compile(r"\.(constprop|isra|part|cold|lto_priv|localalias|clone)(\.\d+)?")

# Read-only data that the compiler itself makes; nothing can depend on their addresses.
_COMPILER_MADE = re.compile(
    r"^(CSWTCH|__func__|__FUNCTION__|__PRETTY_FUNCTION__|C)\.\d+$|^\.LC\d+$|^\.Lubsan"
)


def group_name(name: str) -> str:
    """The name with all compiler-made numbers taken out."""
    return _STATIC_LOCAL.sub("", _NUMBERED.sub(r".\1", name))


def source_name(name: str) -> str:
    """The function as the source spells it: no clone suffix at all."""
    return _STATIC_LOCAL.sub("", _CLONE.sub("", name))


def is_compiler_made(name: str) -> bool:
    return _COMPILER_MADE.match(name) is not None


@dataclass(frozen=True)
class Pairing:
    """``old_of``: new name -> old name; ``added``: new names without an old one; ``removed``: the
    old names that are gone; ``ambiguous``: new names that could be each other's as well, in groups
    that grow or shrink."""

    old_of: Mapping[str, str]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    ambiguous: tuple[str, ...] = ()

    def canonical(self, name: str) -> str:
        """The old name, or a spelling no old name can have."""
        return self.old_of.get(name, f"\0new:{group_name(name)}")


def pair(
    old: Iterable[str],
    new: Iterable[str],
    old_shape: Callable[[str], Sequence[Hashable]],
    new_shape: Callable[[str], Sequence[Hashable]],
) -> Pairing:
    """Pair old and new names. Shapes are asked for only where names leave a choice."""
    old_groups: dict[str, list[str]] = {}
    for name in old:
        old_groups.setdefault(group_name(name), []).append(name)
    new_groups: dict[str, list[str]] = {}
    for name in new:
        new_groups.setdefault(group_name(name), []).append(name)
    old_of: dict[str, str] = {}
    ambiguous: list[str] = []
    for group, names in new_groups.items():
        candidates = old_groups.get(group, [])
        if len(names) == 1 and len(candidates) == 1:
            old_of[names[0]] = candidates[0]
        elif candidates:
            old_of.update(_pair_group(candidates, names, old_shape, new_shape))
            if len(names) != len(candidates):
                shapes = {name: list(new_shape(name)) for name in names}
                ambiguous += [n for n in names if list(shapes.values()).count(shapes[n]) > 1]
    used = set(old_of.values())
    return Pairing(
        old_of,
        tuple(n for names in new_groups.values() for n in names if n not in old_of),
        tuple(o for names in old_groups.values() for o in names if o not in used),
        tuple(ambiguous),
    )


def _pair_group(
    old: list[str],
    new: list[str],
    old_shape: Callable[[str], Sequence[Hashable]],
    new_shape: Callable[[str], Sequence[Hashable]],
) -> dict[str, str]:
    old_shapes = {name: list(old_shape(name)) for name in old}
    new_shapes = {name: list(new_shape(name)) for name in new}
    old_of: dict[str, str] = {}

    def take(new_name: str, old_name: str) -> None:
        old_of[new_name] = old_name
        del new_shapes[new_name], old_shapes[old_name]

    for name in sorted(new):
        if old_shapes.get(name) == new_shapes[name]:
            take(name, name)
    for name in sorted(new_shapes):
        same = [o for o in sorted(old_shapes) if old_shapes[o] == new_shapes[name]]
        if same:
            take(name, same[0])
    likeness = sorted(
        (
            (
                -difflib.SequenceMatcher(None, old_shapes[o], new_shapes[n], False).ratio(),
                n != o,
                n,
                o,
            )
            for n in new_shapes
            for o in old_shapes
        ),
    )
    for _, _, new_name, old_name in likeness:
        if new_name in new_shapes and old_name in old_shapes:
            take(new_name, old_name)
    return old_of
