# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Live progress: one line for each change, printed while the host still works."""

from __future__ import annotations

import collections
import json
import sys
import typing as t

from ansible.utils.display import Display
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._printable import printable
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import problems

Values = dict[str, t.Any]

display = Display()

# Workers are detached from the terminal (ansible-core 2.19), but the strategy loads action
# plugins before it forks them.
STDOUT_IS_TERMINAL = sys.stdout.isatty()

#: Of a patch that is in memory, if only in parts.
IN_FORCE = ("patched", "pending", "partial")


def milliseconds(microseconds: int | None) -> str:
    """A duration as people read it; a dash where nothing was measured."""
    return "-" if microseconds is None else f"{microseconds / 1000:.2f} ms"


def counted(count: int, noun: str) -> str:
    """3 functions, 1 function."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _plan(event: Values) -> str:
    ways = ", ".join(
        f"{way} {event['ways'][way]}" for way in ("byte", "swap", "hold") if event["ways"].get(way)
    )
    functions = counted(event["functions"], "function") + (f" ({ways})" if ways else "")
    return (
        f"plan: {functions}, {counted(event['threads'], 'thread')}, policy {event['policy'] or '-'}"
    )


def _load(event: Values) -> str:
    return f"loaded in {milliseconds(event['microseconds'])}"


def _arm(event: Values) -> str:
    return f"armed in {milliseconds(event['microseconds'])}"


def _straggler(straggler: Values) -> str:
    where = f" in {straggler['function']}" if straggler["function"] else ""
    return f"{straggler['tid']} {straggler['comm']}{where}: {straggler['reason']}"


def _threads(event: Values) -> str:
    text = f"threads: {event['done']} of {event['total']} done"
    if event["waiting"]:
        first = "; ".join(_straggler(each) for each in event["stragglers"][:1])
        text += f", {counted(event['waiting'], 'straggler')}: {first}"
    return text


def _end(event: Values) -> str:
    if event["reason"]:
        return f"{event['state']}, {event['reason']}: {event['message']}"
    if not event["changed"]:
        return f"is {event['state']}, nothing to do"
    return (
        f"finished: {event['state']}, {event['quiescent']} of "
        f"{counted(event['total'], 'thread')} quiescent, "
        f"transition {milliseconds(event['transition_us'])}, "
        f"longest stop {milliseconds(event['longest_stop_us'])}"
    )


def _revert(event: Values) -> str:
    if event["reason"] or event["changed"]:
        return f"revert: {_end(event)}"
    return "is not in force, nothing to do"


LINES: dict[str, t.Callable[[Values], str]] = {
    "plan": _plan,
    "load": _load,
    "arm": _arm,
    "threads": _threads,
    "end": _end,
    "revert": _revert,
}


def verified_line(process: Values) -> str:
    """What a second reading of live memory found in a process."""
    leads = collections.Counter(function["leads_to"] for function in process["functions"])
    listed = ", ".join(
        f"{leads[kind]} {kind}" for kind in ("new", "old", "mixed", "unknown") if leads[kind]
    )
    return (
        f"verified in memory: {process['state']}, generation {process['generation']}, "
        f"code reached: {listed or 'as shipped'}"
    )


def planned_line(process: Values, revert: bool, ids: t.Sequence[str]) -> str:
    """What check mode found for a process."""
    if process["reason"]:
        return f"plan: {process['state']}, {process['reason']}: {process['message']}"
    patches = [patch for patch in process["patches"] if patch["id"] in ids]
    total = counted(process["threads"]["total"], "thread")
    if revert:
        if not any(patch["state"] in IN_FORCE for patch in patches):
            return "plan: is not in force, nothing to do"
        return f"plan: goes back, {total}"
    if process["state"] == "patched":
        return "plan: is patched, nothing to do"
    ways = collections.Counter(each["arming"] for each in process["functions"] if each["arming"])
    event = {"functions": len(process["functions"]), "ways": ways, "policy": process["policy"]}
    return _plan({**event, "threads": process["threads"]["total"]})


class Progress:
    """Prints lines for one host and task. ``mode``: the option ``progress`` of the modules."""

    def __init__(self, host: str, mode: str) -> None:
        self.host = printable(host)
        self.shown = mode == "always" or (
            mode != "never" and (STDOUT_IS_TERMINAL or display.verbosity > 0)
        )

    def line(self, text: str) -> None:
        """One line about this host."""
        if self.shown:
            display.display(f"{self.host} {text}")

    def hear(self, line: str) -> None:
        """A line of what the applier tells. What does not fit the schema is passed over: the
        result is what counts, and is checked anew.
        """
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict) or problems("event", event) or event["event"] == "follow":
            return
        self._of(event, event["patch"], LINES[event["event"]](event))
        if event["event"] in ("end", "revert"):
            for straggler in event["stragglers"]:
                self._of(event, event["patch"], f"straggler {_straggler(straggler)}")

    def processes(
        self, result: Values, ids: t.Sequence[str], text: t.Callable[[Values], str]
    ) -> None:
        """A line for each process of a result of the applier."""
        for process in result["processes"] if self.shown else ():
            named = [patch["id"] for patch in process["patches"] if patch["id"] in ids]
            self._of(process, ", ".join(named), text(process))

    def _of(self, process: Values, patches: str, text: str) -> None:
        who = f"{printable(process['comm'])}[{process['pid']}]"
        self.line(printable(f"{who} {patches}: {text}" if patches else f"{who}: {text}"))
