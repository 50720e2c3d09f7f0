# SPDX-License-Identifier: GPL-3.0-or-later
"""What the manifests and advisories at hand say of objects and CVEs, arranged for look-up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from wfpatch.bundle import Bundle
from wfpatch.errors import WfpatchError
from wfpatch.host import in_order
from wfpatch.manifest import SEVERITIES
from wfpatch.report import printable
from wfpatch.store import Store

from .advisories import Advisory
from .packages import Package


@dataclass(frozen=True)
class RefusedPart:
    """A bundle of the store that is not sound or not believed, and why; without an id, the store's
    opt-outs."""

    id: str | None
    reason: str
    message: str


@dataclass(frozen=True)
class KnownCve:
    """A CVE that manifests or advisories name; ``patches`` are the ids of the former."""

    id: str
    severity: str
    references: tuple[str, ...]
    patches: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """``bundles`` in the order in which they are applied."""

    bundles: tuple[Bundle, ...]
    refused: tuple[RefusedPart, ...]
    advisories: tuple[Advisory, ...]

    def bundles_for(self, build_id: str) -> tuple[Bundle, ...]:
        """The patches that were built for an object."""
        return tuple(item for item in self.bundles if build_id in item.patch.object.build_ids)

    def advisories_for(self, cve: str) -> tuple[Advisory, ...]:
        """What is known of a CVE besides the manifests."""
        return tuple(advisory for advisory in self.advisories if advisory.cve == cve)

    def affecting(self, build_id: str) -> tuple[Advisory, ...]:
        """The advisories that name the build as affected."""
        return tuple(item for item in self.advisories if build_id in item.build_ids)

    def named(self, path: str, package: Package | None) -> dict[str, list[str]]:
        """CVE -> affected versions, of CVEs in objects that go by the name of the file at ``path``.

        A file of another package is another object, whatever its name.
        """
        found: dict[str, list[str]] = {}
        name = os.path.basename(path)

        def note(cve: str, names: Sequence[str], owner: str, versions: Sequence[str]) -> None:
            if package is not None and package.name != owner:
                return
            # A library's file name goes on behind its soname: libx.so.1 is libx.so.1.2.3.
            if any(name == each or name.startswith(f"{each}.") for each in names if each):
                found.setdefault(cve, []).extend(versions)

        for bundle in self.bundles:
            patched, target = bundle.patch.object, bundle.manifest.target
            names = (patched.name, patched.soname or "", target.object)
            for cve in bundle.manifest.cves:
                note(cve.id, names, target.package, target.versions)
        for advisory in self.advisories:
            note(advisory.cve, (advisory.object,), advisory.package, ())
        return found

    def cves(self) -> tuple[KnownCve, ...]:
        """Every CVE that is named, by id; of several severities the highest."""
        found: dict[str, KnownCve] = {}

        def note(
            cve: str, severity: str, references: tuple[str, ...], patches: tuple[str, ...]
        ) -> None:
            known = found.get(cve, KnownCve(cve, severity, (), ()))
            found[cve] = KnownCve(
                cve,
                max(known.severity, severity, key=SEVERITIES.index),
                tuple(dict.fromkeys((*known.references, *references))),
                (*known.patches, *patches),
            )

        for bundle in self.bundles:
            for cve in bundle.manifest.cves:
                note(cve.id, cve.severity, cve.references, (bundle.manifest.id,))
        for advisory in self.advisories:
            note(advisory.cve, advisory.severity, (), ())
        return tuple(found[cve] for cve in sorted(found))


def _refused(patch_id: str, error: WfpatchError) -> RefusedPart:
    return RefusedPart(patch_id, error.reason, printable(error.message))


def read_known(store: Store, advisories: tuple[Advisory, ...]) -> Known:
    """What the store and the controller say; a bundle that is not sound hides no other one."""
    bundles: list[Bundle] = []
    refused: list[RefusedPart] = []
    for patch_id in store.ids():
        try:
            bundle = store.bundle(patch_id, believed=False)
            bundles.append(bundle)
            if bundle.distrust is not None:
                # What is in force of it is read, but counts as no fix: see states.py.
                refused.append(_refused(patch_id, bundle.distrust))
        except WfpatchError as error:
            refused.append(_refused(patch_id, error))
    try:
        ordered = in_order(bundles)
    except WfpatchError as error:  # they require each other in a circle: no order is right
        ordered = tuple(bundles)
        refused.append(_refused(bundles[0].manifest.id, error))
    return Known(ordered, tuple(refused), advisories)
