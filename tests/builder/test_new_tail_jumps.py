# SPDX-License-Identifier: GPL-3.0-or-later
"""Indirect jumps of new code to replaced functions, in what the compiler makes."""

from __future__ import annotations

import subprocess

import pytest
from wfpatch_build.compiled_object import SHF_ALLOC, SHF_EXECINSTR, CompiledObject
from wfpatch_build.elf_writer import OutRelocation, OutSection, OutSymbol
from wfpatch_build.instructions import decode_one, is_call
from wfpatch_build.new_tail_jumps import new_tail_edges

SOURCE = """
extern int (*pointer)(int);
int imported(int);
int by_pointer(int n) { return pointer(n + 1); }
int by_argument(int (*to)(int), int n) { return to(n + 1); }
int by_switch(int n)
{
    switch (n) {
    case 0: return imported(1) + 3; case 1: return imported(7) * 5; case 2: return imported(2) - 9;
    case 3: return imported(4) ^ 77; case 4: return imported(n) + 12; case 5: return imported(6);
    case 6: return imported(5) * 11; case 7: return imported(3) - 2;
    }
    return n;
}
int by_import(int n) { return imported(n + 1); }
int by_call(int n) { return pointer(n) + 1; }
int by_return(int n) { return n + 1; }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledObject:
    folder = tmp_path_factory.mktemp("jumps")
    (folder / "new.c").write_text(SOURCE)
    subprocess.run(
        ["gcc", "-O2", "-fPIE", "-fno-plt", "-ffunction-sections", "-fcf-protection=none"]
        + ["-c", "-o", folder / "new.o", folder / "new.c"],
        check=True,
    )
    return CompiledObject.load(folder / "new.o")


def edges(obj: CompiledObject, name: str, taken: set[int]) -> list[str]:
    """Of a patch that replaces ``name`` (at 0x1000) and ``target`` (at 0x2000)."""
    original = next(s for s in obj.sections if s.name == f".text.{name}")
    section = OutSection(original.name, SHF_ALLOC | SHF_EXECINSTR, 16, original.data)
    owners = {}
    for relocation in original.relocations:
        symbol = obj.symbols[relocation.symbol]
        owners[symbol.name] = {"owner": "import" if symbol.name == "imported" else "object"}
        owners[symbol.name]["address"] = 0x5000
        section.relocations.append(
            OutRelocation(
                relocation.offset, relocation.type, f"undefined:{symbol.name}", relocation.addend
            )
        )
    entry = OutSymbol("new", name, 2, section)
    names = {0x1000: name, 0x2000: "target"}
    return new_tail_edges([section], {0x1000: entry}, names, owners, taken)[0x1000]


@pytest.mark.parametrize("name", ["by_pointer", "by_argument"])
def test_an_indirect_jump_may_reach_what_is_taken(compiled: CompiledObject, name: str) -> None:
    assert edges(compiled, name, {0x2000}) == ["target"]
    assert edges(compiled, name, {0x1000, 0x2000, 0x3000}) == [name, "target"]
    assert edges(compiled, name, set()) == []


@pytest.mark.parametrize("name", ["by_switch", "by_import", "by_call", "by_return"])
def test_what_is_none(compiled: CompiledObject, name: str) -> None:
    text = next(s for s in compiled.sections if s.name == f".text.{name}").data
    if name in ("by_switch", "by_import"):
        assert b"\xff" in text  # there is a jump to be told apart
    assert edges(compiled, name, {0x1000, 0x2000}) == []


def test_new_code_takes_addresses_too(compiled: CompiledObject) -> None:
    """A `lea` of a replaced function, or its address in data; not a call of it."""
    section = OutSection(".text.new", SHF_ALLOC | SHF_EXECINSTR, 16, bytes.fromhex("ffe0"))
    data = OutSection(".data.rel.ro", SHF_ALLOC, 8, bytes(8))
    entry = OutSymbol("new", "new", 2, section)
    owners = {"target": {"owner": "object", "address": 0x2000}}
    names = {0x1000: "new", 0x2000: "target"}
    assert new_tail_edges([section, data], {0x1000: entry}, names, owners, set())[0x1000] == []
    data.relocations.append(OutRelocation(0, 1, "undefined:target", 0))
    assert new_tail_edges([section, data], {0x1000: entry}, names, owners, set())[0x1000] == [
        "target"
    ]
    called = OutSection(
        ".text.called", SHF_ALLOC | SHF_EXECINSTR, 16, bytes.fromhex("e800000000ffe0")
    )
    called.relocations.append(OutRelocation(1, 4, "undefined:target", -4))
    entry = OutSymbol("new", "new", 2, called)
    assert new_tail_edges([called], {0x1000: entry}, names, owners, set())[0x1000] == []
    # In code that is no replaced function's own it counts for all.
    found = new_tail_edges([section, data], {}, names, owners, set())
    assert found == {0x1000: ["target"], 0x2000: ["target"]}


def test_a_system_call_is_no_call() -> None:
    assert not is_call(decode_one(bytes.fromhex("0f05"), 0))
    assert is_call(decode_one(bytes.fromhex("e800000000"), 0))
    assert is_call(decode_one(bytes.fromhex("ff10"), 0))
