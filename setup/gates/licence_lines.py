# SPDX-License-Identifier: GPL-3.0-or-later
"""Every tracked file says under which licence it stands.

In its first lines, or, where a format has no place for it or the file is another's, in a file of
the same name with ``.license`` appended (the REUSE specification's way).
"""

from __future__ import annotations

import pathlib

from .gate import Gate, Outcome, Tree

#: How far into a file the line may stand: behind an interpreter line, in a schema's ``$comment``.
HEAD_BYTES = 2048
MARK = b"SPDX-License-" + b"Identifier: "


def is_licence_text(file: pathlib.Path) -> bool:
    """The licences themselves."""
    return file.parts[0] == "LICENSES" or file == pathlib.Path("COPYING")


def has_line(path: pathlib.Path) -> bool:
    with path.open("rb") as stream:
        return MARK in stream.read(HEAD_BYTES)


def check(tree: Tree) -> Outcome:
    files = [f for f in tree.files if not is_licence_text(f) and (tree.top / f).stat().st_size]
    tracked = set(tree.files)
    problems = []
    for file in files:
        beside = file.with_name(file.name + ".license")
        if not has_line(tree.top / file) and not (
            beside in tracked and has_line(tree.top / beside)
        ):
            problems.append(f"{file}: no SPDX line in it, nor in {beside.name}")
    return Outcome(len(files), tuple(problems))


GATE = Gate("licence-lines", "files", check)
