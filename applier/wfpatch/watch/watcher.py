# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop of the watch: learn of new processes, and bring into them what the store wants.

Nothing here must be remembered: what is wanted lies in the store, what is in force in the
processes. A watch that was killed looks at all processes when it starts again.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from wfpatch.errors import Crashed, WfpatchError
from wfpatch.host import Host, Options
from wfpatch.journal import ERROR, INFORMATION, NOTICE, WARNING, Journal, tell_systemd
from wfpatch.opt_out import unit_of
from wfpatch.report import ProcessReport, Result
from wfpatch.tasks import read_process_stat

from .budget import Budget, Limits
from .kept_store import KeptStore, Stamp
from .lookout import Identity, Lookout, identity_of, linked
from .starts import Starts

#: Seconds between looks at the store's files, and at all processes.
STORE_EVERY, SWEEP_EVERY = 2.0, 10.0
#: The same without word of starts: new processes, and programs executed by old ones.
TICK, SWEEP_WITHOUT_WORD = 0.1, 1.0
#: At least so long between looks at who is new, after a process ended before it was looked at.
CROWD_EVERY = 0.25
#: When a process that did not match is looked at again, in seconds since the last look: its exec
#: may not be done, its libraries not be mapped.
LOOKS = (0.002, 0.01, 0.05, 0.2, 1.0)
#: How long the dynamic linker may take before the planner is asked all the same.
LINKING = 5.0
#: Seconds until the next attempt, after a transition that stays open and after a refusal. A program
#: that has only begun may be refused for what will be different in a moment.
OPEN_AGAIN = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
REFUSED_AGAIN = (0.1, 0.5, 2.0, 10.0, 60.0)
BUSY_AGAIN = 0.25
#: How long one attempt may wait for threads: meanwhile nobody else may work on the host.
PATIENCE = 1
#: What will not be different at the next attempt.
FINAL = (
    *("gs_in_use", "shadow_stack", "seccomp_forbids", "not_64bit", "is_init", "conflict"),
    *("superseded", "generation_exhausted", "region_too_small", "policy_unsupported"),
    *("auto_impossible", "kernel_unsupported", "stack_switching"),
)


@dataclass
class Case:
    """A process that maps what is to be patched, until it was dealt with; ``since`` we know it."""

    identity: Identity
    objects: frozenset[str]
    since: float
    attempts: int = 0
    deferred: bool = False
    waited: bool = False
    blocked: bool = False


@dataclass
class Counts:
    """What became of the processes that matched, since the watch started."""

    patched: int = 0
    inherited: int = 0
    blocked: int = 0
    pending: int = 0
    opted_out: int = 0
    reverted: int = 0
    gone: int = 0


@dataclass(frozen=True)
class Settings:
    """How the watch works; ``options`` are for each attempt."""

    options: Options = field(default_factory=Options)
    limits: Limits = field(default_factory=Limits)
    sweep: float = SWEEP_EVERY
    once: bool = False


class Watcher:
    """Keeps what the store wants in force; ``run`` returns when it is told to end."""

    def __init__(
        self, store: KeptStore, starts: Starts, journal: Journal, settings: Settings
    ) -> None:
        self._store = store
        self._host = Host(store, by="watch")
        self._starts = starts
        self._journal = journal
        self._settings = settings
        self._options = replace(settings.options, wait=0.0, patience=PATIENCE)
        self._lookout = Lookout()
        self._budget = Budget(settings.limits)
        self._stamp: Stamp | None = None
        self._patches: tuple[str, ...] = ()
        self._said: dict[str, str] = {}  # what is wrong in the store, by patch
        self._warned: set[str] = set()
        self._cases: dict[int, Case] = {}
        self._settled: dict[int, Case] = {}
        self._due: list[tuple[float, int, Callable[[], bool]]] = []
        self._order = itertools.count()
        self._checked = self._swept = self._crowd = float("-inf")
        self._vanished = False
        self._news = ""
        self._ending = False
        self.counts = Counts()

    # -- the loop ---------------------------------------------------------------------------------

    def run(self) -> int:
        """Watch until SIGTERM or SIGINT; with ``once``, until every process was dealt with."""
        with self._woken_by_signals() as wake:
            poller = select.poll()
            poller.register(wake, select.POLLIN)
            channel = self._starts.fileno()
            if channel is not None:
                poller.register(channel, select.POLLIN)
            archive = self._own_file()
            while not self._ending:
                if time.monotonic() - self._checked >= STORE_EVERY:
                    if self._own_file() != archive:
                        self._journal.say("replaced", "the applier was replaced: starting anew")
                        break
                    self._check_store()
                self._learn()
                self._work()
                if self._settings.once and not self._due:
                    break
                poller.poll(max(0.0, 1000 * (self._next() - time.monotonic())))
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
        self._tell("STOPPING=1")
        self._journal.say("ended", f"the watch ends: {self._summary()}")
        if not self._settings.once:
            return 0
        return 4 if self.counts.pending else 3 if self.counts.blocked or self._said else 0

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Iterator[int]:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        earlier = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handlers = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGTERM, self._end),
                (signal.SIGINT, self._end),
                (signal.SIGHUP, self._look_at_all),
            )
        }
        try:
            yield reader
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(earlier)
            os.close(reader)
            os.close(writer)

    def _end(self, _number: int, _frame: object) -> None:
        self._ending = True

    def _look_at_all(self, _number: int, _frame: object) -> None:
        self._stamp = None
        self._checked = float("-inf")

    @staticmethod
    def _own_file() -> tuple[int, ...]:
        """The applier's archive: what is imported from it later must be of the same one."""
        try:
            status = os.stat(sys.argv[0])
        except OSError:
            return ()
        return (status.st_dev, status.st_ino, status.st_mtime_ns)

    def _next(self) -> float:
        """When there is something to do, if no word comes."""
        times = [self._checked + STORE_EVERY]
        if self._lookout.build_ids:
            times.append(self._swept + self._sweep_every)
            if self._polling:
                times.append(self._crowd + TICK)
            elif self._vanished:
                times.append(self._crowd + CROWD_EVERY)
        if self._due:
            times.append(self._due[0][0])
        return min(times)

    @property
    def _polling(self) -> bool:
        return self._starts.fileno() is None

    @property
    def _sweep_every(self) -> float:
        return SWEEP_WITHOUT_WORD if self._polling else self._settings.sweep

    def _summary(self) -> str:
        counts = self.counts
        return (
            f"by {self._starts.name}; {len(self._patches)} patches wanted; "
            f"{counts.patched} processes patched, {counts.inherited} had it already, "
            f"{counts.blocked} blocked, {counts.opted_out} opted out, {counts.reverted} reverted, "
            f"{counts.gone} gone, {len(self._cases)} waiting"
        )

    def _tell(self, state: str = "WATCHDOG=1") -> None:
        tell_systemd(f"{state}\nSTATUS={self._summary()}")

    # -- what is wanted ---------------------------------------------------------------------------

    def _check_store(self) -> None:
        """Read the store when it changed; then every process is looked at anew."""
        self._checked = time.monotonic()
        stamp = self._store.stamp()
        if stamp == self._stamp:
            self._tell()
            return
        first, self._stamp = self._stamp is None, stamp
        build_ids: set[str] = set()
        libraries = False
        self._patches = ()
        self._host = Host(self._store, by="watch")
        try:
            self._patches = self._store.wanted()
            bundles, wrong = self._host.wanted_bundles()
            for bundle in bundles:
                build_ids.update(bundle.manifest.target.build_ids)
                libraries |= bundle.patch.object.kind != "executable"
        except WfpatchError as error:
            wrong = {"": str(error)}
        self._name_wrong(wrong)
        self._lookout.want(build_ids, libraries)
        self._cases.clear()
        self._settled.clear()
        self._due.clear()
        self._swept = float("-inf")
        self._journal.say(
            "wanted",
            f"wanted are {len(self._patches)} patches, for {len(build_ids)} builds of objects",
            patches=self._patches,
        )
        self._news = "READY=1" if first else "WATCHDOG=1"

    def _name_wrong(self, wrong: dict[str, str]) -> None:
        for patch_id, text in wrong.items():
            if self._said.get(patch_id) != text:
                self._journal.say(
                    "refused",
                    f"{patch_id or 'the store'}: {text}",
                    ERROR,
                    patches=patch_id,
                    reason=text.partition(":")[0],
                )
        self._said = wrong

    # -- learning of processes --------------------------------------------------------------------

    def _learn(self) -> None:
        started, missed = self._starts.read()
        if not self._lookout.build_ids:
            self._say_watching()
            return
        for pid in started:
            self._look(pid, 0)
        now = time.monotonic()
        if missed or now - self._swept >= self._sweep_every:
            self._swept = self._crowd = now
            self._starts.refresh()
            for identity, objects in self._lookout.sweep():
                self._open(identity, objects)
            self._settled = {
                pid: case for pid, case in self._settled.items() if self._lookout.knows(pid)
            }
            self._say_watching()
        elif now - self._crowd >= TICK if self._polling else self._vanished:
            if self._polling or now - self._crowd >= CROWD_EVERY:
                self._look_at_newcomers()

    def _say_watching(self) -> None:
        """Once after each change of the store: all processes were looked at."""
        if self._news:
            self._journal.say("watching", f"{len(self._cases)} processes map one of them now")
            self._tell(self._news)
            self._news = ""

    def _look_at_newcomers(self) -> None:
        """What was forked meanwhile, by a process that is gone or was patched at that moment."""
        self._vanished = False
        self._crowd = time.monotonic()
        for pid in self._lookout.newcomers():
            self._look(pid, 0)

    def _look(self, pid: int, number: int, before: Identity | None = None) -> bool:
        """Look at a process, and again a little later while it may become one that matches.

        ``before`` is who it was at the last look: where the word comes before the program begins,
        another program is the one that was meant.
        """
        identity = identity_of(pid)
        if identity is None:
            self._vanished = True
            return False
        objects = self._lookout.look(pid)
        if objects:
            self._open(identity, objects)
        elif number < len(LOOKS) and (
            self._polling
            or self._lookout.libraries
            or (self._starts.early and before in (None, identity))
        ):
            again = functools.partial(self._look, pid, number + 1, identity)
            self._schedule(LOOKS[number], again)
        return False

    def _open(self, identity: Identity, objects: frozenset[str]) -> None:
        pid = identity.pid
        for case in (self._cases.get(pid), self._settled.get(pid)):
            if case is not None and case.identity == identity and objects <= case.objects:
                return
        case = self._cases[pid] = Case(identity, objects, time.monotonic())
        self._schedule(0.0, functools.partial(self._attempt, case))

    def _schedule(self, delay: float, action: Callable[[], bool]) -> None:
        heapq.heappush(self._due, (time.monotonic() + delay, next(self._order), action))

    # -- work -------------------------------------------------------------------------------------

    def _work(self) -> None:
        """What is due; no more than one attempt at a process before news are read."""
        while self._due and self._due[0][0] <= time.monotonic():
            if heapq.heappop(self._due)[2]():
                self._look_at_newcomers()
                return

    def _attempt(self, case: Case) -> bool:
        """Bring into one process what is wanted; whether there was an attempt."""
        if self._cases.get(case.identity.pid) is not case:
            return False  # another program by now
        again = functools.partial(self._attempt, case)
        pid, now = case.identity.pid, time.monotonic()
        if identity_of(pid) != case.identity:
            self._close(case, "gone", "ended before it was patched", NOTICE)
            self.counts.gone += 1
            self._vanished = True
            return False
        if now - case.since < LINKING and not linked(pid):
            self._schedule(0.002 if now - case.since < 0.1 else 0.05, again)
            return False
        name = min(case.objects)
        ready = self._budget.take(name, now)
        if ready:
            if not case.deferred:
                case.deferred = True
                self._say_case(
                    case,
                    "deferred",
                    "waits: too many of its kind were started in a short time",
                    WARNING,
                    object=name,
                )
            self._schedule(ready - now, again)
            return False
        try:
            result = self._host.keep(replace(self._options, pids=(pid,)))
        except WfpatchError as error:
            self._failed(case, error)
        except Exception as error:  # noqa: BLE001 - one process's fault must not end the watch
            self._failed(case, Crashed(error))
        else:
            self._judge(case, result)
        return True

    def _failed(self, case: Case, error: WfpatchError) -> None:
        if error.reason == "busy":
            if not case.waited:
                case.waited = True
                self._say_case(case, "busy", error.message, INFORMATION, reason="busy")
            self._schedule(BUSY_AGAIN, functools.partial(self._attempt, case))
        else:
            self._refused(case, error.reason, error.message)

    def _judge(self, case: Case, result: Result) -> None:
        wrong = self._wrong_of(result)
        if wrong != self._said:
            self._name_wrong(wrong)
            self._stamp = None  # what is wanted and sound is another by now
        reports = result.processes
        states = [patch.state for report in reports for patch in report.patches]
        failed = next((report for report in reports if report.reason is not None), None)
        facts: dict[str, Any] = {
            "state": result.state,
            "patches": _patches_of(reports, ("patched",)),
        }
        if any(state in ("pending", "partial") for state in states):
            self._still_open(case, reports, facts)
        elif failed is not None and failed.reason == "target_exited":
            self._close(case, "gone", "ended while it was patched", NOTICE)
            self.counts.gone += 1
            self._vanished = True
        elif failed is not None and failed.reason is not None:
            self._refused(case, failed.reason, failed.message)
        elif any(report.opted_out for report in reports):
            rule = next(report.opted_out for report in reports if report.opted_out)
            self.counts.opted_out += 1
            self._close(case, "opted_out", f"is opted out: {rule}", NOTICE, **facts)
        elif any(state == "vulnerable" for state in states):
            self.counts.reverted += 1
            self._close(case, "reverted", "was reverted and stays so", NOTICE, **facts)
        elif result.changed:
            self.counts.patched += 1
            took = round(1000 * (time.monotonic() - case.since))
            self._close(
                case,
                "patched",
                f"patched {took} ms after it was seen: {', '.join(facts['patches'])}",
                NOTICE,
                milliseconds=took,
                **facts,
            )
        elif reports:
            self.counts.inherited += 1
            self._close(case, "inherited", "has what is wanted", **facts)
        else:
            self._close(case, "unconcerned", "no longer maps what is to be patched")

    def _wrong_of(self, result: Result) -> dict[str, str]:
        """What is wrong in the store, by patch; a warning of something else is said once."""
        wrong = {}
        for text in result.warnings:
            patch_id, _, what = text.partition(": ")
            if patch_id in self._patches:
                wrong[patch_id] = what
            elif text not in self._warned:
                self._warned.add(text)
                self._journal.say("warning", text, WARNING)
        return wrong

    def _still_open(
        self, case: Case, reports: tuple[ProcessReport, ...], facts: dict[str, Any]
    ) -> None:
        stragglers = [
            f"{item.tid} {item.comm} {item.function or '?'}: {item.reason}"
            for report in reports
            for item in report.threads.stragglers
        ]
        if case.attempts == 0:
            self._say_case(
                case,
                "pending",
                "threads keep the transition open: " + "; ".join(stragglers[:8]),
                WARNING,
                **facts,
            )
        if self._settings.once and case.attempts >= len(REFUSED_AGAIN):
            self.counts.pending += 1
            self._close(case, "pending", "its transition stays open", WARNING, **facts)
            return
        self._again(case, OPEN_AGAIN)

    def _refused(self, case: Case, reason: str, message: str) -> None:
        """A program that has only begun gets a second chance before it is named."""
        last = reason in FINAL or case.attempts >= (
            1 if self._settings.once else len(REFUSED_AGAIN)
        )
        if case.attempts or last:
            if not case.blocked:
                self.counts.blocked += 1
                self._say_case(case, "blocked", f"{reason}: {message}", ERROR, reason=reason)
            case.blocked = True
        if last:
            self._close(case)
        else:
            self._again(case, REFUSED_AGAIN)

    def _again(self, case: Case, pauses: tuple[float, ...]) -> None:
        pause = pauses[min(case.attempts, len(pauses) - 1)]
        case.attempts += 1
        self._schedule(pause, functools.partial(self._attempt, case))

    def _close(
        self,
        case: Case,
        event: str = "",
        text: str = "",
        priority: int = INFORMATION,
        **facts: Any,
    ) -> None:
        """The process was dealt with, until the store changes."""
        if self._cases.get(case.identity.pid) is case:
            del self._cases[case.identity.pid]
        self._settled[case.identity.pid] = case
        if event:
            if case.blocked:
                self.counts.blocked -= 1
            self._say_case(case, event, text, priority, **facts)

    def _say_case(self, case: Case, event: str, text: str, priority: int, **facts: Any) -> None:
        pid = case.identity.pid
        stat = read_process_stat(pid)
        comm = stat.comm if stat is not None else "?"
        try:
            exe = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            exe = ""
        self._journal.say(
            event,
            f"{comm}[{pid}] {text}",
            priority,
            pid=pid,
            start_time=case.identity.start_time,
            comm=comm,
            exe=exe,
            unit=unit_of(pid),
            **facts,
        )


def _patches_of(reports: tuple[ProcessReport, ...], states: tuple[str, ...]) -> list[str]:
    return [patch.id for report in reports for patch in report.patches if patch.state in states]
