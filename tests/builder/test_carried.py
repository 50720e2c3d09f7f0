# SPDX-License-Identifier: GPL-3.0-or-later
"""What a patch ELF carries is what the linker would have made of the changed source."""

from __future__ import annotations

import os
import subprocess

import pytest
from linked_oracle import Linked, Patch, same_code
from wfpatch.patch_elf import read_patch

NOINLINE = "__attribute__((noinline)) "
TWO_MAIN = "int one(int), two(int);\nint main(int c, char **v) { return one(c) + two(c); }\n"
HEAD = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <errno.h>\n"
OLD = """
struct item { long a; unsigned char b[24]; double c; };
int counter = 5;
static struct item items[4];
static const char *const words[] = {"zero", "one", "two"};
extern int table_user(int);
static NOINLINE int local(int x) { counter += x; return x * 7; }
static int (*handlers[3])(int);
int vary(int n) { return n; }
int table_user(int x) { return (int)strlen(words[x % 3]); }
int use(int x)
{
    handlers[x % 3] = local;
    return local(x) + table_user(x);
}
int stays(int x) { return use(x) + vary(x); }
"""
NEW = """
struct item { long a; unsigned char b[24]; double c; };
int counter = 5;
static struct item items[4];
static const char *const words[] = {"zero", "one", "two"};
extern int table_user(int);
static NOINLINE int local(int x) { counter += x; return x * 7; }
static int (*handlers[3])(int);
int vary(int n)
{
    switch (n) {
    case 0: return puts("new zero");
    case 1: return local(n) + use(n);
    case 2: memset(items, 1, sizeof(items)); return items[1].b[3];
    case 3: items[2].a = 1234567; return 3;
    case 4: *(volatile unsigned short *)&items[3].b[5] = 0x1234; return 4;
    case 5: return items[0].c > 2.75 ? (int)(items[0].c * 1e9) : fprintf(stderr, "%s", words[1]);
    case 6: if (__builtin_expect(n == (int)items[1].a, 0)) abort(); return errno;
    case 7: return handlers[n % 3](n);
    case 8: { static int calls; static int limit = 40; return ++calls > limit; }
    case 9: counter = 0x11223344; return (int)strtol(words[2] + 1, 0, 10);
    case 10: return fresh(n) + vary(n - 1);
    }
    return (int)(long)&stays + (int)(long)vary;
}
int table_user(int x) { return (int)strlen(words[x % 3]); }
int use(int x)
{
    handlers[x % 3] = local;
    return local(x) + table_user(x);
}
int stays(int x) { return use(x) + vary(x); }
"""
FRESH = """
int use(int x), stays(int x);
static const unsigned short odd[5] = {1, 30, 500, 7000, 9};
static NOINLINE int fresh(int x) { return odd[x % 5] + (int)sizeof("text"); }
"""
MAIN = "int stays(int);\nint main(int c, char **v) { return stays(c); }\n"


def source(text: str) -> dict[str, str]:
    text = text + "void *where(void) { return items; }\n"
    return {"code.c": (HEAD + text).replace("NOINLINE ", NOINLINE), "main.c": MAIN}


def linked(tree, files) -> Linked:
    """The changed source, built like the stock binary."""
    place = tree.place / "linked"
    place.mkdir()
    for name, text in {**tree.files, **files}.items():
        (place / name).write_text(text)
    subprocess.run(["sh", "-c", tree.command], cwd=place, check=True)
    return Linked(place / tree.stock.name)


@pytest.mark.parametrize(
    "flags", ["-O2", "-O1", "-O3", "-Os", "-O0", "-O2 -fno-plt", "-O2 -fcf-protection"]
)
def test_new_code_leads_where_the_linker_would_lead_it(source_tree, flags):
    new = source(FRESH + NEW)
    tree = source_tree(source("int use(int x), stays(int x);\n" + OLD), flags=flags)
    result = tree.build(new)
    patch, oracle = Patch(result.patch.elf), linked(tree, new)
    operands = 0
    for symbol in patch.symbols:
        if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF":
            operands += same_code(patch, oracle, symbol.name)
    assert operands >= 20
    assert "vary" in result.patch.functions
    read_patch(result.patch.elf)


def test_a_shared_library_goes_through_its_own_slots(source_tree):
    old = (
        "int shared = 3;\nint helper(int x) { return x + shared; }\n"
        "static int hidden(int x) { return -x; }\n"
        "int entry(int x) { return helper(x) + hidden(x); }\n"
    )
    new = old.replace("helper(x) + hidden", "helper(x + 1) * shared + hidden")
    tree = source_tree(
        {"lib.c": old}, flags="-O2 -fPIC", link="-shared -Wl,-soname,libx.so.1", name="libx.so.1"
    )
    result = tree.build({"lib.c": new})
    patch = read_patch(result.patch.elf)
    assert (patch.object.kind, patch.object.soname) == ("shared_library", "libx.so.1")
    by_name = {s.name: s.owner for s in patch.symbols if s.owner}
    assert type(by_name["helper"]).__name__ == "ImportedSymbol"
    assert len(by_name["helper"].got) == 1
    assert by_name["helper"].got == tuple(result.image.got_slots["helper"])


def test_unwind_tables_describe_all_new_code(source_tree):
    tree = source_tree(source("int use(int x), stays(int x);\n" + OLD))
    result = tree.build(source(FRESH + NEW))
    path = tree.place / "patch.elf"
    path.write_bytes(result.patch.elf)
    printed = subprocess.run(
        ["readelf", "--debug-dump=frames", path], check=True, capture_output=True, text=True
    )
    assert printed.stderr == ""
    patch = Patch(result.patch.elf)
    code = [s for s in patch.sections if s["sh_flags"] & 4]
    assert printed.stdout.count(" FDE ") == len(code)
    frames = next(s for s in patch.sections if s.name == ".rela.eh_frame")
    described = {patch.symbols[r["r_info_sym"]].name for r in frames.iter_relocations()}
    assert {"vary", "fresh"} <= {name.partition(".")[0] for name in described}


def test_the_same_input_gives_the_same_bytes(source_tree):
    tree = source_tree(source("int use(int x), stays(int x);\n" + OLD))
    first = tree.build(source(FRESH + NEW)).patch.elf
    os.environ["PYTHONHASHSEED"] = "7"
    assert tree.build(source(FRESH + NEW)).patch.elf == first


def test_readelf_finds_nothing_wrong(source_tree):
    tree = source_tree(source("int use(int x), stays(int x);\n" + OLD))
    path = tree.place / "patch.elf"
    path.write_bytes(tree.build(source(FRESH + NEW)).patch.elf)
    printed = subprocess.run(["readelf", "-aW", path], check=True, capture_output=True, text=True)
    assert "Warning" not in printed.stderr + printed.stdout
    assert "Error" not in printed.stderr


def test_two_static_functions_of_one_name_are_told_apart(source_tree):
    one = "static NOINLINE int same(int x) { return x * 3; }\nint one(int x) { return same(x); }\n"
    two = "static NOINLINE int same(int x) { return x * 5; }\nint two(int x) { return same(x); }\n"
    files = {
        "one.c": one.replace("NOINLINE ", NOINLINE),
        "two.c": two.replace("NOINLINE ", NOINLINE),
        "main.c": TWO_MAIN,
    }
    tree = source_tree(files)
    new = {n: files[n].replace("return same(x)", "return same(x) + 1") for n in ("one.c", "two.c")}
    result = tree.build(new)
    owners = [
        s.owner for s in read_patch(result.patch.elf).symbols if s.owner and s.owner.name == "same"
    ]
    assert sorted(o.file for o in owners) == ["one.c", "two.c"]
    assert len({o.address for o in owners}) == 2
