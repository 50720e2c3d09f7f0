# SPDX-License-Identifier: GPL-3.0-or-later
"""Run-pre matching on small programs: all of the same source is located, nothing of another source
is located wrongly."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from matching_program import FILES, SOURCES
from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.definitions import Definition
from wfpatch_build.matching import Matching, match
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.pairing import group_name

BASE = "-O2 -fPIE"


def stock(place: Path, files: Mapping[str, str] = FILES, flags: str = BASE, link: str = "-pie"):
    """(stripped image, its unstripped twin) of the program."""
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    sources = [name for name in SOURCES if name in files]
    command = f"gcc {flags} {link} -Wl,--build-id,-z,now {' '.join(sources)} -o program"
    subprocess.run(["sh", "-c", command], cwd=place, check=True)
    subprocess.run(["strip", "-o", "stripped", "program"], cwd=place, check=True)
    stripped = ObjectFile.load(place / "stripped")
    assert stripped.symtab == ()
    return stripped, ObjectFile.load(place / "program")


def compiled(place: Path, files: Mapping[str, str] = FILES, flags: str = BASE):
    """The objects that the builder would compile of the program's sources, in link order."""
    place.mkdir()
    for name, text in files.items():
        (place / name).write_text(text)
    objects = []
    for source in SOURCES:
        if source in files:
            command = f"gcc {flags} -ffunction-sections -fdata-sections -g -c {source}"
            subprocess.run(["sh", "-c", command], cwd=place, check=True)
            objects.append(CompiledObject.load(place / source.replace(".c", ".o")))
    return objects


def truth(unstripped: ObjectFile) -> dict[int, set[tuple[str | None, str]]]:
    """Address -> (file of a local or None, name without compiler-made numbers)."""
    found: dict[int, set[tuple[str | None, str]]] = {}
    for symbol in unstripped.symtab:
        if symbol.section is not None and symbol.name:
            address = symbol.address
            if symbol.type == "STT_TLS":
                address = unstripped.thread_pointer_offset(address)
            found.setdefault(address, set()).add((symbol.file, group_name(symbol.name)))
    return found


def names(matching: Matching, definition: Definition) -> set[tuple[str | None, str]]:
    file = matching.definitions.units[definition.unit].obj.source_file
    return {(file if s.is_local else None, group_name(s.name)) for s in definition.symbols}


def wrong(matching: Matching, unstripped: ObjectFile) -> list[str]:
    """Names of what is located where something else is."""
    known = truth(unstripped)
    located = {**matching.functions, **matching.data}
    return [
        d.name
        for d, address in located.items()
        if not names(matching, d) & known.get(address, set())
    ]


def located_names(matching: Matching) -> set[str]:
    return {d.name for d in (*matching.functions, *matching.data)}


@pytest.mark.parametrize(
    ("flags", "link"),
    [
        ("-O2 -fPIE", "-pie"),
        ("-O1 -fPIE", "-pie"),
        ("-O3 -fPIE", "-pie"),
        ("-Os -fPIE", "-pie"),
        ("-O2 -fPIE -fno-plt", "-pie"),
        ("-O2 -fPIE -fcf-protection", "-pie"),
        ("-O2 -fPIE -fstack-protector-all", "-pie -rdynamic"),
        ("-O2 -fPIC", "-shared"),
        ("-O2 -fPIC -fvisibility=hidden", "-shared"),
    ],
)
def test_all_of_the_same_source_is_located(tmp_path, flags, link):
    image, unstripped = stock(tmp_path / "stock", flags=flags, link=link)
    matching = match(image, compiled(tmp_path / "objects", flags=flags))
    assert wrong(matching, unstripped) == []
    assert {d.name: why for d, why in matching.unresolved.items() if d.is_function} == {}
    missing = {d.name: why for d, why in matching.unresolved.items()}
    if "-shared" not in link:  # a library asks for the address of its thread-local data at run time
        assert missing == {}
    assert set(missing) <= {"depth"}


def test_each_kind_of_evidence_is_used(tmp_path):
    image, _ = stock(tmp_path / "stock", link="-pie -rdynamic")
    matching = match(image, compiled(tmp_path / "objects"))
    evidence = {(d.unit, d.name): why for d, why in matching.evidence.items()}
    assert evidence[0, "store"] == "exported"
    assert evidence[0, "note"] == "reference"
    assert evidence[1, "one"] == "reference"  # from a table of function pointers
    without = match(image, compiled(tmp_path / "again"), use_exports=False)
    assert "body" in without.evidence.values()
    assert "exported" not in without.evidence.values()
    assert sorted(without.functions.values()) == sorted(matching.functions.values())


def changed(name: str, old: str, new: str, count: int = -1) -> dict[str, str]:
    assert old in FILES[name]
    return {**FILES, name: FILES[name].replace(old, new, count)}


@pytest.mark.parametrize(
    ("files", "gone"),
    [
        pytest.param(changed("load.c", "x + 2", "x + 20"), {"two"}, id="a constant"),
        pytest.param(changed("load.c", "visit zero", "visit nil"), {"visit"}, id="a string"),
        pytest.param(changed("work.c", "2.5 + 0.125", "2.75 + 0.125"), {"scale"}, id="a double"),
        pytest.param(
            changed(
                "load.c",
                "case 4: return getchar();\n    case 5: return x * 77 + state;",
                "case 5: return getchar();\n    case 4: return x * 77 + state;",
            ),
            {"visit"},
            id="a switch table",
        ),
        pytest.param(
            changed("load.c", "{one, two, three}", "{two, one, three}"),
            {"one", "two"},
            id="a table",
        ),
        pytest.param(changed("load.c", '"two", "three"', '"two", "tres"'), {"names"}, id="names"),
        pytest.param(changed("load.c", "state = 7", "state = 8"), {"state"}, id="initial data"),
        pytest.param(
            changed("common.h", "int kind; int count;", "int kind; long pad; int count;"),
            {"store", "load"},
            id="a structure",
        ),
    ],
)
def test_what_changed_is_unresolved_and_the_rest_is_right(tmp_path, files, gone):
    image, unstripped = stock(tmp_path / "stock")
    matching = match(image, compiled(tmp_path / "objects", files))
    assert wrong(matching, unstripped) == []
    unresolved = {d.name for d in matching.unresolved}
    assert gone <= unresolved
    assert matching.functions


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(
            changed("store.c", "return second_twin(r) + state", "return first_twin(r) + state"),
            id="a call of the twin",
        ),
        pytest.param(changed("load.c", "calls++", "state++"), id="another variable"),
        pytest.param(
            changed("work.c", "? compare : reverse", "? reverse : compare"), id="arms turned"
        ),
        pytest.param(
            changed(
                "store.c",
                "KEEP static int empty",
                "KEEP static int fresh(int x) "
                "{ return x == 5; }\nint (*keep)(int) = fresh;\nKEEP static int empty",
            ),
            id="a new function",
        ),
        pytest.param(changed("store.c", "first_twin(r) * 3", "3"), id="a function less"),
        pytest.param(
            changed("work.c", "static long total;", "static long total; long more = 3;"),
            id="a new variable",
        ),
        pytest.param(
            changed(
                "common.h",
                "KEEP static int clamp(int x) { return x < 0 ? 0 : x; }",
                "KEEP static int clamp(int x) { return x < 1 ? 1 : x; }",
            ),
            id="a header's function",
        ),
    ],
)
def test_nothing_of_another_source_is_wrong(tmp_path, files):
    image, unstripped = stock(tmp_path / "stock")
    for number, exports in enumerate((True, False)):
        objects = compiled(tmp_path / f"objects{number}", files)
        matching = match(image, objects, exports)
        assert wrong(matching, unstripped) == []
        assert len(matching.functions) >= 10


@pytest.mark.parametrize("flags", ["-O1 -fPIE", "-O3 -fPIE", "-Os -fPIE", "-O2 -fPIE -fno-inline"])
def test_nothing_compiled_with_other_flags_is_wrong(tmp_path, flags):
    image, unstripped = stock(tmp_path / "stock", link="-pie -rdynamic")
    for number, exports in enumerate((True, False)):
        matching = match(image, compiled(tmp_path / f"objects{number}", flags=flags), exports)
        assert wrong(matching, unstripped) == []


def test_a_function_that_looks_like_one_inlined_into_it_is_not_taken_for_it(tmp_path):
    """event_finalize() of libevent: with -O3 its body is that of the function it calls."""
    body = (
        "(struct record *r)\n{\n    int n = 0;\n    for (int i = 0; i < r->count; i++)"
        ' n += printf("inner %d %s\\n", i, r->name) ^ rand();\n    return n * 3 + r->kind;\n}\n'
    )
    end = "KEEP static int empty"
    calls = f"KEEP int inner{body}int outer(struct record *r) {{ return inner(r); }}\n{end}"
    kept = {**FILES, "store.c": FILES["store.c"].replace(end, calls)}
    inlined = {**FILES, "store.c": FILES["store.c"].replace(end, f"int outer{body}{end}")}
    image, unstripped = stock(tmp_path / "stock", kept)
    same = match(image, compiled(tmp_path / "same", kept))
    assert {"inner", "outer"} <= located_names(same)
    other = match(image, compiled(tmp_path / "other", inlined))
    (outer,) = (d for d in other.unresolved if d.name == "outer")
    assert "neighbours" in other.unresolved[outer]
    assert wrong(other, unstripped) == []
    assert {"load", "visit", "work"} <= located_names(other)


def test_an_exported_function_is_nowhere_else(tmp_path):
    """Two exported functions exchange their bodies."""
    text = FILES["load.c"] + 'int other(int x) { return puts("other") + 3 * clamp(x); }\n'
    turned = text.replace("other(int", "moved(int") + (
        'int other(int x) { return puts("moved") - 7 * clamp(x); }\n'
    )
    stock_text = text + 'int moved(int x) { return puts("moved") - 7 * clamp(x); }\n'
    image, unstripped = stock(
        tmp_path / "stock", {**FILES, "load.c": stock_text}, link="-pie -rdynamic"
    )
    matching = match(image, compiled(tmp_path / "objects", {**FILES, "load.c": turned}))
    assert wrong(matching, unstripped) == []
    assert not {"other", "moved"} & located_names(matching)


def test_data_of_a_grown_structure_are_not_located_beside_themselves(tmp_path):
    """All users of `shared` that are left read members behind the new one: they agree on an
    address that is wrong by its size."""
    files = changed("common.h", "int kind; int count;", "int kind; int fresh; int count;")
    image, unstripped = stock(tmp_path / "stock")
    matching = match(image, compiled(tmp_path / "objects", files))
    assert wrong(matching, unstripped) == []
    assert "shared" not in located_names(matching)
