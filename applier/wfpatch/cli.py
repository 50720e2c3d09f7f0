# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: ``wfpatch [--json] COMMAND``, see --help.

Exit codes: 0 done, or as wanted; 1 failed; 2 wrong usage; 3 refused or blocked; 4 pending or
partial; 5 live memory is not as recorded; 6 another applier works here; 7 no process to patch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .bundle import load_bundle
from .errors import NO_ROOM, Crashed, Failed, Refused, Usage, WfpatchError
from .events import Events, print_followed
from .facts import facts_of
from .host import Host, Options
from .report import Result, human, printable
from .store import DEFAULT_SIGNERS, DEFAULT_STORE, Store
from .unneeded import GRACE, collect
from .watch.command import add_watch, run_watch

EXIT_CODES = """exit codes:
  0  done, or already as wanted
  1  failed; the process is healthy and the state is named
  2  wrong usage
  3  refused or blocked
  4  a transition is pending or partial
  5  live memory is not as recorded
  6  another applier works on this host
  7  no running process maps the object"""

EXIT_OF_REASON = {
    "usage": 2,
    "stragglers": 4,
    "global_quiescence_timeout": 4,
    "tampered": 5,
    "header_corrupt": 5,
    "busy": 6,
    "no_matching_process": 7,
    "build_id_mismatch": 7,
    "applier_failed": 1,
    "disk_full": 1,
    "target_exited": 1,
    "target_changed": 1,
    "injection_failed": 1,
    "injection_timeout": 1,
    "hold_timeout": 1,
    "health_check_failed": 1,
    "memory_unreadable": 1,
    "memory_unwritable": 1,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage("usage", f"{message} (try --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wfpatch",
        description="Live-patch running services, thread by thread.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--store", type=Path, default=DEFAULT_STORE, help="default: %(default)s")
    parser.add_argument(
        "--allowed-signers", type=Path, default=DEFAULT_SIGNERS, help="default: %(default)s"
    )
    parser.add_argument(
        "--wait", type=int, default=0, metavar="SECONDS", help="for another applier to finish"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text, many in (
        ("plan", "say what apply would do; changes nothing", "+"),
        ("apply", "bring patches into force", "+"),
        ("revert", "take patches out of force, the newest first", "+"),
        ("status", "say what is in force, from live memory", "*"),
        ("verify", "as status, and compare code with the bundles; fails unless patched", "*"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("patch", nargs=many, metavar="ID", help="ids of bundles in the store")
        command.add_argument(
            "--pid", type=int, action="append", default=[], help="only this process; repeatable"
        )
        if name in ("plan", "apply", "revert"):
            command.add_argument("--policy", choices=("auto", "points", "global"))
            command.add_argument("--backend", choices=("auto", "ptrace", "kernel"), default="auto")
            command.add_argument(
                "--timeout",
                type=int,
                metavar="SECONDS",
                help="of the transition; default: manifest",
            )
        if name == "apply":
            command.add_argument("--dry-run", action="store_true", help="the same as plan")
            command.add_argument(
                "--until",
                choices=("load", "arm", "finish"),
                default="finish",
                help="stop after this step; a later call goes on from there",
            )
        if name in ("apply", "revert"):
            command.add_argument(
                "--events",
                metavar="NAME",
                help="tell what happens as it happens; 'follow NAME' reads it",
            )
        if name in ("plan", "apply"):
            command.add_argument("--include-init", action="store_true", help="patch PID 1 as well")
    commands.add_parser("report", help="status of every bundle of the store")
    compliance = commands.add_parser("compliance", help="evidence of every CVE that manifests name")
    compliance.add_argument(
        "--advisories", type=Path, metavar="FILE", help="JSON with fixed and unpatchable builds"
    )
    add_watch(commands)
    text = "remove bundles that are neither wanted nor in the memory of any process"
    garbage = commands.add_parser("gc", help=text, description=text)
    garbage.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    garbage.add_argument(
        "--grace",
        type=int,
        default=GRACE,
        metavar="SECONDS",
        help="keep what was pushed since; default: %(default)s",
    )
    following = commands.add_parser("follow", help="print the events of a command as they come")
    following.add_argument("name", metavar="NAME", help="as given to --events")
    following.add_argument(
        "--patience", type=float, default=30.0, metavar="SECONDS", help="for it to begin"
    )
    commands.add_parser("facts", help="what Ansible's facts say of this host")
    bundle = commands.add_parser("bundle", help="look at a bundle")
    bundle.add_argument("action", choices=("verify",))
    bundle.add_argument("directory", type=Path)
    commands.add_parser("version", help="print the version")
    return parser


def exit_code(result: Result, command: str) -> int:
    """The exit code for a result; see EXIT_CODES."""
    if result.reason is not None:
        return EXIT_OF_REASON.get(result.reason, 3)
    if result.state in ("pending", "partial"):
        return 4
    if result.state == "blocked":
        return 3
    if command == "verify" and result.state not in ("patched", "fixed"):
        return 7 if result.state == "not_affected" else 3
    return 0


def _error_result(error: WfpatchError) -> dict[str, Any]:
    state = "blocked" if isinstance(error, Refused) else "unknown"
    return Result(False, state, reason=error.reason, message=error.message).to_json()


def _print_version(as_json: bool) -> int:
    print(json.dumps({"version": __version__}) if as_json else f"wfpatch {__version__}")
    return 0


def _verify_bundle(arguments: argparse.Namespace) -> int:
    bundle = load_bundle(arguments.directory.resolve(), arguments.allowed_signers)
    facts = {
        "id": bundle.manifest.id,
        "digest": bundle.digest,
        "signer": bundle.signer,
        "functions": [function.name for function in bundle.patch.functions],
    }
    if arguments.json:
        print(json.dumps(facts, sort_keys=True))
    else:
        print("\n".join(f"{key}: {value}" for key, value in facts.items()))
    return 0


def _compliance(arguments: argparse.Namespace) -> int:
    from .evidence import gather  # it reads package databases: nobody else needs it

    store = Store(arguments.store, arguments.allowed_signers)
    evidence = gather.gather(store, gather.read_advisories(arguments.advisories))
    print(json.dumps(evidence, sort_keys=True) if arguments.json else gather.human(evidence))
    return 0


def _collect_garbage(arguments: argparse.Namespace) -> int:
    store = Store(arguments.store, arguments.allowed_signers)
    found = collect(store, arguments.wait, arguments.grace, arguments.dry_run)
    if arguments.json:
        print(json.dumps({"changed": found.changed, **asdict(found)}, sort_keys=True))
        return 0
    would = "would be removed" if arguments.dry_run else "removed"
    for gone in found.removed:
        print(f"{gone.id}: {would}, {gone.bytes} bytes")
    for kept in found.kept:
        print(printable(f"{kept.id}: kept: {kept.why}"))
    for name in found.leftovers:
        print(printable(f"{name}: {would}: an interrupted push"))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "version":
        return _print_version(arguments.json)
    if arguments.command == "bundle":
        return _verify_bundle(arguments)
    if arguments.command == "follow":
        return print_followed(arguments.name, arguments.patience)
    if arguments.command == "compliance":
        return _compliance(arguments)
    if arguments.command == "watch":
        return run_watch(arguments)
    if arguments.command == "gc":
        return _collect_garbage(arguments)
    if arguments.command == "facts":
        facts = facts_of(Store(arguments.store, arguments.allowed_signers))
        print(json.dumps(facts, indent=None if arguments.json else 2, sort_keys=True))
        return 0
    events = Events(getattr(arguments, "events", None))
    host = Host(Store(arguments.store, arguments.allowed_signers), events=events)
    patches: tuple[str, ...] = tuple(dict.fromkeys(getattr(arguments, "patch", ())))
    options = Options(
        pids=tuple(getattr(arguments, "pid", ())),
        policy=getattr(arguments, "policy", None),
        backend=getattr(arguments, "backend", "auto"),
        timeout=getattr(arguments, "timeout", None),
        until=getattr(arguments, "until", "finish"),
        include_init=getattr(arguments, "include_init", False),
        wait=float(arguments.wait),
    )
    command = arguments.command
    if command == "plan" or (command == "apply" and arguments.dry_run):
        result = host.plan(patches, options)
    elif command == "apply":
        result = host.apply(patches, options)
    elif command == "revert":
        result = host.revert(patches, options)
    elif command == "verify":
        result = host.verify(patches, options)
    else:
        result = host.status(patches, options)
    print(json.dumps(result.to_json(), sort_keys=True) if arguments.json else human(result))
    return exit_code(result, command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    try:
        arguments = _parser().parse_args(words)
        if arguments.command is None:
            raise Usage("usage", "a command is missing (try --help)")
        return _run(arguments)
    except WfpatchError as error:
        return _end(error, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - a caller of --json gets JSON whatever happens
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            full = f"{error.filename or 'a file'}: {error.strerror}"
            return _end(Failed("disk_full", full), as_json)
        traceback.print_exc()
        return _end(Crashed(error), as_json)


def _end(error: WfpatchError, as_json: bool) -> int:
    if as_json:
        print(json.dumps(_error_result(error), sort_keys=True))
    else:
        print(f"wfpatch: {printable(str(error))}", file=sys.stderr)
    return EXIT_OF_REASON.get(error.reason, 3)
