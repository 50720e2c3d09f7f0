# SPDX-License-Identifier: GPL-3.0-or-later
"""``wfpatch watch``: what the unit wfpatch-watch.service runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from wfpatch.host import Options
from wfpatch.journal import Journal
from wfpatch.store import Store

if TYPE_CHECKING:
    from .kept_store import KeptStore
    from .starts import Starts

TEXT = "keep what the store wants in force in processes that start later"


def add_watch(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    command = commands.add_parser("watch", help=TEXT, description=TEXT)
    command.add_argument("--policy", choices=("auto", "points", "global"))
    command.add_argument("--backend", choices=("auto", "ptrace", "kernel"), default="auto")
    command.add_argument("--timeout", type=int, metavar="SECONDS", help="as for apply")
    command.add_argument(
        "--starts",
        choices=("auto", "connector", "fanotify", "polling"),
        default="auto",
        help="how starts of programs are learnt of; auto takes the first that is to be had here",
    )
    command.add_argument(
        "--burst", type=int, default=100, help="attempts at processes of one object without a pause"
    )
    command.add_argument(
        "--refill",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="until one more may be, after that; twice as long for each while they keep coming",
    )
    command.add_argument(
        "--sweep",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="between looks at all processes, for what no word came of; default: %(default)s",
    )
    command.add_argument(
        "--once", action="store_true", help="deal with the processes that run now, and end"
    )


def select_starts(name: str, journal: Journal) -> Starts:
    """The way of that name, and say which and why; where it is not to be had, the next one."""
    from .connector import Connector
    from .exec_notification import ExecNotification
    from .starts import Starts, first_available

    ways = {"connector": Connector, "fanotify": ExecNotification, "polling": Starts}
    names = list(ways) if name == "auto" else [name]
    starts, reasons = first_available([ways[each] for each in names])
    because = f" ({'; '.join(reasons)})" if reasons else ""
    journal.say(
        "starts", f"starts of programs are learnt of by {starts.name}{because}", starts=starts.name
    )
    return starts


def run_watch(arguments: argparse.Namespace) -> int:
    """Run it until it is told to end; returns the exit code."""
    # What comes with this command only: every other one starts quicker without.
    from .kept_store import KeptStore

    store = KeptStore(Store(arguments.store, arguments.allowed_signers))
    if arguments.once:
        return _run(arguments, store)
    with store.watching():
        return _run(arguments, store)


def _run(arguments: argparse.Namespace, store: KeptStore) -> int:
    from .budget import Limits
    from .starts import Starts
    from .watcher import Settings, Watcher

    journal = Journal(arguments.json)
    options = Options(policy=arguments.policy, backend=arguments.backend, timeout=arguments.timeout)
    starts = Starts() if arguments.once else select_starts(arguments.starts, journal)
    settings = Settings(
        options,
        Limits(arguments.burst, arguments.refill, max(30.0, arguments.refill)),
        arguments.sweep,
        arguments.once,
    )
    try:
        return Watcher(store, starts, journal, settings).run()
    finally:
        starts.close()
        journal.close()
