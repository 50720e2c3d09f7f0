# SPDX-License-Identifier: GPL-3.0-or-later
"""What relocations refer to: the addend alone does not say it."""

from __future__ import annotations

import subprocess

from wfpatch_build.compiled_object import CompiledObject
from wfpatch_build.references import References

SOURCE = """
static volatile int word;
static volatile char byte;
static volatile short half[4];
void immediates(void)
{
    word = 0x12345678;
    byte = 5;
    half[2] = 0x1234;
}
int plain(void) { return word; }
int second(void) { return half[1]; }
"""


def references(tmp_path, name: str) -> list[tuple[str, int]]:
    source, obj = tmp_path / "code.c", tmp_path / "code.o"
    source.write_text(SOURCE)
    flags = ["-O2", "-fPIE", "-ffunction-sections", "-fdata-sections"]
    subprocess.run(["gcc", *flags, "-c", source, "-o", obj], check=True)
    compiled = CompiledObject.load(obj)
    resolver = References(compiled)
    section = compiled.sections[compiled.functions[name].section]
    found = [resolver.resolve(section, r) for r in section.relocations]
    assert {r.kind for r in found} == {"data"}
    return [(r.name, r.offset) for r in sorted(found, key=lambda r: r.name)]


def test_an_immediate_behind_the_field_is_taken_into_account(tmp_path):
    assert references(tmp_path, "immediates") == [("byte", 0), ("half", 4), ("word", 0)]


def test_a_field_at_the_end_of_its_instruction(tmp_path):
    assert references(tmp_path, "plain") == [("word", 0)]
    assert references(tmp_path, "second") == [("half", 2)]
