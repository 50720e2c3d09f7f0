# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Live progress: one line for each step and process, printed while the task still runs."""

from __future__ import annotations

import collections
import sys
import typing as t

from ansible.utils.display import Display
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._printable import printable

display = Display()

# Workers are detached from the terminal (ansible-core 2.19), but the strategy loads action
# plugins before it forks them.
STDOUT_IS_TERMINAL = sys.stdout.isatty()

#: Of a patch that is in memory, if only in parts.
IN_FORCE = ("patched", "pending", "partial")


def milliseconds(microseconds: int | None) -> str:
    """A duration as people read it; a dash where nothing was measured."""
    return "-" if microseconds is None else f"{microseconds / 1000:.2f} ms"


def arming_ways(process: dict[str, t.Any]) -> str:
    """How many functions go which way: 3 functions (byte 2, swap 1)."""
    functions = process["functions"]
    ways = collections.Counter(function["arming"] for function in functions if function["arming"])
    count = f"{len(functions)} function{'' if len(functions) == 1 else 's'}"
    listed = ", ".join(f"{way} {ways[way]}" for way in ("byte", "swap", "hold") if ways[way])
    return f"{count} ({listed})" if listed else count


def _plan(process: dict[str, t.Any]) -> str:
    if process["state"] == "patched":
        return "plan: is patched, nothing to do"
    return (
        f"plan: {arming_ways(process)}, {process['threads']['total']} threads, policy "
        f"{process['policy'] or '-'}"
    )


def _plan_revert(process: dict[str, t.Any]) -> str:
    if not any(patch["state"] in IN_FORCE for patch in process["patches"]):
        return "plan: is not in force, nothing to do"
    return f"plan: goes back, {process['threads']['total']} threads"


def _load(process: dict[str, t.Any]) -> str:
    return f"loaded in {milliseconds(process['timings_us']['load'])}"


def _arm(process: dict[str, t.Any]) -> str:
    return f"armed {arming_ways(process)}"


def _threads(process: dict[str, t.Any]) -> str:
    threads = process["threads"]
    return (
        f"threads: {threads['migrated']} of {threads['total']} migrated, "
        f"{threads['quiescent']} quiescent, {len(threads['stragglers'])} stragglers"
    )


def _finish(process: dict[str, t.Any]) -> str:
    timings = process["timings_us"]
    return (
        f"finished: {process['state']}, transition {milliseconds(timings['transition'])}, "
        f"longest stop {milliseconds(timings['longest_stop'])}"
    )


def _verify(process: dict[str, t.Any]) -> str:
    leads = collections.Counter(function["leads_to"] for function in process["functions"])
    listed = ", ".join(
        f"{leads[kind]} {kind}" for kind in ("new", "old", "mixed", "unknown") if leads[kind]
    )
    return (
        f"verified in memory: {process['state']}, generation {process['generation']}, "
        f"code reached: {listed or 'as shipped'}"
    )


STEPS: dict[str, t.Callable[[dict[str, t.Any]], str]] = {
    "plan": _plan,
    "plan_revert": _plan_revert,
    "load": _load,
    "arm": _arm,
    "threads": _threads,
    "finish": _finish,
    "verify": _verify,
}


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

    def step(self, step: str, result: dict[str, t.Any], ids: t.Sequence[str]) -> None:
        """A line for each process of a result of the applier; ``step`` is one of STEPS."""
        if not self.shown:
            return
        cves: dict[str, list[str]] = collections.defaultdict(list)
        for cve in result["cves"]:
            cves[cve["patch"]].append(cve["id"])
        for process in result["processes"]:
            if process["reason"] and step == "threads":
                continue  # "finish" says it
            named = [patch["id"] for patch in process["patches"] if patch["id"] in ids]
            what = ", ".join(label for patch in named for label in cves.get(patch) or [patch])
            who = f"{printable(process['comm'])}[{process['pid']}]"
            text = (
                STEPS[step](process)
                if not process["reason"]
                else f"{step.partition('_')[0]}: {process['state']}, {process['reason']}: "
                f"{process['message']}"
            )
            self.line(printable(f"{who} {what}: {text}" if what else f"{who}: {text}"))
            for straggler in process["threads"]["stragglers"] if step == "finish" else ():
                where = f" in {straggler['function']}" if straggler["function"] else ""
                self.line(
                    printable(
                        f"{who} straggler {straggler['tid']} {straggler['comm']}{where}: "
                        f"{straggler['reason']}"
                    )
                )
