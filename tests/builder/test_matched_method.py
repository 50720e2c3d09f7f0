# SPDX-License-Identifier: GPL-3.0-or-later
"""Patches by matching: the same as by an exact rebuild, or refused for what was not located."""

from __future__ import annotations

import json

import pytest
from matching_program import FILES
from patch_reading import metadata, owners, sections
from wfpatch_build import cli
from wfpatch_build.errors import Refusal

FLAGS = "-O2 -fPIE"
PROGRAM = {
    **FILES,
    "store.c": FILES["store.c"]
    + """
KEEP __attribute__((cold)) static void complain(const char *what, int x)
{
    fprintf(stderr, "%s: %d\\n", what, x);
}
int risky(int x)
{
    if (x > 900) { complain("far too much", x); complain("really", x + 3); rand(); }
    return x * 3 + shared.count;
}
""",
}
# A change that the stock binary does not have: the rebuild is not exact.
OTHER = {"work.c": FILES["work.c"].replace("2.5 + 0.125", "2.5 + 0.375")}
FIX = {"load.c": PROGRAM["load.c"].replace("visit two", "visited two")}


@pytest.fixture
def tree(source_tree):
    return source_tree(PROGRAM, flags=FLAGS, link="-pie -Wl,-z,now")


def refused(tree, files, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        tree.build({**OTHER, **files}, **options)
    return caught.value


def content(result):
    """All of a patch ELF but the method."""
    value = metadata(result)
    value["built"].pop("method")
    parts = {n: (s.data, s.relocations) for n, s in sections(result).items() if ".meta" not in n}
    return value, parts


@pytest.mark.parametrize(
    "files",
    [
        FIX,
        {"store.c": PROGRAM["store.c"].replace("x + 3", "x + 4")},
        {"work.c": PROGRAM["work.c"].replace("v[0] + clamp(x)", "v[1] + clamp(x) + visit(x, 2)")},
        {"load.c": PROGRAM["load.c"].replace("+ zero()", "+ zero() + shared.kind")},
    ],
)
def test_matching_gives_the_patch_elf_of_the_exact_build(tree, files):
    exact, matched = (tree.build(files, method=method) for method in ("exact", "matched"))
    assert metadata(exact)["built"]["method"] == "plain"
    assert metadata(matched)["built"]["method"] == "matched"
    assert content(exact) == content(matched)
    assert exact.patch.replaced[0].old == matched.patch.replaced[0].old


def test_where_the_rebuild_is_not_exact_matching_takes_its_place(tree):
    exact = tree.build(FIX)
    tree.resource(OTHER)
    matched = tree.build(FIX)
    assert not matched.identity.exact
    assert metadata(matched)["built"]["method"] == "matched"
    assert matched.image.build_id == exact.image.build_id
    assert metadata(matched)["functions"] == metadata(exact)["functions"]
    assert owners(matched) == owners(exact)


def test_an_exact_rebuild_may_be_insisted_on(tree):
    tree.resource(OTHER)
    assert refused(tree, FIX, method="exact").reason == "stock_mismatch"


def test_a_function_that_is_not_the_stock_one_is_not_replaced(tree):
    tree.resource(OTHER)
    refusal = refused(tree, {"work.c": OTHER["work.c"].replace("0.375", "0.75")})
    assert refusal.reason == "match_unresolved"
    assert refusal.result["symbol"] == "scale"
    assert "no code of the stock binary is like it" in refusal.message


def test_new_code_that_calls_what_was_not_located(tree):
    tree.resource(OTHER)
    refusal = refused(tree, {"work.c": OTHER["work.c"].replace("v[0] + clamp", "v[1] + clamp")})
    assert (refusal.reason, refusal.result["symbol"]) == ("match_unresolved", "scale")


def test_data_that_were_not_located(tree):
    """`names` has other strings than the stock binary's."""
    tree.resource({"load.c": PROGRAM["load.c"].replace('"two", "three"}', '"two", "trio"}')})
    new = tree.files["load.c"].replace("strlen(names[r->kind & 3])", "strlen(names[r->kind & 1])")
    with pytest.raises(Refusal) as caught:
        tree.build({"load.c": new})
    assert caught.value.reason == "match_unresolved"


def test_a_cold_part_that_was_not_located(tree):
    """The main body is the stock one, so the function is located; its other piece is not."""
    tree.resource({"store.c": PROGRAM["store.c"].replace("x + 3", "x + 33")})
    new = tree.files["store.c"].replace(
        "return x * 3 + shared.count", "return x * 5 + shared.count"
    )
    with pytest.raises(Refusal) as caught:
        tree.build({"store.c": new})
    assert caught.value.reason == "match_unresolved"
    assert caught.value.result["symbol"] == "risky.cold"


def test_another_program_is_no_neighbour(tree):
    """What is located of it by chance must not make a patch."""
    tree.resource({n: t.replace("int x)", "long x)") for n, t in PROGRAM.items()})
    new = {"load.c": tree.files["load.c"].replace("visit two", "visited two")}
    with pytest.raises(Refusal) as caught:
        tree.build(new)
    assert caught.value.reason == "stock_mismatch"
    assert "of its" in caught.value.message


def test_the_command_line_takes_the_method(tree, tmp_path, capsys):
    patch = tmp_path / "fix.patch"
    patch.write_text(tree.diff(FIX))
    arguments = ["tree", "--old", str(tree.source), "--patch", str(patch), "--build", tree.command]
    arguments += ["--binary", str(tree.stock), "-o", str(tmp_path / "fix"), "--json"]
    assert cli.main([*arguments, "--method", "matched"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["functions"] == ["visit"]
    assert "functions and" in printed.err
    assert b'"method":"matched"' in (tmp_path / "fix" / "patch.elf").read_bytes()
