# SPDX-License-Identifier: GPL-3.0-or-later
"""The differ is quiet about noise and complete about change, on code the real compiler makes."""

from __future__ import annotations

import re

from patch_reading import metadata, owners, sections
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.pipeline import Change
from wfpatch_build.plain_tree import build_plain

HEAD = "#include <assert.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"
NOINLINE = "__attribute__((noinline)) "
TWO_MAIN = "int one(int), two(int);\nint main(int c, char **v) { return one(c) + two(c); }\n"


def program(*parts: str, main: str = "return argc + (int)(long)argv;") -> dict[str, str]:
    """One file: the parts, then a main() that keeps everything alive."""
    body = f"int main(int argc, char **argv) {{ {main} }}\n"
    return {"main.c": HEAD + "\n".join(parts) + "\n" + body}


def stock_names(tree) -> set[str]:
    return {s.name for s in ObjectFile.load(tree.unstripped).symtab}


def test_line_numbers_of_untouched_functions_do_not_count(source_tree):
    target = "int target(int x)\n{\n    return x + 1;\n}\n"
    others = "".join(
        f"int other{n}(int x)\n{{\n    assert(x > {n});\n    return x * {n};\n}}\n"
        for n in range(1, 6)
    )
    new = target.replace("return x + 1;", "x += 2;\n    x *= 3;\n\n    return x;")
    result = source_tree(program(target, others)).build(program(new, others))
    assert result.patch.functions == ("target",)


def test_an_added_line_number_in_a_changed_function_is_its_own(source_tree):
    old = "int target(int x)\n{\n    return x;\n}\n"
    old += "int other(int x)\n{\n    assert(x);\n    return x;\n}\n"
    new = old.replace("return x;\n}\nint other", "assert(x > 2);\n    return x;\n}\nint other")
    result = source_tree(program(old)).build(program(new))
    assert result.patch.functions == ("target",)


def test_strings_count_by_content_not_by_place(source_tree):
    old = [
        'int first(void) { return puts("first"); }',
        'int second(void) { return puts("second, and longer than any other"); }',
        'int third(void) { return puts("third"); }',
    ]
    new = [old[0].replace('"first"', '"a much longer first text"'), *old[1:]]
    result = source_tree(program(*old)).build(program(*new))
    assert result.patch.functions == ("first",)
    assert b"a much longer first text\0" in result.patch.elf


def test_a_changed_string_alone_changes_its_user(source_tree):
    old = 'const char *text(void) { return "abcdefgh"; }'
    result = source_tree(program(old)).build(program(old.replace("abcdefgh", "abcdEfgh")))
    assert result.patch.functions == ("text",)


def switch(name: str, factor: int) -> str:
    cases = "".join(
        f'    case {n}: return puts("{name}{n}") + x * {n * factor + 1};\n' for n in range(12)
    )
    return f"int {name}(int x)\n{{\n    switch (x) {{\n{cases}    }}\n    return -1;\n}}\n"


def test_switch_tables_count_by_where_they_lead(source_tree):
    old = [switch("one", 1), switch("two", 1)]
    tree = source_tree(program(*old))
    # A case that is far longer moves every later entry of its own table only.
    longer = old[0].replace("case 3: ", "case 3: abort(); case 30: ")
    result = tree.build(program(longer, old[1]))
    assert result.patch.functions == ("one",)


def test_two_switch_cases_exchanged_are_a_change(source_tree):
    old = switch("one", 1)
    new = (
        old.replace("case 3:", "case 99:")
        .replace("case 4:", "case 3:")
        .replace("case 99:", "case 4:")
    )
    result = source_tree(program(old)).build(program(new))
    assert result.patch.functions == ("one",)


def test_clones_are_paired_by_what_they_do(source_tree):
    clone = (
        f"static {NOINLINE}int work(int x, const char *t, int mode)\n"
        "{\n    if (mode == 7) return puts(t) * x;\n    return (int)strlen(t) + x * 5;\n}\n"
    )
    users = [
        'int user_a(int x) { return work(x, "a", 7) + work(x + 1, "a", 7); }',
        'int user_b(int x) { return work(x, "b", 8) + work(x + 3, "b", 8); }',
    ]
    tree = source_tree(program(clone, *users), flags="-O2 -fipa-cp-clone")
    assert any(re.search(r"^work\.(constprop|isra)", name) for name in stock_names(tree))
    new = [users[0].replace("x + 1", "x + 2"), users[1]]
    result = tree.build(program(clone, *new))
    assert result.patch.functions == ("user_a",)


def test_a_new_static_local_does_not_take_the_place_of_an_old_one(source_tree):
    old = [
        "int first(int x) { return x + 1; }",
        "int second(int x) { static int count; count += x; return count; }",
        "int third(int x) { static int count = 5; count *= x; return count; }",
    ]
    new = ["int first(int x) { static int count; count -= x; return count; }", *old[1:]]
    tree = source_tree(program(*old))
    result = tree.build(program(*new))
    assert result.patch.functions == ("first",)
    changed = tree.build(program(old[0], old[1].replace("+= x", "+= 2 * x"), old[2]))
    # The count of second() starts at 0 and so lies in .bss, the one of third() does not.
    image = ObjectFile.load(tree.unstripped)
    counts = [s for s in image.symtab if s.name.startswith("count.")]
    assert len(counts) == 2
    zero = next(s for s in counts if image.section(".bss").contains(s.address))
    found = [o for o in owners(changed).values() if o["name"].startswith("count")]
    assert [o["address"] for o in found] == [zero.address]


COLD = (
    "extern int strange(int) __attribute__((cold));\n"
    'int strange(int x) { return puts("strange") + x; }\n'
    "int work(int x)\n{\n    if (__builtin_expect(x > 1000, 0)) {\n"
    "        strange(x);\n        strange(x + 1);\n        return strange(x + 2);\n    }\n"
    "    return x * 3;\n}\n"
)


def test_a_change_in_the_cold_part_alone_replaces_the_function_with_both_parts(source_tree):
    tree = source_tree(program(COLD))
    assert "work.cold" in stock_names(tree)
    result = tree.build(program(COLD.replace("x + 2", "x + 20")))
    assert result.patch.functions == ("work",)
    function = metadata(result)["functions"][0]
    symbols = {s.name: s for s in ObjectFile.load(tree.unstripped).symtab}
    assert [(p["kind"], p["address"]) for p in function["pieces"]] == [
        ("cold", symbols["work.cold"].address)
    ]
    assert {".text.work", ".text.unlikely.work"} <= sections(result).keys()


SPLIT = (
    f"{NOINLINE}int work(int *p, int n)\n"
    "{\n    if (!p) return 0;\n"
    '    int sum = 0;\n    for (int i = 0; i < n; i++) sum += printf("%d", p[i]) * i;\n'
    '    for (int i = 0; i < n; i++) sum ^= printf("%d!", p[i]) + i;\n    return sum;\n}\n'
    "int user(int *p, int n) { return work(p, n) + 1; }\n"
    "int other(int *p, int n) { return work(p, n + 1) + 2; }\n"
)


def test_a_function_split_by_the_compiler_is_the_old_one_and_a_new_part(source_tree):
    inline = SPLIT.replace(NOINLINE, "")
    whole = inline.replace("if (!p) return 0;", 'if (!p) return puts("none");')
    tree = source_tree(
        program(whole), flags="-O2 -fno-inline-small-functions -fno-partial-inlining"
    )
    assert not any(".part" in n for n in stock_names(tree))
    split = source_tree(program(inline), flags="-O2 -fpartial-inlining")
    assert any(".part" in n for n in stock_names(split))
    result = split.build(program(inline.replace("* i", "* i * 3")))
    names = set(result.patch.functions)
    assert any(n.startswith("work.part") for n in names)


def test_a_part_that_is_gone_counts_as_a_piece_of_old_code(source_tree):
    inline = SPLIT.replace(NOINLINE, "")
    tree = source_tree(program(inline), flags="-O2 -fpartial-inlining")
    part = next(s for s in ObjectFile.load(tree.unstripped).symtab if ".part" in s.name)
    # noinline keeps GCC from splitting: the part goes, its parent takes all its code.
    result = tree.build(program(inline.replace("int work(", f"{NOINLINE}int work(")))
    pieces = [p for f in metadata(result)["functions"] for p in f["pieces"]]
    assert (part.address, part.size, "part") in [
        (p["address"], p["size"], p["kind"]) for p in pieces
    ]


def test_a_caller_that_relies_on_a_callees_registers_is_replaced_with_it(source_tree):
    # leaf() leaves most caller-saved registers alone, so caller() keeps values in them over the
    # call (-fipa-ra). The new leaf() calls out and clobbers them all.
    leaf = f"static {NOINLINE}int leaf(int x) {{ return x * 3 + 1; }}\n"
    caller = (
        "int caller(int a, int b, int c, int d)\n"
        "{ int r = leaf(a); return r + b * c + d; }\n"
        "int bystander(int a) { return a ^ 5; }\n"
    )
    tree = source_tree(program(leaf, caller))
    new = f'static {NOINLINE}int leaf(int x) {{ return puts("leaf") + x * 3 + 1; }}\n'
    result = tree.build(program(new, caller))
    assert set(result.patch.functions) == {"leaf", "caller"}


def test_callers_of_an_inlined_function_are_replaced(source_tree):
    inline = "static inline int scale(int x) { return x * 3; }\n"
    users = "int user_a(int x) { return scale(x); }\nint user_b(int x) { return scale(x) + 1; }\n"
    users += "int other(int x) { return x - 1; }\n"
    tree = source_tree(program(inline, users))
    result = tree.build(program(inline.replace("x * 3", "x * 5"), users))
    assert set(result.patch.functions) == {"user_a", "user_b"}


def test_a_static_inline_of_a_header_changes_in_every_object_that_has_a_copy(source_tree):
    header = f"static {NOINLINE}int limit(int x) {{ return x > 10 ? 10 : x; }}\n"
    files = {
        "limit.h": header,
        "one.c": '#include "limit.h"\nint one(int x) { return limit(x) + 1; }\n',
        "two.c": '#include "limit.h"\nint two(int x) { return limit(x) + 2; }\n',
        "main.c": TWO_MAIN,
    }
    tree = source_tree(files)
    result = tree.build({"limit.h": header.replace("10", "20")})
    assert [r.old.file for r in result.patch.replaced] == ["one.c", "two.c"]
    assert [r.old.name for r in result.patch.replaced] == ["limit", "limit"]


def test_new_functions_strings_and_data_come_along(source_tree):
    old = "static int known = 3;\nint target(int x) { known += x; return known; }\n"
    new = (
        "static int known = 3;\nstatic int fresh = 7;\nstatic int zero[3];\n"
        'static const char *const names[] = {"alpha-new", "beta-new"};\n'
        f"static {NOINLINE}int helper(int x) {{ zero[x & 1]++; return fresh + zero[0]; }}\n"
        "int target(int x) { known += x; return puts(names[x & 1]) + known + helper(x); }\n"
    )
    tree = source_tree(program(old))
    result = tree.build(program(new))
    assert result.patch.functions == ("target",)
    assert result.patch.added == ("helper",)
    for text in (b"alpha-new\0", b"beta-new\0"):
        assert text in result.patch.elf
    known = next(s for s in ObjectFile.load(tree.unstripped).symtab if s.name == "known")
    found = owners(result)
    assert found["known"]["address"] == known.address
    assert not {"fresh", "zero", "names", "helper"} & {o["name"] for o in found.values()}


def test_a_new_global_function_of_one_object_is_found_from_another(source_tree):
    files = {
        "one.c": "int one(int x) { return x + 1; }\n",
        "two.c": "int two(int x) { return x + 2; }\n",
        "main.c": TWO_MAIN,
    }
    new = {
        "one.c": f"int depth = 4;\n{NOINLINE}int fresh(int x) {{ return x * depth; }}\n"
        + files["one.c"],
        "two.c": "int fresh(int);\nextern int depth;\n"
        "int two(int x) { return fresh(x) + depth; }\n",
    }
    result = source_tree(files).build(new)
    assert result.patch.functions == ("two",)
    assert not {"fresh", "depth"} & set(owners(result))


def test_read_only_data_that_changes_is_brought_anew_for_all_its_users(source_tree):
    old = (
        "static const int table[8] = {1, 2, 3, 4, 5, 6, 7, 8};\n"
        "int user_a(int x) { return table[x & 7]; }\n"
        "int user_b(int x) { return table[x & 3] * 2; }\nint other(int x) { return x; }\n"
    )
    tree = source_tree(program(old))
    result = tree.build(program(old.replace("5, 6", "5, 60")))
    assert set(result.patch.functions) == {"user_a", "user_b"}
    assert not any(o["name"].startswith("table") for o in owners(result).values())


def test_a_different_callee_of_the_same_shape_is_a_change(source_tree):
    old = (
        'int one(int x) { return puts("1") + x; }\nint two(int x) { return puts("2") + x; }\n'
        "int user(int x) { return one(x) + 1; }\n"
    )
    result = source_tree(program(old)).build(program(old.replace("return one(x)", "return two(x)")))
    assert result.patch.functions == ("user",)


def test_a_different_datum_of_the_same_shape_is_a_change(source_tree):
    old = "int a = 1, b = 1;\nint user(void) { return a; }\nint keep(void) { return b; }\n"
    result = source_tree(program(old)).build(program(old.replace("return a;", "return b;")))
    assert result.patch.functions == ("user",)


def test_a_function_from_another_tree_directory(source_tree, tmp_path):
    old = program("int target(int x) { return x + 1; }")
    tree = source_tree(old)
    new = tmp_path / "new"
    new.mkdir()
    (new / "main.c").write_text(old["main.c"].replace("x + 1", "x + 2"))
    result = build_plain(tree.source, tree.command, tree.stock, Change(new=new))
    assert result.patch.functions == ("target",)
    assert not (tree.source / "program").exists(), "the tree itself was built in"


def test_a_common_variable_stays_where_it_is(source_tree):
    text = "int shared[4];\nint target(int x) { return shared[x & 3]; }\n"
    tree = source_tree(program(text), flags="-O2 -fcommon")
    result = tree.build(program(text.replace("x & 3]", "x & 1] + shared[2]")))
    assert result.patch.functions == ("target",)
    shared = next(s for s in ObjectFile.load(tree.unstripped).symtab if s.name == "shared")
    assert owners(result)["shared"]["address"] == shared.address


def test_two_objects_of_one_file_name_are_kept_apart(source_tree):
    text = f"static {NOINLINE}int limit(int x) {{ return x > LIMIT ? LIMIT : x; }}\n"
    files = {
        "a/part.c": f"#define LIMIT 10\n{text}int one(int x) {{ return limit(x) + 1; }}\n",
        "b/part.c": f"#define LIMIT 20\n{text}int two(int x) {{ return limit(x) + 2; }}\n",
        "main.c": TWO_MAIN,
    }
    command = (
        "gcc -O2 -g -c a/part.c -o a.o && gcc -O2 -g -c b/part.c -o b.o && "
        "gcc -O2 -g -c main.c -o main.o && gcc -Wl,--build-id a.o b.o main.o -o program"
    )
    tree = source_tree(files, command=command)
    result = tree.build({"b/part.c": files["b/part.c"].replace("LIMIT 20", "LIMIT 30")})
    symbols = [s for s in ObjectFile.load(tree.unstripped).symtab if s.name == "limit"]
    two = next(s for s in ObjectFile.load(tree.unstripped).symtab if s.name == "two")
    nearest = min(symbols, key=lambda s: abs(s.address - two.address))
    assert [r.old.address for r in result.patch.replaced] == [nearest.address]


def test_an_alias_is_one_function(source_tree):
    text = (
        "int target(int x) { return x + 1; }\n"
        'int other_name(int x) __attribute__((alias("target")));\n'
    )
    result = source_tree(program(text)).build(program(text.replace("x + 1", "x + 2")))
    assert len(result.patch.replaced) == 1


def test_c_plus_plus_without_exceptions(source_tree):
    text = (
        "struct shape { virtual int area(int x) { return x * 3; } virtual ~shape() {} };\n"
        "template <class T> __attribute__((noinline)) T scaled(T x) { return x * 5; }\n"
        'extern "C" int target(int x) { shape s; shape *p = &s; return p->area(x) + scaled(x); }\n'
        "long other(long x) { return scaled(x); }\n"
        "int main(int c, char **v) { return target(c) + (int)other(c); }\n"
    )
    command = "g++ -O2 -g -fno-exceptions -fno-rtti -Wl,--build-id main.cc -o program"
    command += " -nodefaultlibs -lc -lgcc"
    support = "#include <stddef.h>\nvoid operator delete(void *, size_t) {}\n"
    tree = source_tree({"main.cc": support + text}, command=command)
    source = tree.files["main.cc"]
    result = tree.build({"main.cc": source.replace("x * 5", "x * 7")})
    assert {"_Z6scaledIiET_S0_", "_Z6scaledIlET_S0_"} <= set(result.patch.functions)


def test_a_header_that_a_macro_or_an_option_names(source_tree):
    files = {
        "by_macro.h": "#define LIMIT 10\n",
        "by_option.h": "#define STEP 1\n",
        "one.c": '#define NAME "by_macro.h"\n#include NAME\nint one(int x) { return x + LIMIT; }\n',
        "two.c": "int two(int x) { return x + STEP; }\n",
        "main.c": TWO_MAIN,
    }
    tree = source_tree(files, flags="-O2 -include by_option.h")
    assert tree.build({"by_macro.h": "#define LIMIT 20\n"}).patch.functions == ("one",)
    assert tree.build({"by_option.h": "#define STEP 2\n"}).patch.functions == ("two",)
