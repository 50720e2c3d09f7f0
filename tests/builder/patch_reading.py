# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking into finished patch ELFs."""

from __future__ import annotations

import json
from typing import Any

from wfpatch_build.compiled_object import CompiledObject, CompiledSection


def sections(result) -> dict[str, CompiledSection]:
    """The sections of a build's patch ELF by name."""
    return {s.name: s for s in CompiledObject(result.patch.elf, "patch").sections}


def metadata(result) -> dict[str, Any]:
    """The metadata of a build's patch ELF."""
    return json.loads(sections(result)[".wfpatch.meta"].data)


def owners(result) -> dict[str, dict[str, Any]]:
    """Undefined symbol -> its owner."""
    return metadata(result)["symbols"]
