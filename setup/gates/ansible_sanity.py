# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-test sanity on the collection's own half, with nothing ignored.

ansible-test passes when it finds nothing to test; what each of its tests did is read from what it
prints.
"""

from __future__ import annotations

import re

from .gate import Gate, Outcome, Tree

#: What of the checkout ansible-test's rules are made for: what controller and hosts load.
DIRECTORIES = (
    "plugins",
    "roles",
    "playbooks",
    "meta",
    "changelogs",
    "extensions",
    "tests/unit",
    "tests/integration",
)
#: Tests for kinds of files that a collection need not have: PowerShell, shell, empty packages.
MAY_BE_EMPTY = {"pslint", "shellcheck", "empty-init"}
HEADING = re.compile(r'Running sanity test "([^"]+)"')


def check(tree: Tree) -> Outcome:
    problems = [
        f"{file}: sanity tests are mended, not ignored"
        for file in tree.below("tests/sanity")
        if file.name.startswith("ignore") and (tree.top / file).read_text().strip()
    ]
    places = [f"{place}/" for place in DIRECTORIES if tree.below(place)]
    if "plugins/" not in places:
        return Outcome(0, ("plugins: no plugin there",))
    listed = tree.run("setup/ansible_test", "sanity", "--list-tests").stdout.split("\n")
    known = {line for line in listed if re.fullmatch(r"[a-z0-9-]+", line)}
    done = tree.run(
        "setup/ansible_test", "sanity", "-v", "--local", "--requirements", "--python", "3.11",
        "--color", "no", *places,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    ran: set[str] = set()
    current = ""
    for line in lines:
        heading = HEADING.match(line)
        if heading:
            current = heading[1]
            ran.add(current)
        elif "No tests applicable" in line or "Skipping sanity test" in line:
            skipped = re.search(r'Skipping sanity test "([^"]+)"', line)
            ran.discard(skipped[1] if skipped else current)
    missing = known - ran - MAY_BE_EMPTY
    if done.returncode:
        found = [line for line in lines if line.startswith(("ERROR: ", "FATAL: "))]
        problems += found or lines[-20:]
    else:
        problems += [f"the sanity test {name} checked nothing" for name in sorted(missing)]
    return Outcome(len(ran), tuple(problems))


GATE = Gate("ansible-sanity", "sanity tests", check)
