# SPDX-License-Identifier: GPL-3.0-or-later
"""What every provoke script has alike: its arguments, its exit codes, how it says what it saw."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping


class Behaviour(enum.Enum):
    """What was seen, and the exit code that says so."""

    FIXED = 0
    VULNERABLE = 1
    UNKNOWN = 2


@dataclasses.dataclass(frozen=True)
class Observation:
    """One provocation's outcome, in words for people."""

    behaviour: Behaviour
    seen: str


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the service answers, as it was given on the command line."""

    host: str
    port: int
    pid: int | None
    prefix: str


Provocation = Callable[[Target], Observation]


def judge(behaviours: Iterable[Behaviour]) -> Behaviour:
    """One vulnerable answer decides; all must be fixed to be fixed."""
    found = set(behaviours)
    if Behaviour.VULNERABLE in found:
        return Behaviour.VULNERABLE
    return Behaviour.FIXED if found == {Behaviour.FIXED} else Behaviour.UNKNOWN


def main(
    description: str,
    port: int,
    provocations: Mapping[str, Provocation],
    fatal: Collection[str] = (),
) -> int:
    """Runs the provocations in order and prints one line of JSON for each.

    `fatal` names those that end or damage an unpatched server: with --harmless they are left out,
    and then "fixed" cannot be concluded; once one of them was seen to harm, the rest is left out.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog="exit codes: 0 the fixed behaviour, 1 the vulnerable one, 2 could not tell",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--pid", type=int, help="only mentioned in the output")
    parser.add_argument("--prefix", default="provoke:", help="of every key that is used")
    parser.add_argument(
        "--harmless", action="store_true", help="leave out what ends an unpatched server"
    )
    arguments = parser.parse_args()
    target = Target(arguments.host, arguments.port, arguments.pid, arguments.prefix)
    left_out = set(fatal) if arguments.harmless else set()
    behaviours = []
    for name, provocation in provocations.items():
        if name in left_out:
            continue
        try:
            observation = provocation(target)
        except Exception as error:  # noqa: BLE001 - an uncaught one would exit as "vulnerable"
            observation = Observation(Behaviour.UNKNOWN, f"{type(error).__name__}: {error}")
        behaviours.append(observation.behaviour)
        line: dict[str, str | int] = {
            "provocation": name,
            "behaviour": observation.behaviour.name.lower(),
            "seen": observation.seen,
        }
        if target.pid is not None:
            line["pid"] = target.pid
        print(json.dumps(line), flush=True)
        if name in fatal and observation.behaviour is not Behaviour.FIXED:
            break
    verdict = judge(behaviours)
    if left_out and verdict is Behaviour.FIXED:
        verdict = Behaviour.UNKNOWN
    print(json.dumps({"verdict": verdict.name.lower()}))
    sys.stdout.flush()
    return verdict.value
