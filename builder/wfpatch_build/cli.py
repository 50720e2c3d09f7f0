# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: `wfpatch-build debian|tree|survey|matching|sign`.

Exit codes: 0 done; 1 refused or failed, with a reason code; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wfpatch_build import __version__
from wfpatch_build.debian import BuildResult, build_debian
from wfpatch_build.errors import Refusal
from wfpatch_build.manifest import Description, Target, manifest, release_day, write_bundle
from wfpatch_build.matching_survey import HEAD, Neighbours, cells, matching_survey
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.pipeline import Change, check_expected
from wfpatch_build.plain_tree import build_plain
from wfpatch_build.recipe import read_recipe
from wfpatch_build.signing import sign
from wfpatch_build.stock_symbols import METHODS
from wfpatch_build.survey import survey, table
from wfpatch_build.text_table import text_table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wfpatch-build",
        description="Make live patches from source patches and stock binaries.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--quiet", action="store_true", help="no progress lines")
    verbs = parser.add_subparsers(dest="verb", required=True)

    debian = verbs.add_parser("debian", help="a patch for a binary of a Debian package")
    debian.add_argument("package", nargs="?", help="binary package (or --recipe)")
    debian.add_argument("--recipe", type=Path, help="take everything from this recipe")
    debian.add_argument("--old", metavar="VERSION", help="the stock version")
    debian.add_argument("--binary", metavar="PATH", help="installed path of the binary")
    debian.add_argument("--suite", help="Debian suite of the build chroot; default: this machine's")
    _common(debian)

    tree = verbs.add_parser("tree", help="a patch for a binary built from a plain source tree")
    tree.add_argument("--old", required=True, type=Path, metavar="DIR", help="source of the binary")
    tree.add_argument("--new", type=Path, metavar="DIR", help="changed source (or --patch)")
    tree.add_argument("--build", required=True, metavar="COMMAND", help="how to build it, from DIR")
    tree.add_argument("--binary", required=True, type=Path, metavar="ELF", help="stock binary")
    tree.add_argument("--built", metavar="PATH", help="what the build makes of it, below DIR")
    tree.add_argument("--package", help="for the manifest; default: the binary's name")
    tree.add_argument("--package-version", metavar="VERSION", default="0")
    _common(tree)

    look = verbs.add_parser("survey", help="how the functions of binaries could be armed")
    look.add_argument("elf", nargs="+", type=Path)
    look.add_argument("--json", action="store_true")

    matching = verbs.add_parser(
        "matching",
        help="how much run-pre matching locates in a binary that an exact rebuild explains",
    )
    matching.add_argument("package", help="binary package")
    matching.add_argument("--old", required=True, metavar="VERSION", help="the stock version")
    matching.add_argument("--binary", metavar="PATH", help="installed path of the binary")
    for option, metavar, text in (
        ("--neighbour", "VERSION", "objects of this version too (a rebuild)"),
        ("--patch", "FILE", "objects of the source with this patch too"),
        ("--options", "OPTIONS", "objects with these compiler options behind the stock ones too"),
    ):
        matching.add_argument(option, action="append", default=[], metavar=metavar, help=text)
    matching.add_argument("--json", action="store_true")

    signer = verbs.add_parser("sign", help="sign bundles")
    signer.add_argument("bundle", nargs="+", type=Path)
    signer.add_argument("--key", required=True, type=Path, help="ssh private key")
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--patch", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument(
        "--base-patch",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="source of a live patch that is in force before this one (repeatable, in order)",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="where symbols come from: an exact rebuild, matching, or (auto) matching only where "
        "the rebuild is not exact",
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="BUNDLE")
    parser.add_argument("--key", type=Path, help="sign with this ssh key")
    parser.add_argument("--id", help="the patch's id; default: the bundle directory's name")
    parser.add_argument("--summary")
    parser.add_argument("--cve", action="append", default=[], metavar="CVE=SEVERITY")
    parser.add_argument("--released", metavar="YYYY-MM-DD")
    parser.add_argument("--policy", choices=("auto", "points", "global"), default="auto")
    parser.add_argument("--requires", action="append", default=[], metavar="ID")
    parser.add_argument(
        "--stack-switching", choices=("none", "present", "unknown"), default="unknown"
    )
    parser.add_argument(
        "--accept-layout",
        action="append",
        default=[],
        metavar="TYPE",
        help="the layout of this structure may change: it is never shared by old and new code",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _matching(arguments: argparse.Namespace, say: Say) -> int:
    neighbours = Neighbours(
        tuple(arguments.neighbour), tuple(map(Path, arguments.patch)), tuple(arguments.options)
    )
    rows = matching_survey(arguments.package, arguments.old, arguments.binary, neighbours, say)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        print(text_table([HEAD, *map(cells, rows)], left=3))
    return 1 if any(row.functions.wrong or row.data.wrong for row in rows) else 0


def _description(arguments: argparse.Namespace) -> Description:
    identity = arguments.id or arguments.output.resolve().name
    cves: list[dict[str, Any]] = []
    for word in arguments.cve or _cves_of(arguments.patch):
        name, _, severity = word.partition("=")
        cves.append({"id": name, "severity": severity or "medium", "references": []})
    return Description(
        id=identity,
        summary=arguments.summary
        or f"{identity}: {', '.join(p.name for p in arguments.patch) or arguments.new}",
        cves=tuple(cves),
        released=arguments.released,
        policy=arguments.policy,
        requires=tuple(arguments.requires),
        stack_switching=arguments.stack_switching,
    )


def _cves_of(patches: Sequence[Path]) -> list[str]:
    """CVE numbers in the names of the patch files."""
    return sorted({m for p in patches for m in re.findall(r"CVE-\d{4}-\d{4,}", p.name)})


def _debian(arguments: argparse.Namespace, say: Say) -> int:
    expected: tuple[str, ...] = ()
    if arguments.recipe is not None:
        recipe = read_recipe(arguments.recipe)
        description, expected = recipe.description, recipe.functions
        package, version = recipe.package, recipe.version
        binary, suite = arguments.binary or recipe.binary, arguments.suite or recipe.suite
        change = Change((recipe.patch,), recipe.base_patches, accept_layout=recipe.accept_layout)
    else:
        if not (arguments.package and arguments.old and arguments.patch):
            raise Refusal("usage", "debian: PACKAGE, --old and --patch, or --recipe, are needed")
        description = _description(arguments)
        package, version = arguments.package, arguments.old
        binary, suite = arguments.binary, arguments.suite
        change = Change(
            tuple(arguments.patch),
            tuple(arguments.base_patch),
            accept_layout=tuple(arguments.accept_layout),
        )
    result = build_debian(package, version, binary, change, suite, say, arguments.method)
    check_expected(result.patch, expected)
    _write(arguments, description, change, result)
    _report(arguments, description, result, say)
    return 0


def _tree(arguments: argparse.Namespace, say: Say) -> int:
    if bool(arguments.patch) == bool(arguments.new):
        raise Refusal("usage", "tree: either --patch or --new is needed")
    change = Change(
        tuple(arguments.patch),
        tuple(arguments.base_patch),
        arguments.new,
        tuple(arguments.accept_layout),
    )
    result = build_plain(
        arguments.old,
        arguments.build,
        arguments.binary,
        change,
        arguments.built,
        say,
        arguments.method,
    )
    description = _description(arguments)
    _write(arguments, description, change, result)
    _report(arguments, description, result, say)
    return 0


def _write(
    arguments: argparse.Namespace, description: Description, change: Change, result: BuildResult
) -> None:
    image = result.image
    assert image.build_id is not None  # assemble() refuses such an object
    if result.stock is not None:
        package, version = result.stock.package.package, result.stock.package.version
    else:
        package, version = arguments.package or image.name, arguments.package_version
    target = Target(image.soname or image.name, (image.build_id,), package, (version,))
    released = description.released or release_day(change.patches)
    described = Description(**{**description.__dict__, "released": released})
    write_bundle(arguments.output, manifest(described, target, result.patch.elf), result.patch.elf)
    if arguments.key is not None:
        sign(arguments.output, arguments.key)


def _report(
    arguments: argparse.Namespace, description: Description, result: BuildResult, say: Say
) -> None:
    facts = {
        "id": description.id,
        "object": result.image.soname or result.image.name,
        "build_id": result.image.build_id,
        "functions": list(result.patch.functions),
        "added": list(result.patch.added),
        "size": len(result.patch.elf),
        "sections": {s.name: s.verdict for s in result.identity.sections},
        "bundle": str(arguments.output),
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        say(f"replaces {', '.join(result.patch.functions)}")
        print(f"{arguments.output}: {len(result.patch.elf)} bytes")


class Say:
    """One line per step on standard error, with the seconds since the start."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        if not self._quiet:
            seconds = time.monotonic() - self._start
            print(f"[{seconds:6.1f}] {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    say = Say(arguments.quiet)
    try:
        if arguments.verb == "debian":
            return _debian(arguments, say)
        if arguments.verb == "tree":
            return _tree(arguments, say)
        if arguments.verb == "survey":
            surveys = [survey(ObjectFile.load(path)) for path in arguments.elf]
            print(
                json.dumps([s.__dict__ for s in surveys], indent=2)
                if arguments.json
                else table(surveys)
            )
            return 0
        if arguments.verb == "matching":
            return _matching(arguments, say)
        for bundle in arguments.bundle:
            print(sign(bundle, arguments.key))
        return 0
    except Refusal as error:
        print(f"wfpatch-build: {error}", file=sys.stderr)
        return 2 if error.reason == "usage" else 1
    except OSError as error:
        print(f"wfpatch-build: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
