# SPDX-License-Identifier: GPL-3.0-or-later
"""Live patches that are in force in a process and that no manifest at hand is of: somebody else's,
or such whose bundles were removed since.
"""

from __future__ import annotations

from dataclasses import replace

from wfpatch.errors import WfpatchError
from wfpatch.manifest import ID
from wfpatch.mapped_object import mapped_objects
from wfpatch.maps import MemoryMap
from wfpatch.region import candidates, mapped_sizes
from wfpatch.report import IN_FORCE, ProcessReport

from .known import Known

#: What stands for a patch's id in a region's header that is none: a process may write anything.
NAMELESS = "unnamed"
#: Build-ids of other lengths are no object's that a patch can be for.
_BUILD_ID = 40


def objects_with_region(pid: int) -> frozenset[int]:
    """Where the objects begin that seem to have a region; its header has the last word.

    Regions lie where the object's address and build-id lead, so nothing of the process's memory has
    to be read for it.
    """
    try:
        memory_map = MemoryMap.read(pid)
        if not any(m.perms == "r-xp" and m.anonymous and not m.path for m in memory_map):
            return frozenset()
        mapped = mapped_objects(pid)
    except (WfpatchError, ValueError):
        return frozenset()
    found = set()
    for item in mapped:
        if len(item.build_id) != _BUILD_ID:
            continue
        first = memory_map.containing(item.start)
        end = max(
            (
                mapping.end
                for mapping in memory_map
                if first is not None
                and (mapping.device, mapping.inode) == (first.device, first.inode)
            ),
            default=item.end,
        )
        bases = candidates(item.start, end, item.build_id)
        if any(mapped_sizes(memory_map, base) is not None for base in bases):
            found.add(item.start)
    return frozenset(found)


def explained(reading: ProcessReport, known: Known) -> tuple[ProcessReport, list[str]]:
    """The reading with no id in it that is none, and the ids in force that nobody here knows.

    A process that writes nonsense into its own region's header is not to make all evidence of its
    host unfit for its schema.
    """
    ids = {bundle.manifest.id for bundle in known.bundles}
    patches = tuple(
        patch if ID.match(patch.id) else replace(patch, id=NAMELESS) for patch in reading.patches
    )
    functions = tuple(
        replace(
            function,
            name=function.name or NAMELESS,
            patch=NAMELESS
            if function.patch is not None and not ID.match(function.patch)
            else function.patch,
        )
        for function in reading.functions
    )
    strangers = [patch.id for patch in patches if patch.state in IN_FORCE and patch.id not in ids]
    return replace(reading, patches=patches, functions=functions), sorted(set(strangers))
