# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of each command: which patches, which processes, in which order.

What happens inside one process is apply.py, revert.py and verify.py; here the bundles are
verified, ordered by what they require, and every process that maps a target object gets its turn,
those forked meanwhile included.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from .apply import apply_patch, plan_patch
from .audit import AuditLog, log_of
from .backend import Backend
from .backend.selection import select_backend
from .bundle import Bundle
from .discovery import Target, find_targets
from .errors import Crashed, Refused, WfpatchError
from .events import Events, Tell, end_facts
from .manifest import Manifest
from .opt_out import OptOut, opted_out
from .report import IN_FORCE, CveReport, FunctionReport, ProcessReport, Result, printable, worst
from .revert import revert_patch
from .store import Store
from .verify import blocked_report, inspect_process

#: Children forked while their parent is patched inherit its open transition; each round finds
#: those of the round before.
MAX_ROUNDS = 4


@dataclass(frozen=True)
class Options:
    """What the command line or the module asks for; ``timeout`` in seconds.

    ``patience`` and ``anew`` as for apply.apply_patch.
    """

    pids: tuple[int, ...] = ()
    policy: str | None = None
    backend: str = "auto"
    timeout: int | None = None
    until: str = "finish"
    include_init: bool = False
    wait: float = 0.0
    patience: int | None = None
    anew: bool = True


Step = Callable[[Backend, Target, Bundle], ProcessReport]


def in_order(bundles: Sequence[Bundle]) -> tuple[Bundle, ...]:
    """The bundles, each after those it requires; otherwise in the order given."""
    by_id = {bundle.manifest.id: bundle for bundle in bundles}
    done: dict[str, Bundle] = {}

    def visit(bundle: Bundle, trail: tuple[str, ...]) -> None:
        if bundle.manifest.id in trail:
            raise Refused(
                "manifest_invalid",
                "patches require each other in a circle: "
                + " -> ".join((*trail, bundle.manifest.id)),
            )
        if bundle.manifest.id in done:
            return
        for required in bundle.manifest.requires:
            if required in by_id:
                visit(by_id[required], (*trail, bundle.manifest.id))
        done[bundle.manifest.id] = bundle

    for bundle in bundles:
        visit(bundle, ())
    return tuple(done.values())


def _cves(bundles: Iterable[Bundle], reports: Sequence[ProcessReport]) -> tuple[CveReport, ...]:
    result: list[CveReport] = []
    for bundle in bundles:
        patch_id = bundle.manifest.id
        state = worst(
            (patch.state for report in reports for patch in report.patches if patch.id == patch_id),
            "not_affected",
        )
        result.extend(CveReport(cve.id, state, patch_id) for cve in bundle.manifest.cves)
    return tuple(result)


def _merge(reports: Sequence[ProcessReport]) -> tuple[ProcessReport, ...]:
    """One report per process and object; later ones carry the newer facts, stops add up."""
    merged: dict[tuple[int, int, str], ProcessReport] = {}
    for report in reports:
        key = (report.pid, report.start_time, report.object.build_id)
        earlier = merged.get(key)
        if earlier is not None:
            states = {patch.id: patch for patch in earlier.patches}
            states.update({patch.id: patch for patch in report.patches})
            longest = [
                stop
                for stop in (earlier.timings_us.longest_stop, report.timings_us.longest_stop)
                if stop is not None
            ]
            timings = replace(
                report.timings_us,
                load=_sum(earlier.timings_us.load, report.timings_us.load),
                arm=_sum(earlier.timings_us.arm, report.timings_us.arm),
                transition=_sum(earlier.timings_us.transition, report.timings_us.transition),
                longest_stop=max(longest, default=None),
            )
            report = replace(
                report,
                patches=tuple(states.values()),
                functions=_functions(earlier, report),
                timings_us=timings,
                stops=(earlier.stops + report.stops)[:256],
                stops_count=earlier.stops_count + report.stops_count,
                reason=report.reason or earlier.reason,
                message=report.message or earlier.message,
            )
        merged[key] = report
    return tuple(
        replace(report, state=worst((patch.state for patch in report.patches), report.state))
        for report in merged.values()
    )


def _functions(earlier: ProcessReport, later: ProcessReport) -> tuple[FunctionReport, ...]:
    """Each function once, with the later word on it: a plan names those of one patch only."""
    found = {function.entry: function for function in (*earlier.functions, *later.functions)}
    return tuple(found.values())


def _sum(first: int | None, second: int | None) -> int | None:
    values = [value for value in (first, second) if value is not None]
    return sum(values) if values else None


class Host:
    """The commands of the applier on one host."""

    def __init__(self, store: Store, by: str = "command", events: Events | None = None) -> None:
        self._store = store
        self.events = events or Events()
        self._audit = AuditLog(log_of(store.path), by)
        self._by = by
        self._manifests: dict[str, Manifest | None] = {}

    def _manifest(self, patch_id: str) -> Manifest | None:
        """The manifest of a patch that is in force, None when the store has no sound bundle."""
        if patch_id not in self._manifests:
            try:
                self._manifests[patch_id] = self._store.bundle(patch_id, believed=False).manifest
            except WfpatchError:
                self._manifests[patch_id] = None
        return self._manifests[patch_id]

    def _bundles(self, patches: Sequence[str], believed: bool = True) -> tuple[Bundle, ...]:
        return in_order([self._store.bundle(patch, believed) for patch in patches])

    def _targets(self, bundle: Bundle, options: Options) -> tuple[Target, ...]:
        return find_targets(bundle.patch.object, options.pids)

    @staticmethod
    def _inspect(
        backend: Backend, target: Target, bundles: tuple[Bundle, ...], rules: Sequence[OptOut]
    ) -> ProcessReport:
        """What is in force in a process, and whether it is opted out."""
        rule = opted_out(rules, target.pid, target.comm, target.exe)
        return replace(inspect_process(backend, target, bundles), opted_out=rule)

    def _require_targets(self, bundles: Sequence[Bundle], options: Options) -> list[str]:
        """Refuse when no process maps any of the objects; else warn of those without."""
        missing = []
        found = False
        for bundle in bundles:
            targets = self._targets(bundle, options)
            if any(target.matches for target in targets):
                found = True
                continue
            missing.append((bundle, targets))
        if bundles and not found:
            other = next((target for _, targets in missing for target in targets), None)
            wanted = ", ".join(sorted({bundle.manifest.target.object for bundle in bundles}))
            if other is not None:
                raise Refused(
                    "build_id_mismatch",
                    f"{printable(other.comm)}[{other.pid}] maps {printable(other.path)} with "
                    f"build-id {other.build_id}; the patches were built for "
                    + ", ".join(sorted({i for b in bundles for i in b.manifest.target.build_ids})),
                    pid=other.pid,
                    found=other.build_id,
                )
            where = f" among pids {list(options.pids)}" if options.pids else ""
            raise Refused(
                "no_matching_process", f"no running process{where} maps {wanted} as patched here"
            )
        return [
            f"{bundle.manifest.id}: no running process maps {bundle.manifest.target.object} "
            "with a build-id of the patch"
            for bundle, _ in missing
        ]

    def _found(
        self, bundles: Sequence[Bundle], options: Options
    ) -> tuple[list[str], Refused | None]:
        """As _require_targets; without any process the error is returned, not raised.

        Nothing to patch is an outcome (not_affected) that a caller may have foreseen; to a revert
        it is none at all, since a patch without a process is out of force.
        """
        try:
            return self._require_targets(bundles, options), None
        except Refused as error:
            return [error.message], error

    def plan(self, patches: Sequence[str], options: Options) -> Result:
        """What apply would do; nothing is written and no thread is stopped."""
        bundles = self._bundles(patches)
        warnings = self._require_targets(bundles, options)
        backend = select_backend(options.backend)
        rules = self._store.opt_outs()
        before: list[ProcessReport] = []
        reports: list[ProcessReport] = []
        changed = False
        for position, bundle in enumerate(bundles):
            earlier = tuple(item for item in bundles[:position])
            for target in self._targets(bundle, options):
                if not target.matches:
                    continue
                before.append(self._inspect(backend, target, (bundle,), rules))
                if before[-1].opted_out:
                    reports.append(before[-1])
                    continue
                report, would_change = _guard(
                    lambda target=target, bundle=bundle, earlier=earlier: plan_patch(  # type: ignore[misc]
                        backend,
                        target,
                        bundle,
                        earlier,
                        options.policy,
                        options.include_init,
                        self._manifest,
                    ),
                    lambda error, target=target, bundle=bundle: (  # type: ignore[misc]
                        blocked_report(backend, target, bundle, error),
                        False,
                    ),
                )
                changed |= would_change
                reports.append(report)
        return self._result(changed, bundles, before, reports, warnings, backend)

    def apply(self, patches: Sequence[str], options: Options) -> Result:
        """Bring ``patches`` into force in every process that maps their objects."""
        with self._store.lock(options.wait):
            bundles = self._bundles(patches)
            warnings, nobody = self._found(bundles, options)
            backend = select_backend(options.backend)
            rules = self._store.opt_outs()
            if not options.pids:
                # What cannot be noted afterwards is not begun.
                self._store.require_room(self._with(bundle.manifest.id for bundle in bundles))
            changed = False
            unhealthy = ""
            unnoted: WfpatchError | None = None
            before: list[ProcessReport] = []
            reports: list[ProcessReport] = []
            for bundle in bundles:
                found, did = self._apply_to_all(backend, bundle, options, rules, before)
                changed |= did
                reports += found
                # A watch brings it into a service that is started later.
                later = not found and self._store.watched()
                if not options.pids and (
                    later or any(report.state != "blocked" for report in found)
                ):
                    try:
                        changed |= self._set_wanted(self._with((bundle.manifest.id,)))
                    except WfpatchError as error:
                        unnoted = error
                if options.until == "finish":
                    unhealthy = self._check_health(bundle, found)
                    if unhealthy:
                        break
            result = self._result(changed, bundles, before, reports, warnings, backend)
            if unhealthy and result.reason is None:
                result = replace(result, reason="health_check_failed", message=unhealthy)
            if nobody is not None and not reports:
                result = replace(result, reason=nobody.reason, message=nobody.message)
            return _unnoted(result, unnoted)

    def keep(self, options: Options) -> Result:
        """Bring what the store wants into force in ``options.pids``, as new processes need it.

        What is wanted is read under the lock: a revert that ends meanwhile is no longer wanted. A
        process in which a patch was reverted stays so. A bundle that is not sound is a warning; the
        others are applied. Health checks are left out: a service that starts is not healthy yet.
        """
        with self._store.lock(options.wait):
            bundles, wrong = self.wanted_bundles()
            warnings = [f"{patch_id}: {text}" for patch_id, text in wrong.items()]
            backend = select_backend(options.backend)
            rules = self._store.opt_outs()
            changed = False
            before: list[ProcessReport] = []
            reports: list[ProcessReport] = []
            for bundle in bundles:
                found, did = self._apply_to_all(
                    backend, bundle, replace(options, anew=False), rules, before
                )
                changed |= did
                reports += found
            return self._result(changed, bundles, before, reports, warnings, backend)

    def wanted_bundles(self) -> tuple[tuple[Bundle, ...], dict[str, str]]:
        """The sound bundles of what the store wants, in order; and what is wrong, by patch."""
        bundles: list[Bundle] = []
        wrong: dict[str, str] = {}
        for patch_id in self._store.wanted():
            try:
                bundles.append(self._store.bundle(patch_id))
            except WfpatchError as error:
                wrong[patch_id] = str(error)
        return in_order(bundles), wrong

    def _apply_to_all(
        self,
        backend: Backend,
        bundle: Bundle,
        options: Options,
        rules: Sequence[OptOut],
        before: list[ProcessReport],
    ) -> tuple[list[ProcessReport], bool]:
        """One patch into every process of ``options``; how each was goes to ``before``."""
        changed = False
        reports: list[ProcessReport] = []
        seen: set[tuple[int, int]] = set()
        for _ in range(MAX_ROUNDS):
            targets = [
                target
                for target in self._targets(bundle, options)
                if target.matches and (target.pid, target.start_time) not in seen
            ]
            for target in targets:
                seen.add((target.pid, target.start_time))
                before.append(self._inspect(backend, target, (bundle,), rules))
                if before[-1].opted_out:
                    reports.append(before[-1])
                    continue
                tell = self.events.of(target.pid, target.comm, bundle.manifest.id)
                report, did = self._apply_one(backend, target, bundle, options, tell)
                tell("end", **end_facts(report, did))
                changed |= did
                reports.append(report)
                self._note("apply", bundle, report, did)
            if not targets:
                break
        return reports, changed

    def _with(self, patches: Iterable[str]) -> tuple[str, ...]:
        """What is wanted, and these."""
        return tuple(dict.fromkeys((*self._store.wanted(), *patches)))

    def _set_wanted(self, patches: tuple[str, ...]) -> bool:
        before = self._store.wanted()
        if not self._store.set_wanted(patches):
            return False
        self._audit.note(
            "want",
            added=[patch for patch in patches if patch not in before],
            removed=[patch for patch in before if patch not in patches],
        )
        return True

    def _note(self, what: str, bundle: Bundle, report: ProcessReport, changed: bool) -> None:
        """For the audit log: what changed, and what was asked for and did not come about. The watch
        tries often what cannot be, and says that in the journal."""
        if changed or (report.reason is not None and self._by == "command"):
            self._audit.process(
                what, bundle.manifest.id, bundle.digest, bundle.signer, report, changed
            )

    def _apply_one(
        self, backend: Backend, target: Target, bundle: Bundle, options: Options, tell: Tell
    ) -> tuple[ProcessReport, bool]:
        report, changed = _guard(
            lambda: apply_patch(
                backend,
                target,
                bundle,
                policy=options.policy,
                timeout=options.timeout,
                until=options.until,
                include_init=options.include_init,
                manifest_of=self._manifest,
                patience=options.patience,
                anew=options.anew,
                tell=tell,
            ),
            lambda error: (blocked_report(backend, target, bundle, error), False),
        )
        if report.state == "partial" and bundle.manifest.stragglers == "revert":
            undone, _ = _guard(
                lambda: revert_patch(backend, target, bundle, options.timeout, tell=tell),
                lambda error: (blocked_report(backend, target, bundle, error), False),
            )
            report = replace(
                undone,
                reason="stragglers",
                message=report.message + "; reverted, as the manifest asks",
                stops=report.stops + undone.stops,
                stops_count=report.stops_count + undone.stops_count,
            )
            changed = True
        return report, changed

    def _check_health(self, bundle: Bundle, reports: Sequence[ProcessReport]) -> str:
        """What is wrong with the service's health, "" when nothing is or nobody asked."""
        check = bundle.manifest.health_check
        if check is None or not any(report.state == "patched" for report in reports):
            return ""
        try:
            done = subprocess.run(
                list(check.command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=check.timeout,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"health check of {bundle.manifest.id}: {error}"
        if done.returncode != 0:
            said = printable(done.stdout.decode("utf-8", "replace")[-500:])
            return f"health check of {bundle.manifest.id} exited {done.returncode}: {said}"
        return ""

    def revert(self, patches: Sequence[str], options: Options) -> Result:
        """Take ``patches`` out of force, those that require others first."""
        with self._store.lock(options.wait):
            bundles = tuple(reversed(self._bundles(patches, believed=False)))
            warnings, _ = self._found(bundles, options)
            backend = select_backend(options.backend)
            changed = False
            before: list[ProcessReport] = []
            reports: list[ProcessReport] = []
            for bundle in bundles:
                for target in self._targets(bundle, options):
                    if not target.matches:
                        continue
                    before.append(inspect_process(backend, target, (bundle,)))
                    tell = self.events.of(target.pid, target.comm, bundle.manifest.id)
                    report, did = _guard(
                        lambda target=target, bundle=bundle, tell=tell: revert_patch(  # type: ignore[misc]
                            backend, target, bundle, options.timeout, self._manifest, tell
                        ),
                        lambda error, target=target, bundle=bundle: (  # type: ignore[misc]
                            blocked_report(backend, target, bundle, error),
                            False,
                        ),
                    )
                    tell("revert", **end_facts(report, did))
                    changed |= did
                    reports.append(report)
                    self._note("revert", bundle, report, did)
            kept = {
                patch.id
                for report in reports
                for patch in report.patches
                if report.reason is not None or patch.state in IN_FORCE
            }
            gone = {bundle.manifest.id for bundle in bundles} - kept
            unnoted: WfpatchError | None = None
            if not options.pids:
                # A disk that is full keeps nobody from going back; it is said afterwards.
                try:
                    left = tuple(patch for patch in self._store.wanted() if patch not in gone)
                    changed |= self._set_wanted(left)
                except WfpatchError as error:
                    unnoted = error
            result = self._result(changed, bundles, before, reports, warnings, backend)
            return _unnoted(result, unnoted)

    def status(self, patches: Sequence[str], options: Options) -> Result:
        """What is in force, from live memory; every bundle of the store when none is named."""
        bundles = self._bundles(patches or self._store.ids(), believed=False)
        backend = select_backend(options.backend)
        warnings = [
            f"{bundle.manifest.id}: {bundle.distrust}" for bundle in bundles if bundle.distrust
        ]
        rules: tuple[OptOut, ...] = ()
        try:
            rules = self._store.opt_outs()
        except Refused as error:
            warnings.append(str(error))  # what is in force can be read all the same
        by_object: dict[tuple[str, ...], list[Bundle]] = {}
        for bundle in bundles:
            by_object.setdefault(bundle.manifest.target.build_ids, []).append(bundle)
        reports: list[ProcessReport] = []
        for group in by_object.values():
            for target in self._targets(group[0], options):
                if target.matches:
                    reports.append(self._inspect(backend, target, tuple(group), rules))
        return self._result(False, bundles, reports, reports, warnings, backend)

    def verify(self, patches: Sequence[str], options: Options) -> Result:
        """As status; the CLI fails it unless every process is patched."""
        return self.status(patches, options)

    def _result(
        self,
        changed: bool,
        bundles: Sequence[Bundle],
        before: Sequence[ProcessReport],
        reports: Sequence[ProcessReport],
        warnings: Sequence[str],
        backend: Backend,
    ) -> Result:
        processes = _merge(reports)
        failed = next((process for process in processes if process.reason is not None), None)
        return Result(
            changed=changed,
            state=worst((process.state for process in processes), "not_affected"),
            processes=processes,
            cves=_cves(bundles, processes),
            before=_merge(before),
            reason=failed.reason if failed else None,
            message=failed.message if failed else "",
            warnings=(*warnings, *([self._audit.problem] if self._audit.problem else [])),
            backend=backend.name,
        )


def _unnoted(result: Result, error: WfpatchError | None) -> Result:
    """The result of work that was done, and that the store could not note."""
    if error is None:
        return result
    if result.reason is not None:
        return replace(result, warnings=(*result.warnings, str(error)))
    message = f"memory is as reported, but the store does not say so: {error.message}"
    return replace(result, reason=error.reason, message=message)


def _guard(
    step: Callable[[], tuple[ProcessReport, bool]],
    otherwise: Callable[[WfpatchError], tuple[ProcessReport, bool]],
) -> tuple[ProcessReport, bool]:
    """One process's refusal or failure is that process's outcome; the others get their turn."""
    try:
        return step()
    except WfpatchError as error:
        return otherwise(error)
    except Exception as error:  # noqa: BLE001 - the others get their turn whatever happens
        return otherwise(Crashed(error))
