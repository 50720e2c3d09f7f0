# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch on a patch: its new code holds the earlier fixes, its old code is the stock binary's."""

from __future__ import annotations

from patch_reading import metadata, owners, sections

HEAD = "#include <stdio.h>\n#include <assert.h>\n"
MAIN = "int main(int c, char **v) { return c; }\n"
STOCK = (
    'int first(int x) { return puts("first") + x; }\n'
    'int both(int x) { return puts("both") + x; }\n'
    'int second(int x) { assert(x); return puts("second") + x; }\n'
)


def files(text: str) -> dict[str, str]:
    return {"main.c": HEAD + text + MAIN}


BASE = STOCK.replace('"first"', '"first fixed"').replace('"both"', '"both fixed"\n\n')
NEXT = BASE.replace('"both fixed"', '"both fixed twice"').replace('"second"', '"second fixed"')


def test_only_what_the_second_patch_changes_is_replaced(source_tree):
    tree = source_tree(files(STOCK))
    result = tree.build(files(NEXT), base=[files(BASE)])
    assert set(result.patch.functions) == {"both", "second"}
    assert b"both fixed twice\0" in result.patch.elf
    assert b"first fixed\0" not in result.patch.elf


def test_the_earlier_fix_is_in_the_new_code(source_tree):
    stock = "int work(int x)\n{\n    int a = x;\n\n\n\n\n\n    return a;\n}\n"
    base = stock.replace("int a = x;", 'int a = x;\n    a += puts("one");')
    both = base.replace("return a;", 'a += puts("two");\n    return a;')
    result = source_tree(files(stock)).build(files(both), base=[files(base)])
    assert b"one\0" in result.patch.elf
    assert b"two\0" in result.patch.elf
    old = sections(result)[".wfpatch.old"].data
    function = metadata(result)["functions"][0]
    assert old == result.image.read(function["address"], function["size"])


def test_code_that_an_earlier_patch_brought_is_brought_again(source_tree):
    fresh = '__attribute__((noinline)) static int fresh(int x) { return puts("fresh") * x; }\n'
    base = fresh + STOCK.replace('puts("first")', "fresh(x)")
    result = source_tree(files(STOCK)).build(
        files(base.replace('puts("second")', "fresh(x + 2)")), base=[files(base)]
    )
    assert result.patch.functions == ("second",)
    assert not any(name.startswith("fresh") for name in owners(result))
    assert b"fresh\0" in result.patch.elf


def test_a_function_of_an_earlier_patch_is_called_by_its_stock_entry(source_tree):
    noinline = STOCK.replace("int first", "__attribute__((noinline)) int first")
    base = noinline.replace('"first"', '"first fixed"')
    result = source_tree(files(noinline)).build(
        files(base.replace('puts("second")', 'first(2) + puts("2")')), base=[files(base)]
    )
    assert result.patch.functions == ("second",)
    stock = {r.old.name: r.old.address for r in result.patch.replaced}
    assert owners(result)["first"]["owner"] == "object"
    assert owners(result)["first"]["address"] not in stock.values()


def test_three_on_top_of_each_other(source_tree):
    steps = [STOCK]
    for number in range(1, 4):
        steps.append(
            steps[-1].replace("both", f"both {number}", 2).replace(f"both {number}(", "both(")
        )
    result = source_tree(files(steps[0])).build(
        files(steps[3]), base=[files(steps[1]), files(steps[2])]
    )
    assert result.patch.functions == ("both",)
