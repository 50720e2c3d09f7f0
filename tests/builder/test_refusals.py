# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything the builder refuses, each with its reason code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import wfpatch_build
from wfpatch_build import cli
from wfpatch_build.debian import find_stock_file
from wfpatch_build.errors import REASONS, Refusal
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.pipeline import Change, check_expected
from wfpatch_build.plain_tree import build_plain
from wfpatch_build.recipe import read_recipe
from wfpatch_build.signing import sign

HEAD = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n"
MAIN = "int main(int c, char **v) { return c; }\n"
TARGET = "int target(int x) { return x + 1; }\n"


def files(text: str, main: str = MAIN) -> dict[str, str]:
    return {"main.c": HEAD + text + main}


def test_a_comment_changes_nothing(source_tree):
    tree = source_tree(files(TARGET))
    assert tree.refused(files(TARGET + "/* a comment\n   of two lines */\n")).reason == "empty_diff"


def test_code_that_is_not_compiled_changes_nothing(source_tree):
    text = TARGET + "#ifdef OTHER\nint other(void) { return 1; }\n#endif\n"
    assert source_tree(files(text)).refused(files(text.replace("1; }\n#e", "2; }\n#e"))).reason == (
        "empty_diff"
    )


def test_a_file_of_another_program_changes_nothing(source_tree):
    tree = source_tree({**files(TARGET), "other.txt": "text\n"})
    assert tree.refused({"other.txt": "other text\n"}).reason == "empty_diff"


def test_main(source_tree):
    refusal = source_tree(files(TARGET)).refused(
        files(TARGET, MAIN.replace("return c", "return 1"))
    )
    assert refusal.reason == "changes_main"


def test_what_is_inlined_into_main(source_tree):
    text = 'static int part(int x) { return puts("x") + x; }\n'
    main = MAIN.replace("return c", "return part(c)")
    refusal = source_tree(files(text, main)).refused(files(text.replace('"x"', '"y"'), main))
    assert refusal.reason == "changes_main"


LOOP = (
    'void *worker(void *p)\n{\n    for (;;) {\n        sleep(1);\n        puts("tick");\n    }\n}\n'
)


def test_a_loop_without_end(source_tree):
    refusal = source_tree(files(LOOP)).refused(files(LOOP.replace("tick", "tock")))
    assert refusal.reason == "never_returns"
    assert refusal.result["function"] == "worker"


def test_a_loop_that_can_end_is_no_obstacle(source_tree):
    text = LOOP.replace("for (;;)", "while (getppid() != 1)").replace(
        "    }\n}", "    }\n    return p;\n}"
    )
    result = source_tree(files(text)).build(files(text.replace("tick", "tock")))
    assert result.patch.functions == ("worker",)


def test_a_function_that_ends_the_process_is_no_obstacle(source_tree):
    text = "void die(const char *w)\n{\n    fputs(w, stderr);\n    exit(3);\n}\n"
    result = source_tree(files(text)).build(files(text.replace("exit(3)", "exit(4)")))
    assert result.patch.functions == ("die",)


STRUCT = (
    "struct item { int a; long b; char name[8]; };\n"
    "int target(struct item *i) { return i->a + (int)i->b; }\n"
    "struct item *make(void) { return calloc(1, sizeof(struct item)); }\n"
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("long b;", "long b, c;"),
        ("int a; long b;", "long b; int a;"),
        ("char name[8]", "char name[9]"),
        ("int a;", "unsigned char a;"),
        ("long b;", "long bb;"),
    ],
    ids=["member", "order", "array", "type", "name"],
)
def test_the_layout_of_a_structure(source_tree, old, new):
    changed = STRUCT.replace(old, new).replace("i->a +", "2 * i->a +")
    if "bb" in new:
        changed = changed.replace("i->b", "i->bb")
    refusal = source_tree(files(STRUCT)).refused(files(changed))
    assert refusal.reason == "data_layout_changed"
    assert refusal.result["type"] == "struct item"


def test_the_layout_of_an_anonymous_structure_by_its_typedef(source_tree):
    text = "typedef struct { int a; } item;\nint target(item *i) { return i->a; }\n"
    refusal = source_tree(files(text)).refused(files(text.replace("int a;", "int z, a;")))
    assert refusal.reason == "data_layout_changed"
    assert refusal.result["type"] == "struct item"


def test_a_layout_change_that_was_accepted(source_tree):
    changed = STRUCT.replace("long b;", "long b, c;").replace("i->a +", "2 * i->a +")
    result = source_tree(files(STRUCT)).build(files(changed), accept_layout=("struct item",))
    assert set(result.patch.functions) == {"target", "make"}


def test_a_structure_of_one_function_is_its_own_affair(source_tree):
    text = (
        "int target(int x)\n{\n    struct pair { int a, b; } p = {x, x + 1};\n"
        '    return printf("%p", (void *)&p) + p.a;\n}\n'
    )
    changed = text.replace("int a, b;", "int a, b, c;").replace("x + 1}", "x + 1, 3}")
    result = source_tree(files(text)).build(files(changed))
    assert result.patch.functions == ("target",)


ENUM = "enum kind { A, B, C };\nint target(int x) { return x == B ? 1 : x == C ? 7 : 0; }\n"


def test_other_values_of_enumerators(source_tree):
    refusal = source_tree(files(ENUM)).refused(files(ENUM.replace("A, B,", "A, Z, B,")))
    assert refusal.reason == "data_layout_changed"


def test_a_further_enumerator_is_no_obstacle(source_tree):
    changed = ENUM.replace("C }", "C, D }").replace(": 0;", ": x == D;")
    assert source_tree(files(ENUM)).build(files(changed)).patch.functions == ("target",)


DATA = "int values[4] = {1, 2, 3, 4};\nint target(int x) { return values[x & 3]; }\n"


def test_the_size_of_data(source_tree):
    changed = DATA.replace("[4]", "[5]").replace("x & 3", "x & 4")
    assert source_tree(files(DATA)).refused(files(changed)).reason == "data_layout_changed"


def test_data_that_becomes_constant(source_tree):
    changed = DATA.replace("int values", "const int values")
    assert source_tree(files(DATA)).refused(files(changed)).reason == "data_layout_changed"


def test_the_initial_value_of_data(source_tree):
    refusal = source_tree(files(DATA)).refused(files(DATA.replace("3, 4", "3, 5")))
    assert refusal.reason == "data_initialiser_changed"
    assert refusal.result["name"] == "values"


def test_a_constant_table_of_functions(source_tree):
    text = (
        "int one(int x) { return x; }\nint two(int x) { return -x; }\n"
        "static int (*const table[2])(int) = {one, two};\n"
        "int target(int x) { return table[x & 1](x); }\n"
    )
    refusal = source_tree(files(text)).refused(files(text.replace("{one, two}", "{two, one}")))
    assert refusal.reason == "data_initialiser_changed"


def test_a_constant_that_others_can_see(source_tree):
    text = "const int limit[2] = {1, 2};\nint target(int x) { return limit[x & 1]; }\n"
    refusal = source_tree(files(text)).refused(files(text.replace("{1, 2}", "{1, 3}")))
    assert refusal.reason == "data_initialiser_changed"


def test_data_that_is_removed(source_tree):
    text = "static int count;\nint target(int x) { count += x; return count; }\n"
    refusal = source_tree(files(text)).refused(files(TARGET))
    assert refusal.reason == "data_removed"


def test_new_thread_local_data(source_tree):
    changed = "static __thread int depth;\nint target(int x) { depth += x; return depth; }\n"
    assert source_tree(files(TARGET)).refused(files(changed)).reason == "data_layout_changed"


def test_an_array_that_the_linker_collects(source_tree):
    entry = '__attribute__((section("hooks"), used)) static int hook{0} = {0};\n'
    text = entry.format(1) + TARGET
    changed = entry.format(1) + entry.format(2) + TARGET.replace("+ 1", "+ 2")
    assert source_tree(files(text)).refused(files(changed)).reason == "data_layout_changed"


CONSTRUCTOR = "int ready;\n__attribute__((constructor)) static void start(void) { ready = 1; }\n"


def test_a_constructor(source_tree):
    text = CONSTRUCTOR + TARGET
    assert source_tree(files(text)).refused(files(text.replace("= 1; }", "= 2; }"))).reason == (
        "init_code"
    )


def test_a_new_constructor(source_tree):
    assert source_tree(files("int ready;\n" + TARGET)).refused(
        files(CONSTRUCTOR + TARGET)
    ).reason == ("init_code")


def test_an_ifunc_resolver(source_tree):
    text = (
        "int plain(int x) { return x; }\nint fancy(int x) { return x + 1; }\n"
        "static int (*choose(void))(int) { return getppid() ? plain : fancy; }\n"
        'int work(int x) __attribute__((ifunc("choose")));\n'
    )
    changed = text.replace("getppid() ?", "getpid() ?")
    main = MAIN.replace("return c", "return work(c)")
    assert source_tree(files(text, main)).refused(files(changed, main)).reason == "init_code"


ASM = 'asm(".text\\n.globl bare\\nbare: mov $1, %eax\\n ret\\n");\n'


def test_assembler_outside_of_functions(source_tree):
    text = ASM + TARGET
    refusal = source_tree(files(text)).refused(files(text.replace("$1", "$2")))
    assert refusal.reason == "inline_assembly"


def test_assembler_source(source_tree):
    text = ".globl bare\n.text\nbare:\n mov $1, %eax\n ret\n.section .note.GNU-stack\n"
    tree = source_tree({**files(TARGET), "bare.S": text})
    assert tree.refused({"bare.S": text.replace("$1", "$2")}).reason == "inline_assembly"


def test_assembler_within_a_function_is_no_obstacle(source_tree):
    text = 'int target(int x) { asm("add $1, %0" : "+r"(x)); return x; }\n'
    result = source_tree(files(text)).build(files(text.replace("$1", "$2")))
    assert result.patch.functions == ("target",)


def test_link_time_optimisation(source_tree):
    tree = source_tree(files(TARGET), flags="-O2 -flto")
    assert tree.refused(files(TARGET.replace("+ 1", "+ 2"))).reason == "lto_unsupported"


def test_a_patch_for_another_source(source_tree, tmp_path):
    tree = source_tree(files(TARGET))
    patch = tmp_path / "foreign.patch"
    patch.write_text("--- a/main.c\n+++ b/main.c\n@@ -1,2 +1,2 @@\n not there\n-old\n+new\n")
    with pytest.raises(Refusal) as caught:
        build_plain(tree.source, tree.command, tree.stock, Change((patch,)))
    assert caught.value.reason == "patch_does_not_apply"


def test_a_patch_that_fits_only_with_fuzz(source_tree, tmp_path):
    tree = source_tree(files(TARGET))
    patch = tmp_path / "fuzzy.patch"
    text = tree.diff(files(TARGET.replace("+ 1", "+ 2")))
    patch.write_text(text.replace(" #include <unistd.h>", " #include <other.h>"))
    assert patch.read_text() != text
    with pytest.raises(Refusal) as caught:
        build_plain(tree.source, tree.command, tree.stock, Change((patch,)))
    assert caught.value.reason == "patch_does_not_apply"


def test_a_patch_that_does_not_compile(source_tree):
    refusal = source_tree(files(TARGET)).refused(files(TARGET.replace("x + 1", "y + 1")))
    assert refusal.reason == "build_failed"
    assert "main.c" in refusal.message


def test_a_build_command_that_fails(source_tree):
    tree = source_tree(files(TARGET))
    tree.command = "false"
    assert tree.refused(files(TARGET.replace("+ 1", "+ 2"))).reason == "build_failed"


def test_a_binary_without_build_id(source_tree):
    tree = source_tree(files(TARGET), link="-Wl,--build-id=none")
    assert tree.refused(files(TARGET.replace("+ 1", "+ 2"))).reason == "no_build_id"


def test_a_binary_built_otherwise(source_tree):
    tree = source_tree(files(TARGET + "int other(int *p) { return p[0] / p[1]; }\n"))
    tree.command = tree.command.replace("-O2", "-O1")
    refusal = tree.refused(files(TARGET.replace("+ 1", "+ 2")))
    assert refusal.reason == "stock_mismatch"
    assert ".text" in refusal.result["sections"]


def test_a_compiler_called_by_its_path(source_tree):
    tree = source_tree(files(TARGET))
    tree.command = tree.command.replace("gcc", str(Path(shutil.which("gcc") or "").resolve()))
    assert tree.refused(files(TARGET.replace("+ 1", "+ 2"))).reason == "compile_command_unknown"


def test_a_symbol_that_nobody_has(source_tree):
    changed = "int nowhere(int);\n" + TARGET.replace("x + 1", "nowhere(x)")
    refusal = source_tree(files(TARGET)).refused(files(changed))
    assert refusal.reason == "symbol_not_found"
    assert refusal.result["symbol"] == "nowhere"


def test_a_relocation_that_patch_elfs_do_not_carry(source_tree):
    text = "__thread int depth;\nint target(int x) { depth += x; return depth; }\n"
    tree = source_tree(
        {"lib.c": text}, flags="-O2 -fPIC", link="-shared -Wl,-soname,libx.so.1", name="libx.so.1"
    )
    refusal = tree.refused({"lib.c": text.replace("+= x", "+= 2 * x")})
    assert refusal.reason == "unsupported_relocation"


def test_a_function_that_only_an_earlier_patch_brought(source_tree):
    fresh = "__attribute__((noinline)) int fresh(int x) { return x * 3; }\n"
    base = files(fresh + TARGET.replace("x + 1", "fresh(x) + 1"))
    changed = files(fresh.replace("x * 3", "x * 5") + TARGET.replace("x + 1", "fresh(x) + 1"))
    assert source_tree(files(TARGET)).refused(changed, base=[base]).reason == "old_code_unknown"


def test_data_that_only_an_earlier_patch_brought(source_tree):
    base = files("static int sum;\n" + TARGET.replace("x + 1", "sum += x"))
    changed = files("static int sum;\n" + TARGET.replace("x + 1", "sum += 2 * x"))
    refusal = source_tree(files(TARGET)).refused(changed, base=[base])
    assert refusal.reason == "symbol_not_found"


def test_an_input_of_a_generator(source_tree):
    command = (
        "sed 's/PLUS/+/' gen.c.in > gen.c && gcc -O2 -g -c gen.c -o gen.o && "
        "gcc -O2 -g -c main.c -o main.o && gcc -Wl,--build-id gen.o main.o -o program"
    )
    tree = source_tree(
        {**files(TARGET), "gen.c.in": "int made(int x) { return x PLUS 1; }\n"}, command=command
    )
    refusal = tree.refused({"gen.c.in": "int made(int x) { return x PLUS 2; }\n"})
    assert refusal.reason == "generated_source"


def test_what_is_no_object(tmp_path):
    text = tmp_path / "text"
    text.write_text("no ELF file\n")
    with pytest.raises(Refusal) as caught:
        ObjectFile.load(text)
    assert caught.value.reason == "not_an_object"


def test_functions_other_than_the_recipe_names(source_tree):
    result = source_tree(files(TARGET)).build(files(TARGET.replace("+ 1", "+ 2")))
    check_expected(result.patch, ["target"])
    check_expected(result.patch, [])
    with pytest.raises(Refusal) as caught:
        check_expected(result.patch, ["target", "other"])
    assert caught.value.reason == "functions_unexpected"


def test_a_recipe_with_a_misspelt_key(tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("id: a\nsummary: b\npackage: c\nversion: '1'\npatch: d\nplicy: auto\n")
    with pytest.raises(Refusal) as caught:
        read_recipe(recipe)
    assert caught.value.reason == "manifest_invalid"
    assert "plicy" in caught.value.message


def test_a_key_that_cannot_sign(tmp_path):
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(Refusal) as caught:
        sign(tmp_path, tmp_path / "no-such-key")
    assert caught.value.reason == "signing_failed"


def test_a_missing_tool(source_tree, monkeypatch):
    tree = source_tree(files(TARGET))
    real = subprocess.run

    def without_patch(command, *arguments, **options):
        if command[0] == "patch":
            raise FileNotFoundError(2, "No such file or directory", "patch")
        return real(command, *arguments, **options)

    monkeypatch.setattr(subprocess, "run", without_patch)
    assert tree.refused(files(TARGET.replace("+ 1", "+ 2"))).reason == "tool_missing"


def test_a_package_with_several_binaries(tmp_path, monkeypatch):
    from wfpatch_build import debian
    from wfpatch_build.archive import BinaryPackage

    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    for name in ("one", "two"):
        shutil.copy("/bin/true", root / "usr/bin" / name)
    package = BinaryPackage("pkg", "1", "pkg", "1", "amd64", (), root)
    monkeypatch.setattr(debian, "fetch_package", lambda *_: package)
    with pytest.raises(Refusal) as caught:
        find_stock_file("pkg", "1", None, tmp_path)
    assert caught.value.reason == "usage"
    assert "/usr/bin/one" in caught.value.message
    found = find_stock_file("pkg", "1", "/usr/bin/two", tmp_path)
    assert found.path == "/usr/bin/two"
    with pytest.raises(Refusal) as caught:
        find_stock_file("pkg", "1", "/usr/bin/three", tmp_path)
    assert caught.value.reason == "archive_missing"


def test_the_command_line_prints_the_reason(source_tree, capsys, tmp_path):
    tree = source_tree(files(TARGET))
    patch = tmp_path / "comment.patch"
    patch.write_text(tree.diff(files(TARGET + "/* nothing */\n")))
    code = cli.main(
        ["tree", "--old", str(tree.source), "--patch", str(patch), "--build", tree.command]
        + ["--binary", str(tree.stock), "-o", str(tmp_path / "bundle")]
    )
    assert code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("wfpatch-build: empty_diff: ")
    assert not (tmp_path / "bundle").exists()


def test_every_reason_is_raised_somewhere_and_listed():
    """No reason without a use, and no use without a row: the constructor checks the latter."""
    package = Path(wfpatch_build.__file__).parent
    text = "".join(p.read_text() for p in package.rglob("*.py") if p.name != "errors.py")
    unused = [r for r in REASONS if not re.search(rf'"{r}"', text)]
    assert unused == []
    page = (package.parents[1] / "docs" / "patch-authors.md").read_text()
    assert [r for r in REASONS if f"`{r}`" not in page] == []
    with pytest.raises(AssertionError):
        Refusal("no_such_reason", "text")


def test_exceptions_through_new_code(source_tree):
    throws = (
        '#include <stdexcept>\nextern "C" int target(int x)\n'
        '{ if (x > 3) throw std::runtime_error("x"); return x + 1; }\n'
    )
    main = 'extern "C" int target(int);\nint main(int c, char **v)\n'
    main += "{ try { return target(c); } catch (std::exception &) { return 9; } }\n"
    text = throws + main
    tree = source_tree(
        {"main.cc": text}, command="g++ -O2 -g -fno-inline -Wl,--build-id main.cc -o program"
    )
    refusal = tree.refused({"main.cc": text.replace("x + 1", "x + 2")})
    assert refusal.reason == "exceptions_unsupported"


def test_clean_up_after_cancelled_threads(source_tree):
    text = (
        '__attribute__((noinline)) void tidy(int *p) { printf("%d", *p); }\n'
        'int target(int x) { __attribute__((cleanup(tidy))) int y = x; puts("t"); return y; }\n'
    )
    tree = source_tree(files(text), flags="-O2 -fexceptions")
    assert tree.refused(files(text.replace('"t"', '"u"'))).reason == "exceptions_unsupported"


def test_the_size_of_a_common_variable(source_tree):
    text = "int shared[4];\nint target(int x) { return shared[x & 3]; }\n"
    tree = source_tree(files(text), flags="-O2 -fcommon")
    changed = text.replace("[4]", "[8]").replace("x & 3", "x & 7")
    assert tree.refused(files(changed)).reason == "data_layout_changed"


def test_static_variables_that_cannot_be_told_apart(source_tree):
    one = "{ static int n; n += x; total += n; }\n"
    text = "int total;\nint target(int x)\n{\n" + one * 2 + "    return total;\n}\n"
    changed = text.replace(one * 2, one * 3)
    assert source_tree(files(text)).refused(files(changed)).reason == "data_layout_changed"


def test_code_outside_of_functions_that_new_code_calls(source_tree):
    text = ASM.replace(".globl bare\\n", "") + TARGET
    changed = text.replace("int target", "extern int bare(void);\nint target")
    changed = changed.replace("x + 1", "x + bare()")
    assert source_tree(files(text)).refused(files(changed)).reason == "inline_assembly"
