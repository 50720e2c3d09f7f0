# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of CVEs besides the manifests: builds that have the fix, and builds that no live
patch can help. It comes from the controller (schemas/advisories.schema.json) and changes nothing
but what is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

from wfpatch.errors import Refused
from wfpatch.manifest import SEVERITIES
from wfpatch.strict_json import Fields, Invalid, parse

MAX_ADVISORIES = 8 << 20


@dataclass(frozen=True)
class Advisory:
    """One CVE in one object. ``fixed_versions``: these and later ones have the fix, in ``package``.

    ``unpatchable`` is why no live patch can exist for the builds ``build_ids``, "" where one can.
    """

    cve: str
    severity: str
    object: str
    package: str
    build_ids: tuple[str, ...]
    fixed_build_ids: tuple[str, ...]
    fixed_versions: tuple[str, ...]
    unpatchable: str


def _advisory(fields: Fields) -> Advisory:
    fixed = fields.nested("fixed")
    advisory = Advisory(
        fields.text("cve", 64),
        fields.text("severity", 16, SEVERITIES),
        fields.text("object", 255),
        fields.text("package", 255),
        fields.texts("build_ids", 1024, 128),
        fixed.texts("build_ids", 1024, 128),
        fixed.texts("versions", 64, 255),
        fields.optional_text("unpatchable", 4096) or "",
    )
    fixed.done()
    return advisory


def parse_advisories(data: bytes) -> tuple[Advisory, ...]:
    """Read the controller's JSON; raises Refused("manifest_invalid")."""
    try:
        fields = Fields(parse(data, MAX_ADVISORIES))
        fields.number("schema", 1, 1)
        result: tuple[Advisory, ...] = fields.each("advisories", _advisory, 16384)
        fields.done()
    except Invalid as error:
        raise Refused("manifest_invalid", f"advisories: {error}", path=error.path) from None
    return result
