# SPDX-License-Identifier: GPL-3.0-or-later
"""The compiler log, and which calls it says made a binary's objects."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import wfpatch_build
from wfpatch_build.build_tree import BuildTree
from wfpatch_build.compile_log import CompilerCall, read_log
from wfpatch_build.errors import Refusal
from wfpatch_build.linked_objects import units_of, unstripped_binary
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.sandbox import Sandbox


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A directory with stand-ins for gcc and cc, and the log that they write."""
    home = tmp_path_factory.mktemp("home")
    for name in ("bin", "real", "log"):
        (home / name).mkdir()
    source = Path(wfpatch_build.__file__).with_name("compiler_log.c")
    program = home / "bin" / "gcc"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", f'-DHOME="{home}"', "-o", program, source]
    subprocess.run(command, check=True)
    (home / "bin" / "cc").write_bytes(program.read_bytes())
    (home / "bin" / "cc").chmod(0o755)
    for name in ("gcc", "cc"):
        (home / "real" / name).symlink_to(Path(f"/usr/bin/{name}").resolve())
    return home


@pytest.fixture
def logged(stand_in, tmp_path):
    """logged(command, files) -> BuildTree of what the shell command built in a directory."""

    def run(command: str, files: dict[str, str]) -> BuildTree:
        log = stand_in / "log" / "compile.log"
        log.unlink(missing_ok=True)
        tree = tmp_path / "tree"
        for name, text in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        path = f"{stand_in / 'bin'}:/usr/bin:/bin"
        subprocess.run(["sh", "-c", command], cwd=tree, env={"PATH": path}, check=True)
        kept = tmp_path / "compile.log"
        kept.write_bytes(log.read_bytes())
        return BuildTree(tree, str(tree), Sandbox(), kept)

    return run


def test_arguments_are_logged_as_they_were_given(logged):
    build = logged(
        "gcc -DTEXT='\"a b\"' '-DEMPTY=' -O1 -c a.c -o a.o && cd sub && cc -c ../a.c -o b.o",
        {"a.c": "int a;\n", "sub/.keep": ""},
    )
    first, second = build.calls
    assert first.arguments == ('-DTEXT="a b"', "-DEMPTY=", "-O1", "-c", "a.c", "-o", "a.o")
    assert (first.driver, second.driver) == ("gcc", "cc")
    assert second.directory == f"{build.path}/sub"
    assert second.output == f"{build.path}/sub/b.o"


def test_the_output_is_that_of_the_real_compiler(logged):
    build = logged("gcc -g -O2 -c a.c -o a.o", {"a.c": "int f(int x) { return x * 3; }\n"})
    subprocess.run(
        ["/usr/bin/gcc", "-g", "-O2", "-c", "a.c", "-o", "b.o"], cwd=build.tree, check=True
    )
    assert (build.tree / "a.o").read_bytes() == (build.tree / "b.o").read_bytes()


def test_the_compilers_exit_code_is_passed_on(logged):
    with pytest.raises(subprocess.CalledProcessError):
        logged("gcc -c a.c", {"a.c": "no C at all\n"})


def test_response_files_are_read(logged):
    build = logged("gcc @flags -c a.c -o a.o", {"a.c": "int a;\n", "flags": "-O3\n-DNAME='x y'\n"})
    assert build.calls[0].arguments[:2] == ("-O3", "-DNAME=x y")


def call(*arguments: str) -> CompilerCall:
    return CompilerCall("/build", "gcc", arguments)


def test_a_recompile_keeps_what_matters_and_drops_the_rest():
    original = call(
        *("-O2", "-MD", "-MF", "a.d", "-MT", "a.o", "-I", "inc", "-D", "X=1", "-include", "c.h"),
        *("-Wl,-z,now", "-lm", "-L", "lib", "-c", "a.c", "b.c", "-oa.o", "-pthread"),
    )
    assert original.recompile("a.c", "/out/x.o", ["-g"]) == (
        ["-O2", "-I", "inc", "-D", "X=1", "-include", "c.h", "a.c", "-pthread"]
        + ["-g", "-c", "-o", "/out/x.o"]
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-flto", "-c", "a.c"), True),
        (("-flto=auto", "-c", "a.c"), True),
        (("-flto", "-fno-lto", "-c", "a.c"), False),
        (("-fno-lto", "-flto", "-c", "a.c"), True),
        (("-flto-partition=none", "-c", "a.c"), False),
        (("-c", "a.c"), False),
    ],
)
def test_link_time_optimisation_is_what_the_last_option_says(arguments, expected):
    assert call(*arguments).uses_lto() is expected


def test_options_are_not_taken_for_files():
    found = call("-o", "prog", "-x", "c", "-I", "dir.c", "main.c", "-Xlinker", "script.c", "lib.a")
    assert found.sources == ("main.c",)
    assert found.inputs == ("main.c", "lib.a")
    assert found.links
    assert not call("-E", "a.c", "-o", "a.i").compiles


def test_a_damaged_log_is_refused(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"3 4\nabc\0")
    with pytest.raises(Refusal) as caught:
        read_log(log, lambda _: None)
    assert caught.value.reason == "build_failed"


FILES = {
    "a.c": "int a(int x) { return x + 1; }\n",
    "lib/b.c": "int b(int x) { return x + 2; }\n",
    "lib/c.c": "int c(int x) { return x + 3; }\n",
    "other/b.c": "int other(int x) { return x + 4; }\n",
    "main.c": "int a(int), b(int);\nint main(int n, char **v) { return a(n) + b(n); }\n",
}
OBJECTS = (
    "gcc -c a.c -o a.o && gcc -c main.c -o main.o && (cd lib && gcc -c b.c -o b.o && "
    "gcc -c c.c -o c.o) && (cd other && gcc -c b.c -o b.o)"
)


LINK = "gcc -Wl,--build-id -o prog main.o a.o"


@pytest.mark.parametrize(
    "command",
    [
        f"{OBJECTS} && {LINK} lib/b.o",
        f"{OBJECTS} && ar rc lib/libb.a lib/b.o && {LINK} lib/libb.a",
        f"{OBJECTS} && ar rcT lib/libb.a lib/b.o && {LINK} lib/libb.a",
        f"{OBJECTS} && ar rc lib/libb.a lib/b.o && {LINK} -Llib -lb",
        "gcc -Wl,--build-id main.c a.c lib/b.c -o prog",
        f"{OBJECTS} && gcc -Wl,--build-id main.o a.o lib/b.o -o progT && cp progT prog",
        f"{OBJECTS} && echo main.o a.o > list && gcc -Wl,--build-id @list lib/b.o -o prog",
    ],
    ids=["objects", "archive", "thin archive", "library", "at once", "copied", "response file"],
)
def test_the_objects_of_a_binary_are_found(logged, command):
    build = logged(command, FILES)
    image = ObjectFile.load(build.tree / "prog")
    binary = unstripped_binary(build, image.build_id or "")
    units = units_of(build, binary)
    found = sorted(u.source_path.removeprefix(build.path + "/") for u in units)
    assert found == ["a.c", "lib/b.c", "main.c"]


def test_a_long_member_name_in_an_archive(logged):
    name = "a_file_with_a_name_longer_than_sixteen_characters"
    build = logged(
        f"gcc -c {name}.c -o {name}.o && gcc -c main.c -o main.o && ar rc liblong.a {name}.o && "
        "gcc -Wl,--build-id main.o liblong.a -o prog",
        {
            f"{name}.c": FILES["a.c"],
            "main.c": "int a(int);\nint main(int n, char **v) {return a(n);}",
        },
    )
    units = units_of(build, build.tree / "prog")
    assert sorted(u.source for u in units) == [f"{name}.c", "main.c"]


def test_a_binary_that_nobody_linked(logged):
    build = logged("gcc -c a.c -o a.o", FILES)
    with pytest.raises(Refusal) as caught:
        units_of(build, build.tree / "prog")
    assert caught.value.reason == "compile_command_unknown"
    with pytest.raises(Refusal) as caught:
        unstripped_binary(build, "00" * 20)
    assert caught.value.reason == "stock_mismatch"
