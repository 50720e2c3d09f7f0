# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration: real CVE fixes, built from source, into running stock services over SSH.

Run by `make demo`, which sets up what it needs. Everything it claims is checked: it exits non-zero
as soon as something is not as it must be, and takes everything down whatever happens. What it ran
and read lies in .work/demo afterwards.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from scenario import bundles, checkout, tables
from scenario.checkout import OUTPUT, TOP, Plan, Recipe
from scenario.loads import Loads
from scenario.narration import Failure, expect, say, step
from scenario.playbooks import Playbooks, processes
from scenario.provocations import FIXED, VULNERABLE, provoke
from sshfleet import fleet as fleets
from sshfleet import namespaces
from sshfleet.fleet import Fleet

READER = TOP / "tests" / "apps" / "gdb_reader"


class Demonstration:
    """One run. The longest stop of each process is kept over all runs of the playbooks."""

    def __init__(self, plan: Plan, fleet: Fleet, loads: Loads, playbooks: Playbooks) -> None:
        self.plan = plan
        self.fleet = fleet
        self.loads = loads
        self.playbooks = playbooks
        self.hosts = [record.name for record in fleet.hosts]
        self.stops: dict[tuple[str, int], int] = {}
        #: pid here and start time of each service's process: together they name it for good.
        self.services: dict[tuple[str, str], tuple[int, int | None]] = {}
        for record in fleet.hosts:
            for service, inner in record.services.items():
                pid = fleet.outer_pid(record.name, inner)
                self.services[record.name, service] = (pid, namespaces.start_time(pid))

    def keep_stops(self, report: dict) -> None:
        """Remembers the longest stop of each process."""
        for host, process in processes(report):
            key = (host, process["pid"])
            self.stops[key] = max(self.stops.get(key, 0), tables.longest_stop(process))

    def expect_states(
        self, report: dict, wanted: dict[str, str], patches: Sequence[Recipe] = ()
    ) -> None:
        """Every host's process of every service is in the report, and its patches are as wanted.

        `wanted` gives the state by host; `patches` are all unless some are given.
        """
        found = processes(report)
        for host, state in wanted.items():
            for patch in patches or self.plan.recipes:
                pid = self.fleet.host(host).services[patch.source]
                states = [
                    entry["state"]
                    for name, process in found
                    if name == host and process["pid"] == pid
                    for entry in process["patches"]
                    if entry["id"] == patch.id
                ]
                if states != [state]:
                    raise Failure(f"{host} {patch.source}[{pid}] {patch.id}: {states}, not {state}")
        named = ", ".join(patch.id for patch in patches) or "every patch"
        say(f"ok: {named} is {' / '.join(dict.fromkeys(wanted.values()))} in every process")

    def expect_same_processes(self) -> None:
        """No service was restarted."""
        for (host, service), process in self.services.items():
            if namespaces.start_time(process[0]) != process[1]:
                raise Failure(f"{service} of {host} is not the process that was started")
        say("ok: every service is still the process that was started")

    def gdb_agrees(self, report: dict) -> None:
        """The independent reader sees in live memory what the report says."""
        path = OUTPUT / "read-by-gdb.json"
        # gdb stops all threads for a while: what clients see then is not the product's doing.
        self.loads.phase("gdb")
        compared = 0
        for host, process in processes(report):
            if not process["functions"]:
                continue
            one = {"hosts": [entry for entry in report["hosts"] if entry["name"] == host]}
            path.write_text(json.dumps(one))
            outer = self.fleet.outer_pid(host, process["pid"])
            done = subprocess.run(
                [sys.executable, READER, str(outer), path, f"--inner-pid={process['pid']}"],
                capture_output=True,
                text=True,
                timeout=180,
            )
            if done.returncode:
                raise Failure(f"gdb and the report disagree on {host}: {done.stdout}{done.stderr}")
            compared += len(json.loads(done.stdout)["functions"])
        self.loads.phase("between")
        expect(compared > 0, f"gdb reads the same from live memory ({compared} functions)")

    def run(self) -> None:
        """Everything between the set-up and the verdict."""
        step(f"quiet: {self.plan.quiet_seconds:g} s of load before anything is patched")
        with self.loads.in_phase("quiet"):
            time.sleep(self.plan.quiet_seconds)
        self.loads.check()

        step("playbooks/patch.yml: validate, verify, push, apply, verify in memory, report")
        with self.loads.in_phase("patching"):
            report = self.playbooks.succeed("patch", hosts=self.hosts).report
        self.keep_stops(report)
        self.expect_states(report, dict.fromkeys(self.hosts, "patched"))
        self.gdb_agrees(report)

        step("the faults are gone, in the very processes that were patched")
        for host in self.hosts:
            for patch in self.plan.recipes:
                provoke(self.fleet, host, patch, FIXED)
        self.expect_same_processes()
        self.loads.check()

        step("the same run again changes nothing")
        with self.loads.in_phase("unchanged"):
            again = self.playbooks.succeed("patch", hosts=self.hosts)
        expect(set(again.changed.values()) == {0}, "changed=0 on every host")

        last = self.hosts[-1]
        self.revert_stacked(last)
        step(f"playbooks/revert.yml on {last}: the patches that are left")
        with self.loads.in_phase("patching"):
            report = self.playbooks.succeed("revert", "--limit", last, hosts=[last]).report
        self.keep_stops(report)
        self.expect_states(report, {last: "vulnerable"})
        self.gdb_agrees(report)
        for patch in self.plan.recipes:
            # This server serves on, so it is asked only what does not harm it.
            if patch.harmless_tells:
                provoke(self.fleet, last, patch, VULNERABLE, "--harmless")

        step(f"--check --diff on {last} says what would be done, and does nothing")
        checked = self.playbooks.succeed(
            "patch", "--check", "--diff", "--limit", last, hosts=[last]
        )
        expect(checked.changed[last] > 0, "it would change something")
        expect("\n--- " in checked.output and "\n+++ " in checked.output, "it shows a difference")
        status = self.playbooks.run("status", "--limit", last)
        self.expect_states(status.report, {last: "vulnerable"})

        step(f"{last} is patched again: its region is there, nothing needs to be loaded")
        with self.loads.in_phase("patching"):
            report = self.playbooks.succeed("patch", "--limit", last, hosts=[last]).report
        self.keep_stops(report)
        for patch in self.plan.recipes:
            provoke(self.fleet, last, patch, FIXED)

        step("playbooks/status.yml: what live memory says of all hosts")
        report = self.playbooks.succeed("status", hosts=self.hosts).report
        self.expect_states(report, dict.fromkeys(self.hosts, "patched"))
        self.gdb_agrees(report)
        self.expect_same_processes()
        self.finish(report)

    def revert_stacked(self, host: str) -> None:
        """Patches that require another are reverted first: the other way round is refused."""
        stacked = [patch for patch in self.plan.recipes if patch.requires]
        under = [name for patch in stacked for name in patch.requires]
        expect(bool(stacked), f"{', '.join(patch.id for patch in stacked)} requires another patch")
        step(f"playbooks/revert.yml on {host}: {', '.join(under)} may not go before it")
        refused = self.playbooks.run("revert", "--limit", host, wfpatch_ids=under)
        expect(refused.code != 0, "playbooks/revert.yml does not exit 0")
        reasons = {entry["reason"] for entry in (refused.report or {"hosts": []})["hosts"]}
        expect(reasons == {"still_required"}, "the reason is still_required")
        status = self.playbooks.run("status", "--limit", host)
        self.expect_states(status.report, {host: "patched"})

        step(f"playbooks/revert.yml on {host}: the one that requires another, first")
        with self.loads.in_phase("patching"):
            own = [patch.id for patch in stacked]
            run = self.playbooks.succeed("revert", "--limit", host, hosts=[host], wfpatch_ids=own)
        self.keep_stops(run.report)
        status = self.playbooks.run("status", "--limit", host)
        for patch in self.plan.recipes:
            state = "vulnerable" if patch in stacked else "patched"
            self.expect_states(status.report, {host: state}, [patch])
        for name in under:
            provoke(self.fleet, host, checkout.recipe(name), FIXED)

    def finish(self, report: dict) -> None:
        """The tables and the clients' verdict."""
        verdicts = self.loads.stop()
        kept = {f"{host} {service}": verdict for (host, service), verdict in verdicts.items()}
        (OUTPUT / "load.json").write_text(json.dumps(kept, indent=1))
        (OUTPUT / "report.json").write_text(json.dumps(report, indent=1))
        step("what was done")
        tables.process_table(report, self.stops)
        print()
        tables.latency_table(verdicts, ("quiet", "unchanged", "patching"))
        say("quiet: nothing else runs; unchanged: the playbook runs and finds nothing to do;")
        say("patching: it patches or reverts. Controller and hosts share this machine.")
        print()
        totals = {
            kind: sum(verdict[kind] for verdict in verdicts.values())
            for kind in ("answered", "wrong", "lost", "timeouts", "interrupted")
        }
        say(
            f"requests served: {totals['answered']}, wrong answers: {totals['wrong']}, "
            f"connections lost: {totals['lost']}, timeouts: {totals['timeouts']}, "
            f"interrupted: {totals['interrupted']}"
        )
        for place, verdict in verdicts.items():
            if verdict["verdict"] != "pass" or verdict["answered"] != verdict["requests"]:
                raise Failure(f"the load on {' '.join(place)}: {verdict}")
        say(f"report: {OUTPUT / 'report.json'} (accepted by schemas/report.schema.json)")


def before(plan: Plan, name: str) -> None:
    """The faults in stock services: on twins, since some of them end the server."""
    fatal = [patch for patch in plan.recipes if patch.fatal_before]
    count = max(1, len(fatal))
    with fleets.running(count, plan.services, name) as twins:
        for patch in plan.recipes:
            # Each fatal provocation has a twin of its own; the others are done on the last one,
            # before its own.
            number = fatal.index(patch) if patch in fatal else count - 1
            provoke(twins, twins.hosts[number].name, patch, VULNERABLE)


def applied_order(patches: tuple[Recipe, ...]) -> list[str]:
    return [patch.id for patch in patches]


def main() -> int:
    """Exit codes: 0 all was as it must be; 1 it was not; 2 it could not be run."""
    if os.geteuid():
        print("demo: namespaces need root", file=sys.stderr)
        return 2
    # A TERM ends this as an interrupt does: through every `finally`.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # One run at a time in a checkout; the name keeps those of several checkouts apart.
    OUTPUT.parent.mkdir(exist_ok=True)
    with open(OUTPUT.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("demo: another one runs in this checkout", file=sys.stderr)
            return 2
        return demonstrate(f"demo-{os.getpid()}")


def demonstrate(name: str) -> int:
    """Runs it on a fleet of that name; see main for the exit codes."""
    plan = checkout.read_plan(pathlib.Path(__file__).with_name("plan.toml"))
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    try:
        step(
            f"a fleet of {plan.hosts} SSH hosts with {' and '.join(plan.services)}, as Debian ships"
        )
        with fleets.running(plan.hosts, plan.services, name) as fleet:
            for record in fleet.hosts:
                running = " ".join(f"{name}[{pid}]" for name, pid in record.services.items())
                say(f"{record.name} {record.address} {running}")
            with Loads(fleet, plan) as loads:
                loads.phase("building")
                step("bundles, built from source and signed")
                key, signers = bundles.make_signer()
                folders = [str(bundles.build(patch, key)) for patch in plan.recipes]
                step("the faults, in stock twins of the services")
                before(plan, f"{name}-twins")
                variables = {
                    "wfpatch_patches": folders,
                    "wfpatch_ids": applied_order(plan.recipes),
                    "wfpatch_signers_file": str(signers),
                    # One line for each step, also where the output is no terminal.
                    "wfpatch_progress": "always",
                }
                playbooks = Playbooks(fleet.inventory, variables)
                Demonstration(plan, fleet, loads, playbooks).run()
    except Failure as failure:
        print(f"\ndemo: FAILED: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything was taken down", file=sys.stderr)
        return 1
    step("all was as it must be; everything is taken down")
    return 0


if __name__ == "__main__":
    sys.exit(main())
