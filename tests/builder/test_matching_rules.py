# SPDX-License-Identifier: GPL-3.0-or-later
"""Each rule that keeps matching from guessing, with a pair of sources that break it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from test_matching import compiled, located_names, match, stock, wrong
from wfpatch_build.code_order import CodeOrder
from wfpatch_build.definitions import Definition, Definitions

HEAD = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define KEEP __attribute__((noinline, noclone))
"""
MAIN = 'int main(int c, char **v) { printf("usage: %s\\n", v[0]); return getchar() + c; }\n'
# Identical functions are to stay two.
FLAGS = "-O2 -fPIE -fno-ipa-icf"


def body(text: str, *arguments: str) -> str:
    """A body that is long enough to be told from others, with ``text`` in it."""
    extra = "".join(f" n += {a};" for a in arguments)
    return (
        f'{{ int n = x; for (int i = 0; i < x; i++) n += printf("{text} %d\\n", i) ^ rand();'
        f"{extra} return n * 3; }}\n"
    )


def program(*parts: str) -> dict[str, str]:
    return {"work.c": HEAD + "".join(parts) + MAIN}


class Pair:
    """A stock program, and the matching of another source to it."""

    def __init__(self, place: Path, old: dict[str, str], new: dict[str, str]) -> None:
        place.mkdir(exist_ok=True)
        image, self.unstripped = stock(place / "stock", old, FLAGS)
        self.matching = match(image, compiled(place / "objects", new, FLAGS))
        self.located = located_names(self.matching)
        self.why = {d.name: why for d, why in self.matching.unresolved.items()}
        assert wrong(self.matching, self.unstripped) == []


def test_a_piece_that_two_functions_are_like_is_neither(tmp_path):
    alpha, beta = f"int alpha(int x) {body('both')}", f"int beta(int x) {body('both')}"
    others = "".join(f"int other{n}(int x) {body(f'other {n}')}" for n in range(3))
    pair = Pair(tmp_path, program(alpha, others), program(beta, alpha, others))
    assert not {"alpha", "beta"} & pair.located
    assert {"other1", "other2", "main"} <= pair.located


def test_a_function_that_code_calls_elsewhere_is_not_where_its_likeness_is(tmp_path):
    """`target` takes the body of `model`, which is gone; the caller still leads to the old one."""
    caller = f"int caller(int x) {body('caller', 'target(i)').replace('i)', 'x)')}"
    target, model = f"KEEP int target(int x) {body('old')}", f"KEEP int model(int x) {body('new')}"
    user = f"int user(int x) {body('user', 'caller(x)')}"
    old = program(target, model, f"KEEP {caller}", user)
    new = program(model.replace("model", "target"), f"KEEP {caller}", user)
    pair = Pair(tmp_path, old, new)
    assert "target" not in pair.located
    assert "caller" in pair.located


def test_two_data_are_not_in_one_place(tmp_path):
    """One user of `first` now uses `second`: which of the users of `second` is wrong cannot be
    told, so `second` is in neither place, and they are not what they seem."""
    data = "int first, second;\n"
    reader = f"int reader(int x) {body('reader', 'first')}"
    writer = f"int writer(int x) {body('writer', '++first')}"
    another = f"int another(int x) {body('another', 'second')}"
    old = program(data, reader, writer, another)
    pair = Pair(tmp_path, old, program(data, reader, writer.replace("first", "second"), another))
    assert not {"second", "writer", "another"} & pair.located
    assert "contradict" in pair.why["writer"]
    assert "contradictory" in pair.why["second"]
    same = Pair(tmp_path / "same", old, old)
    assert {"first", "second", "reader", "writer", "another"} <= same.located


def test_the_few_that_contradict_the_many_go_alone(tmp_path):
    data = "int first, second;\n"
    readers = "".join(f"int reader{n}(int x) {body(f'reader {n}', 'first')}" for n in range(12))
    writer = f"int writer(int x) {body('writer', '++first')}"
    old = program(data, readers, writer, f"int user(int x) {body('user', 'second')}")
    pair = Pair(tmp_path, old, program(data, readers, writer.replace("first", "second")))
    assert {f"reader{n}" for n in range(12)} <= pair.located
    assert not {"second", "writer"} & pair.located


@pytest.mark.parametrize("grown", [8, 64])
def test_data_whose_structure_grew_in_front_of_all_that_is_used(tmp_path, grown):
    """All references agree, on a wrong address: by its alignment, or by what is in front."""
    before = "char before[96];\nstruct { long head, count, more[16]; } table;\n"
    after = before.replace("long head", f"char fresh[{grown}]; long head")
    users = (
        f"int user(int x) {body('user', 'table.count')}"
        f"int other(int x) {body('other', '++table.more[3]')}"
        f"int filler(int x) {body('filler', 'before[x]')}"
    )
    pair = Pair(tmp_path, program(before, users), program(after, users))
    assert "table" not in pair.located
    same = Pair(tmp_path / "same", program(before, users), program(before, users))
    assert {"table", "before", "user", "other"} <= same.located


def test_what_a_function_says_of_itself(tmp_path):
    """Of two functions alike, only one calls itself."""
    text = "(int x) { return x > 2 ? this(x - 1) * 2 + rand() : x; }\n"
    twins = (
        f"KEEP __attribute__((optimize(0))) int this{text}"
        f"KEEP __attribute__((optimize(0))) int that{text}"
    )
    pair = Pair(tmp_path, program(twins), program(twins))
    assert pair.why["this"].startswith("one piece")
    assert pair.why["that"].startswith("2 pieces")


def test_a_switch_table_that_leads_elsewhere(tmp_path):
    cases = (
        "KEEP int choose(int x)\n{\n    switch (x) {\n"
        '    case 0: case 3: case 6: return puts("a") + rand();\n'
        '    case 1: case 4: return puts("b") * rand();\n'
        '    case 2: case 5: return puts("c") ^ rand();\n    }\n    return -1;\n}\n'
    )
    turned = cases.replace("case 3: case 6:", "case 4: case 6:").replace(
        "case 1: case 4:", "case 1: case 3:"
    )
    pair = Pair(tmp_path, program(cases), program(turned))
    assert pair.why["choose"] == "no code of the stock binary is like it"
    assert "choose" in Pair(tmp_path / "same", program(cases), program(cases)).located


# -- the order of code ------------------------------------------------------------------------


@pytest.fixture
def order(tmp_path):
    """(CodeOrder, functions of two units, addresses): eight functions, five and three."""
    files = {
        "store.c": "".join(f"int a{n}(int x) {{ return x + {n}; }}\n" for n in range(5)),
        "load.c": "".join(f"int b{n}(int x) {{ return x * {n}; }}\n" for n in range(3)),
    }
    definitions = Definitions(compiled(tmp_path / "order", files))
    functions = list(definitions.functions)
    addresses = [0x1000 + 16 * n for n in range(8)]
    return CodeOrder([(a, 8) for a in addresses], definitions), functions, addresses


def located(functions: list[Definition], addresses: list[int], *numbers: int):
    return {functions[n]: addresses[n] for n in numbers}


def test_a_gap_of_equal_length_is_filled_within_a_unit_and_across(order):
    code, functions, addresses = order
    gaps = list(code.gaps(located(functions, addresses, 0, 2, 3, 6, 7)))
    assert [g.functions for g in gaps] == [(functions[1],), (functions[4], functions[5])]
    assert [g.addresses for g in gaps] == [(addresses[1],), tuple(addresses[4:6])]


def test_a_gap_with_more_code_than_functions_is_none(order):
    code, functions, addresses = order
    places = located(functions, addresses, 0, 1, 6, 7)
    places[functions[2]] = addresses[4]
    gaps = list(code.gaps(places))
    assert all(functions[1] not in g.functions for g in gaps)
    assert not any(addresses[2] in g.addresses for g in gaps)


def test_no_gap_is_filled_where_little_is_known_or_the_order_is_another(order):
    code, functions, addresses = order
    assert list(code.gaps(located(functions, addresses, 0, 2))) == []
    turned = dict(zip(functions[:4], itertools.islice(reversed(addresses[:5]), 4), strict=True))
    del turned[functions[1]]
    assert list(code.gaps(turned)) == []


def test_a_function_among_another_units_code_is_a_stray(order):
    code, functions, addresses = order
    places = located(functions, addresses, 0, 1, 3, 4, 6, 7)
    places[functions[5]] = addresses[2]
    assert code.strays(places) == {functions[5]}
    assert code.strays(located(functions, addresses, 0, 1, 3, 5, 7)) == set()


def test_code_between_a_units_functions_is_its_own(order):
    code, functions, addresses = order
    owners = code.owners(located(functions, addresses, 0, 3, 6, 7))
    assert owners.allows(functions[1], addresses[2])
    assert not owners.allows(functions[5], addresses[2])
    assert owners.allows(functions[5], addresses[4])
    assert not owners.allows(functions[1], addresses[7])


def test_neighbours_that_are_too_far_or_turned_support_nothing(order):
    code, functions, addresses = order
    assert code.unsupported(located(functions, addresses, 0, 1, 4, 7)) == set()
    places = located(functions, addresses, 0, 1, 7)
    places[functions[2]] = addresses[3]
    assert code.unsupported(places) == {functions[1], functions[2], functions[7]}
    turned = {functions[0]: addresses[1], functions[1]: addresses[0]}
    assert code.unsupported(turned) == {functions[0], functions[1]}
