# SPDX-License-Identifier: GPL-3.0-or-later
"""Each gate fails on a planted fault, and on nothing to check.

A gate that has not been seen to fail is not trusted. The faults go into a copy of the tracked
files; that the tree as it is passes is what ``make lint`` itself shows.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "setup"))

from gates.words import registry_hosts  # noqa: E402

HEAD = "# SPDX-License-Identifier: GPL-3.0-or-later\n"
C_HEAD = "// SPDX-License-Identifier: GPL-3.0-or-later\n"


@dataclass(frozen=True)
class Fault:
    """A file that should not pass: its gate, its name, what it holds, and what the gate says of it.

    ``append``: the text goes to the end of a file that is there.
    """

    gate: str
    path: str
    text: str
    says: str
    append: bool = False


MODULE = HEAD + '"""A planted module."""\n\nfrom __future__ import annotations\n'

FAULTS = {
    "no licence line": Fault("licence-lines", "docs/planted.md", "words\n", "no SPDX line"),
    "unfinished work": Fault(
        "words", "docs/planted.md", "<!-- " + "TO" + "DO: later -->\n", "has no place here"
    ),
    "a path of the machine": Fault(
        "words", "tests/planted.py", HEAD + 'P = "/wo' + 'rk/main"\n', "has no place here"
    ),
    "a code that is not listed": Fault(
        "reason-codes", "docs/reasons.md", "| `planted` | a code nobody raises |\n", "planted", True
    ),
    "an unquoted variable": Fault(
        "shell-scripts", "setup/planted", "#!/bin/bash\n" + HEAD + "rm -rf $1/x\n", "SC2086"
    ),
    "an unused import": Fault(
        "python-rules", "builder/wfpatch_build/planted.py", MODULE + "\nimport json\n", "F401"
    ),
    "a newer Python's syntax": Fault(
        "python-rules",
        "applier/wfpatch/planted.py",
        MODULE + "\n\ndef f(x: int) -> int:\n    match x:\n        case _:\n            return 1\n",
        "Python 3.9",
    ),
    "a line that is laid out otherwise": Fault(
        "python-format",
        "builder/wfpatch_build/planted.py",
        MODULE + "\nx = {  'a':1 }\n",
        "planted",
    ),
    "a function without types": Fault(
        "python-types",
        "builder/wfpatch_build/planted.py",
        MODULE + "\n\ndef f(x):\n    return x\n",
        "[no-untyped-def]",
    ),
    "a wrong type": Fault(
        "python-types",
        "applier/wfpatch/planted.py",
        MODULE + '\nx: int = "one"\n',
        "[assignment]",
    ),
    "a name that Python 3.9 lacks": Fault(
        "python-floor",
        "applier/wfpatch/planted.py",
        MODULE + "\nimport itertools\n\nPAIRS = itertools.pairwise([1, 2])\n",
        "3.10",
    ),
    "a name that Python 3.8 lacks, in a module": Fault(
        "python-floor",
        "plugins/module_utils/planted.py",
        MODULE + '\nx = "one".removeprefix("o")\n',
        "3.9",
    ),
    "a comparison of signed with unsigned": Fault(
        "c-warnings",
        "tests/engine/programs/planted.c",
        C_HEAD + "int f(int a, unsigned int b)\n{\n\treturn a < b;\n}\n",
        "sign-compare",
    ),
    "a section that the changelog lacks": Fault(
        "change-log", "changelogs/fragments/planted.yml", HEAD + "---\nplanted:\n  - x\n", "planted"
    ),
    "a reference that leads nowhere": Fault(
        "plugin-documents",
        "plugins/modules/planted.py",
        "#!/usr/bin/python\n"
        + HEAD
        + '''DOCUMENTATION = r"""
---
module: planted
short_description: A planted module
description:
  - It refers to O(nothing_of_that_name).
author:
  - Nobody (@nobody)
options: {}
"""
EXAMPLES = "# none"
RETURN = "# none"
''',
        "nothing_of_that_name",
    ),
    "a task without a name": Fault(
        "ansible-style",
        "playbooks/planted.yml",
        HEAD
        + "---\n- name: A planted play\n  hosts: all\n  tasks:\n    - ansible.builtin.shell: ls\n",
        "planted.yml",
    ),
    # The importer exits 0 with it.
    "a collection that the importer warns of": Fault(
        "collection-artifact",
        "roles/report/tasks/planted.yml",
        HEAD + "---\n- shell: ls\n",
        "WARNING: roles/report/tasks/planted.yml",
    ),
    "an archive that is too large": Fault(
        "collection-artifact",
        "docs/planted.svg",
        random.Random(1).randbytes(3 << 20).hex(),
        "the limit is 3145728",
    ),
    "a module whose documents and arguments differ": Fault(
        "ansible-sanity",
        "plugins/modules/planted.py",
        "#!/usr/bin/python\n"
        + HEAD
        + """\"\"\"Planted.\"\"\"
from __future__ import annotations
from ansible.module_utils.basic import AnsibleModule
print("one")
AnsibleModule(argument_spec={"x": {"type": "int"}})
""",
        "plugins/modules/planted.py",
    ),
}

#: What a gate looks at: without it there is nothing to check.
EMPTIED = {
    "reason-codes": ["applier"],
    "shell-scripts": [
        *("setup", ".ci", "tests", "demo", "benchmarks", "catalogue", "roles", "builder"),
        "kmod",
    ],
    "python-types": ["builder"],
    "python-floor": ["plugins"],
    "c-warnings": ["tests", "builder", "catalogue", "benchmarks", "demo", "kmod"],
    "change-log": ["changelogs"],
    "collection-artifact": ["plugins", "roles"],
    "plugin-documents": ["plugins", "roles"],
    "ansible-style": ["playbooks", "roles"],
    "ansible-sanity": ["plugins"],
}


@pytest.fixture
def tree(tmp_path):
    """A copy of the tracked files, a checkout of its own."""
    top = tmp_path / "tree"
    done = subprocess.run(
        ["git", "-C", str(TOP), "ls-files", "-z"], check=True, capture_output=True, text=True
    )
    for name in done.stdout.split("\0"):
        if name and (TOP / name).is_file():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, top / name, follow_symlinks=False)
    track(top)
    return top


def track(top: Path) -> None:
    for words in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", "-C", str(top), *words], check=True, capture_output=True)


def lint(top: Path, gate: str) -> subprocess.CompletedProcess[str]:
    """This checkout's gates on that tree."""
    return subprocess.run(
        [sys.executable, str(TOP / "setup" / "lint"), "--tree", str(top), gate],
        capture_output=True,
        text=True,
        timeout=580,
    )


def failed(done: subprocess.CompletedProcess[str], gate: str) -> bool:
    return done.returncode == 1 and done.stdout.startswith(f"{gate:18} FAILED")


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_seen(tree, name):
    fault = FAULTS[name]
    path = tree / fault.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if fault.append else "w") as stream:
        stream.write(fault.text)
    track(tree)
    done = lint(tree, fault.gate)
    assert failed(done, fault.gate), done.stdout + done.stderr
    lines = done.stdout.splitlines()[1:-1]
    assert any(fault.says in line for line in lines), done.stdout
    # It is the planted file that the gate complains of.
    assert "planted" in done.stdout


def test_registry_host_is_seen(tree):
    hosts = registry_hosts()
    assert len(hosts) >= 3
    for number, host in enumerate(hosts):
        (tree / "docs" / f"planted{number}.md").write_text(f"from {host}/x\n")
    track(tree)
    done = lint(tree, "words")
    assert failed(done, "words"), done.stdout
    for number in range(len(hosts)):
        assert f"docs/planted{number}.md:1" in done.stdout


@pytest.mark.parametrize("gate", EMPTIED)
def test_nothing_to_check_is_a_failure(tree, gate):
    for directory in EMPTIED[gate]:
        shutil.rmtree(tree / directory, ignore_errors=True)
        if directory == "setup":  # the tools stay, without their scripts
            shutil.copytree(TOP / "setup" / "gates", tree / "setup" / "gates")
    track(tree)
    done = lint(tree, gate)
    assert failed(done, gate), done.stdout + done.stderr


@pytest.mark.parametrize("gate", ["licence-lines", "words", "python-rules", "python-format"])
def test_an_empty_tree_is_a_failure(tmp_path, gate):
    track(tmp_path)
    done = lint(tmp_path, gate)
    assert failed(done, gate), done.stdout + done.stderr


def test_an_ignore_file_is_seen(tree):
    ignore = tree / "tests" / "sanity" / "ignore-2.19.txt"
    ignore.parent.mkdir(parents=True, exist_ok=True)
    ignore.write_text("plugins/modules/bundle.py validate-modules:missing-gplv3-license\n")
    track(tree)
    done = lint(tree, "ansible-sanity")
    assert failed(done, "ansible-sanity"), done.stdout
    assert "mended, not ignored" in done.stdout


def test_every_gate_has_a_fault():
    done = subprocess.run(
        [sys.executable, str(TOP / "setup" / "lint"), "--list"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == {fault.gate for fault in FAULTS.values()}


@pytest.fixture
def suites(tmp_path):
    """suites(target, ...) -> what setup/suites did with a Makefile of good and bad targets."""
    (tmp_path / "setup").mkdir()
    shutil.copy(TOP / "setup" / "suites", tmp_path / "setup" / "suites")
    (tmp_path / "Makefile").write_text(
        "test-good:\n\t@echo '=== 3 passed in 1 s ==='\n"
        "test-bad:\n\t@echo '=== 1 failed, 2 passed in 1 s ==='; false\n"
        "test-none:\n\t@echo 'no tests ran'\n"
        "test-zero:\n\t@echo 'gates: 0 passed, 0 failed'\n"
        "test-long:\n\t@sleep 60; echo '1 passed'\n"
        "demo:\n\t@true\n"
    )

    def run(*targets):
        return subprocess.run(
            [str(tmp_path / "setup" / "suites"), *targets],
            capture_output=True,
            text=True,
            timeout=50,
        )

    return run


def test_suites_pass_what_passes(suites):
    done = suites("test-good", "demo")
    assert done.returncode == 0
    assert done.stdout.endswith("suites: 2 passed, 0 failed\n")
    # The runner's own line stands once where it came and once at the end.
    assert done.stdout.count("=== 3 passed in 1 s ===") == 2


@pytest.mark.parametrize("fault", ["test-bad", "test-none", "test-zero", "test-long:1", "nosuch"])
def test_suites_fail_on_one_fault_and_run_the_rest(suites, fault):
    done = suites(fault, "test-good")
    assert done.returncode == 1
    assert done.stdout.endswith("suites: 1 passed, 1 failed\n")
    assert "== make test-good" in done.stdout


def test_suites_without_a_target_is_a_usage_error(suites):
    assert suites().returncode == 2
