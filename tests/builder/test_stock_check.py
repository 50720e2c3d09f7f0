# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiled old code against the stock binary: it agrees with the same code, and with no other."""

from __future__ import annotations

import subprocess

import pytest
from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.normal_form import NormalForms
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.section_identity import compare
from wfpatch_build.stock import Stock
from wfpatch_build.stock_check import StockCheck

SOURCE = """
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
int level = 3, other = 4;
static const char *const names[] = {"alpha", "beta"};
static int twice(int x) __attribute__((noinline));
static int twice(int x) { return x * level; }
int text(void) { return puts("text one"); }
int value(int x) { return x + 1000; }
int calls(int x) { return twice(x) + (int)strlen("abc" + x); }
int data(int x) { return level + x + (int)(long)names[x]; }
int jumps(int x) { for (int i = 0; i < x; i++) { if (puts("loop") > 3) return i; } return -1; }
int chooses(int x)
{
    switch (x) {
    case 0: return puts("a"); case 1: return puts("b") + 1; case 2: return puts("c") * 3;
    case 3: return puts("d") - 5; case 4: return getchar(); case 5: return puts("f") + 77;
    }
    return rand();
}
double real(double x) { return x * 2.5; }
int main(int c, char **v) { return c; }
"""
FUNCTIONS = ("text", "value", "calls", "data", "jumps", "chooses", "real", "twice")


def built(place, text: str, flags: str = "-O2"):
    source, binary, obj = place / "code.c", place / "program", place / "code.o"
    source.write_text(text)
    subprocess.run(["gcc", *flags.split(), "-Wl,--build-id", source, "-o", binary], check=True)
    separate = ["-ffunction-sections", "-fdata-sections", "-c", source, "-o", obj]
    subprocess.run(["gcc", *flags.split(), *separate], check=True)
    return ObjectFile.load(binary), CompiledObject.load(obj)


def differences(image: ObjectFile, obj: CompiledObject) -> dict[str, str]:
    """Function -> what is different about it."""
    stock = Stock(image, image.symtab)
    check = StockCheck(stock, NormalForms(obj), stock.unit_of(obj))
    found = {n: check.function(s) for n, s in obj.functions.items() if n in FUNCTIONS}
    return {name: str(text) for name, text in found.items() if text is not None}


@pytest.mark.parametrize(
    "flags", ["-O2", "-O1", "-O3", "-Os", "-O2 -fno-plt", "-O2 -fcf-protection", "-O2 -fPIC"]
)
def test_the_same_source_is_the_stock_code(tmp_path, flags):
    image, obj = built(tmp_path, SOURCE, flags)
    assert differences(image, obj) == {}


@pytest.mark.parametrize(
    ("function", "old", "new"),
    [
        ("text", '"text one"', '"text two"'),
        ("value", "x + 1000", "x + 1001"),
        ("calls", "twice(x) +", "value(x) +"),
        ("data", "return level + x +", "return other + x +"),
        ("jumps", "> 3", "< 3"),
        ("chooses", "case 4: return getchar(); case 5:", "case 5: return getchar(); case 4:"),
        ("real", "2.5", "2.75"),
        ("twice", "x * level", "x * other"),
    ],
)
def test_any_difference_is_seen_in_the_function_it_is_in(tmp_path, function, old, new):
    image, _ = built(tmp_path, SOURCE)
    assert old in SOURCE
    changed = SOURCE.replace(old, new)
    if function == "calls":
        changed = changed.replace("(int)strlen", "twice(2) + (int)strlen")
    _, obj = built(tmp_path, changed)
    found = differences(image, obj)
    assert function in found, found
    assert len(found) == 1, found


def test_sections_are_compared_one_by_one(tmp_path):
    image, _ = built(tmp_path, SOURCE)
    data = bytearray(image.data)
    text = image.section(".text")
    assert text is not None
    same = compare(image, ObjectFile(bytes(data), "copy"))
    assert same.exact
    assert same.same_file
    data[text.offset + 5] ^= 1
    other = compare(image, ObjectFile(bytes(data), "copy"))
    assert not other.exact
    assert other.differing == (".text",)
    assert ".text" in other.summary()


def test_another_build_id_alone_is_still_exact(tmp_path):
    image, _ = built(tmp_path, SOURCE)
    data = bytearray(image.data)
    note = image.section(".note.gnu.build-id")
    assert note is not None
    data[note.offset + note.size - 1] ^= 1
    report = compare(image, ObjectFile(bytes(data), "copy"))
    assert report.exact
    assert not report.same_build_id
