# SPDX-License-Identifier: GPL-3.0-or-later
"""Linking patch ELFs against running programs: the linked code is written there and called."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sample_patch
from wfpatch.elf_object import objects
from wfpatch.errors import Refused
from wfpatch.link import LinkedPatch, link
from wfpatch.maps import MemoryMap
from wfpatch.memory import ProcessMemory
from wfpatch.patch_elf import (
    ImportedSymbol,
    NewEntry,
    ObjectSymbol,
    PatchElf,
    PatchSection,
    read_patch,
)
from wfpatch.relocations import RELOCATIONS

PROGRAMS = Path(__file__).parent / "programs"
SOURCE = (PROGRAMS / "linkable.c").read_text()
ROOM = 1 << 16


class Linkable:
    """A running program, and a place near its object for linked code."""

    def __init__(self, process: Any, part: str) -> None:
        self.process = process
        self.memory = ProcessMemory(process.pid)
        self.map = MemoryMap.read(process.pid)
        self.images = objects(process.pid, self.memory, self.map)
        self.image = next(i for i in self.images if part in i.path)
        step = 1 << 20
        wanted = self.image.start - 256 * step
        if wanted < 0:
            wanted = self.image.end + 256 * step  # not position-independent: at 4 MiB
        while not self.map.free(wanted, wanted + 2 * ROOM):
            wanted += step
        self.data_at, self.text_at = wanted, wanted + ROOM

    def link(self, patch: PatchElf, **options: Any) -> LinkedPatch:
        return link(patch, self.image, self.images, self.text_at, self.data_at, **options)

    def load(self, patch: PatchElf) -> LinkedPatch:
        linked = self.link(patch)
        assert self.process.ask(f"map {self.data_at} {2 * ROOM}") == "1"
        self.memory.write(linked.text_at, linked.text)
        if linked.data:
            self.memory.write(linked.data_at, linked.data)
        return linked

    def call(self, address: int, argument: int) -> str:
        return str(self.process.ask(f"call {address} {argument}"))


@pytest.fixture
def linkable(program: Any, start: Any) -> Any:
    """linkable(*flags) -> (path, Linkable)."""

    def make(*flags: str) -> tuple[Path, Linkable]:
        path = Path(program("linkable", *flags))
        return path, Linkable(start(path), path.name)

    return make


def _patch(path: Path, old: str, new: str, functions: Sequence[str], **options: Any) -> PatchElf:
    assert old in SOURCE
    return read_patch(sample_patch.build(path, SOURCE.replace(old, new), functions, **options))


OLD_WORK = SOURCE[
    SOURCE.index("\treturn helper(x) + global") : SOURCE.index(
        "__attribute__((noinline)) int choose"
    )
]


def _work(body: str, before: str = "") -> tuple[str, str]:
    """(old, new) for _patch: another end for work(), which has the static local ``calls``."""
    return OLD_WORK, body + "\n}\n" + before


@pytest.mark.parametrize("flags", [("-pie",), ("-no-pie",), ("-Wl,-z,now",), ("-Wl,-z,lazy",)])
def test_new_code_uses_the_objects_functions_and_data(
    linkable: Any, flags: tuple[str, ...]
) -> None:
    path, target = linkable(*flags)
    assert target.process.ready_line == f"ready {10 + 100 + 1000 + 2000 + 6 + 4 - 1}"
    old, new = _work(
        "\tglobal++;\n\treturn 7 * (helper(x) + global + thread_global + thread_local_ + calls +"
        " (int)strlen(names[x % 3]) + other(x));"
    )
    patch = _patch(path, old, new, ["work"])
    linked = target.load(patch)
    # calls has been 6, counter 10: both are the program's own
    expected = 7 * (11 + 101 + 1000 + 2000 + 7 + 3 + 3)
    assert target.call(linked.entry("work"), 1) == str(expected)
    # the program itself sees what new code wrote
    choose = target.image.address(_address(path, "choose"))
    assert target.call(choose, 0) == str(11 + 101 + 1000 + 2000 + 8 + 4 - 1)


def _address(path: Path, name: str) -> int:
    return sample_patch._Program(path).function(name).address


def test_a_replaced_functions_address_is_its_original_entry(linkable: Any) -> None:
    path, target = linkable()
    new = "\treturn (int)((unsigned long)other & 0xfff);"
    patch = _patch(path, *_work(new), ["work", "other", "choose"])
    linked = target.load(patch)
    expected = target.image.address(_address(path, "other")) & 0xFFF
    assert target.call(linked.entry("work"), 1) == str(expected)
    assert [f.address for f in linked.functions] == [
        target.image.address(_address(path, name)) for name in ("work", "other", "choose")
    ]
    # new choose calls work by its original entry: the program's old code still answers
    assert target.call(linked.entry("choose"), 0) == str(10 + 100 + 1000 + 2000 + 8 + 4 - 1)


def test_new_constants_tables_and_variables_come_along(linkable: Any) -> None:
    path, target = linkable()
    body = """
	static int fresh = 50;
	static int zeroes[1000];
	static int *const pointers[2] = {&fresh, &global};
	static const char *words[] = {"a", "bb", "ccc", "dddd"};
	fresh++;
	zeroes[x] += 5;
	switch (x) {
	case 0: return *pointers[0] + zeroes[0];
	case 1: return *pointers[1];
	case 2: return (int)strlen(words[fresh % 4]);
	case 3: return 33;
	case 4: return -44;
	case 5: return fresh;
	default: return zeroes[x];
	}"""
    patch = _patch(path, *_work(body), ["work"])
    linked = target.load(patch)
    entry = linked.entry("work")
    answers = [target.call(entry, x) for x in (0, 0, 1, 2, 3, 4, 5, 999)]
    assert answers == ["56", "62", "100", "3", "33", "-44", "57", "5"]
    assert any(section.zero_filled for section in patch.sections.values())


def test_imports_resolved_lazy_and_new(linkable: Any) -> None:
    """A slot in use, a lazy one, functions and data that the program does not import."""
    path, target = linkable("-Wl,-z,lazy")
    body = """
	extern const char *gnu_get_libc_version(void);
	extern int daylight;
	daylight = 3;
	if (x == 0) return (int)strlen(*(names + 2));
	if (x == 1) return (int)a64l("zz");
	if (x == 2) return gnu_get_libc_version()[0];
	return memchr(names[0], 'r', 4) != NULL ? daylight : 0;"""
    patch = _patch(path, *_work(body), ["work"], flags=("-O2", "-fPIC", "-fno-builtin"))
    (slot,) = target.image.slots_of("a64l", None)
    assert target.image.is_lazy(slot, target.image.slot_value(slot))
    assert target.image.slots_of("gnu_get_libc_version", None) == ()
    linked = target.load(patch)
    entry = linked.entry("work")
    assert [target.call(entry, x) for x in (0, 1, 2, 3)] == ["3", "4095", "50", "3"]
    assert target.process.ask("lazy") == "4095", "its own lazy slot still works"
    libc = next(image for image in target.images if image.soname == "libc.so.6")
    assert set(linked.imports) >= {"a64l", "gnu_get_libc_version", "daylight", "memchr"}
    assert all(address in libc for address in linked.imports.values())


def test_an_imported_variable_out_of_reach_is_refused(linkable: Any) -> None:
    """Compiled for an executable, new code expects a copy of the variable that is not there."""
    path, target = linkable()
    patch = _patch(path, *_work("\textern int daylight;\n\treturn daylight;"), ["work"])
    assert _refused(target, patch) == "symbol_out_of_reach"


def test_an_import_comes_from_the_slot_that_the_process_uses(
    program: Any, start: Any, linkable: Any
) -> None:
    """A preloaded definition wins for new code as it does for the program."""
    library = program("preloaded", shared=True)
    path = Path(program("linkable", "-Wl,-z,lazy", "-fno-builtin"))
    process = start(path, env={"LD_PRELOAD": str(library)})
    target = Linkable(process, path.name)
    linked = target.load(
        _patch(path, *_work("\treturn rand();"), ["work"], flags=("-O2", "-fPIE", "-fno-builtin"))
    )
    assert target.call(linked.entry("work"), 1) == "4242"


@pytest.mark.parametrize("model", ["-ftls-model=initial-exec"])
def test_new_code_of_a_library(program: Any, start: Any, tmp_path: Path, model: str) -> None:
    library = Path(
        program("linkable", "-DLIBRARY", model, "-Wl,-soname,libsample.so.1", shared=True)
    )
    path = Path(program("linkable", "-DUSES_LIBRARY", f"-L{library.parent}", f"-l:{library.name}"))
    (tmp_path / "libsample.so.1").symlink_to(library)
    process = start(path, env={"LD_LIBRARY_PATH": str(tmp_path)})
    target = Linkable(process, library.name)
    old, new = _work(
        "\tglobal++;\n\treturn 7 * (helper(x) + global + thread_global + thread_local_ + calls +"
        " (int)strlen(names[x % 3]) + other(x));"
    )
    patch = _patch(library, old, new, ["work"], flags=("-O2", "-fPIC", model))
    kinds = {r.type for s in patch.sections.values() for r in s.relocations}
    assert kinds & {9, 41, 42}, "it refers to its own global through a slot"
    linked = target.load(patch)
    # the program interposes global and thread_global, whose values it has not changed; new code
    # binds to the library's own, by address: both hold the same numbers
    assert target.call(linked.entry("work"), 1) == str(7 * (11 + 101 + 1000 + 2000 + 6 + 3 + 3))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_exceptions_propagate_once_the_frames_are_registered(tmp_path: Path, start: Any) -> None:
    path = sample_patch.compile_program(
        SOURCE, tmp_path / "thrower", ("-O2", "-Wno-write-strings"), "g++"
    )
    process = start(path)
    target = Linkable(process, path.name)
    new_source = SOURCE.replace(
        "\tif (x > 5)\n\t\tthrow x;\n\treturn x;",
        """	struct Counted { int *at; ~Counted() { ++*at; } };
	try {
		Counted counted = {&global};
		if (x > 5)
			throw x;
	} catch (int caught) {
		if (caught > 10)
			throw caught + 1;
		return caught + global;
	}
	return x;""",
    )
    functions = ["_Z7throweri"]
    patch = read_patch(sample_patch.build(path, new_source, functions, compiler="g++"))
    linked = target.load(patch)
    assert linked.eh_frame is not None
    assert process.ask(f"register {linked.eh_frame[0]}") == "1"
    entry = linked.entry("_Z7throweri")
    assert target.call(entry, 3) == "3"
    assert target.call(entry, 7) == str(7 + 102)
    assert target.call(entry, 20) == "caught 21"


def test_layout(linkable: Any) -> None:
    path, target = linkable()
    body = '\tstatic int fresh;\n\tfresh += x;\n\treturn printf("%d", fresh) + rand() + helper(x);'
    patch = _patch(path, *_work(body), ["work", "choose"])
    linked = target.link(patch)
    pieces = sorted((p for f in linked.functions for p in f.pieces), key=lambda p: p.low)
    assert pieces
    text = range(linked.text_at, linked.text_at + len(linked.text))
    previous = linked.text_at
    for piece in pieces:
        assert piece.low % 16 == 0
        assert previous <= piece.low
        assert piece.high in text
        previous = piece.high + 1
    # the stubs: jmp *slot, with the slot in the data part, 8-byte aligned, holding the import
    stubs = linked.text.count(b"\xff\x25")
    assert stubs == len(linked.imports) == 2
    at = -1
    targets = set()
    for _ in range(stubs):
        at = linked.text.index(b"\xff\x25", at + 1)
        (distance,) = struct.unpack_from("<i", linked.text, at + 2)
        slot = linked.text_at + at + 6 + distance - linked.data_at
        assert slot % 8 == 0
        targets.add(struct.unpack_from("<Q", linked.data, slot)[0])
    assert targets == set(linked.imports.values())
    assert linked.eh_frame is not None
    start, size = linked.eh_frame
    assert start % 8 == 0
    end = start + size - linked.text_at
    assert linked.text[end : end + 4] == bytes(4)
    # deterministic: the same patch at the same place gives the same bytes
    assert target.link(patch) == linked


def test_unwind_information_leads_to_the_new_code(linkable: Any) -> None:
    path, target = linkable()
    patch = _patch(path, *_work("\treturn helper(x) + atoi(names[0]);"), ["work", "choose"])
    linked = target.link(patch)
    assert linked.eh_frame is not None
    start, size = linked.eh_frame
    offset, begins = start - linked.text_at, set()
    end = offset + size
    while offset < end:
        length, pointer = struct.unpack_from("<II", linked.text, offset)
        if pointer:
            (distance,) = struct.unpack_from("<i", linked.text, offset + 8)
            begins.add(linked.text_at + offset + 8 + distance)
        offset += 4 + length
    assert begins == {piece.low for f in linked.functions for piece in f.pieces}


def test_pieces_of_each_function_are_its_own(linkable: Any) -> None:
    """New functions count for those that can reach them, and for no others."""
    path, target = linkable()
    old, new = _work("\treturn added(x) + 1;")
    source = SOURCE.replace(old, new).replace(
        "__attribute__((noinline)) int work",
        "__attribute__((noinline)) static int added(int x)\n"
        "{ return x < 0 ? (abort(), 1) : helper(x) * 2; }\n"
        "__attribute__((noinline)) int work",
    )
    patch = read_patch(sample_patch.build(path, source, ["work", "choose"]))
    linked = target.link(patch)
    work, choose = linked.functions
    names = {s.name for s in patch.sections.values() if s.executable}
    assert {".text.work", ".text.added", ".text.choose"} <= names
    assert work.pieces[0].low == work.entry
    assert len(work.pieces) >= 2
    assert [piece.low for piece in choose.pieces] == [choose.entry]
    assert not {p.low for p in work.pieces} & {p.low for p in choose.pieces}
    assert all(p.interval == (p.low, p.high) for f in linked.functions for p in f.pieces)


def _refused(target: Linkable, patch: PatchElf, **options: Any) -> str:
    before = target.memory.read(target.image.start, 4096)
    with pytest.raises(Refused) as caught:
        target.link(patch, **options)
    assert target.memory.read(target.image.start, 4096) == before
    assert caught.value.message
    return caught.value.reason


def _with_owner(patch: PatchElf, symbol: str, changes: dict[str, Any]) -> PatchElf:
    symbols = tuple(
        replace(s, owner=replace(s.owner, **changes))
        if s.owner is not None and s.name == symbol
        else s
        for s in patch.symbols
    )
    assert symbols != patch.symbols
    return replace(patch, symbols=symbols)


def test_what_cannot_be_linked_is_refused(linkable: Any) -> None:
    path, target = linkable()
    body = '\treturn printf("%d", thread_global) + helper(x) + global + (int)a64l("z");'
    patch = _patch(path, *_work(body), ["work"])
    names = {s.name: s.owner for s in patch.symbols if s.owner}
    assert isinstance(names["a64l"], ImportedSymbol)
    assert isinstance(names["thread_global"], ObjectSymbol)
    target.link(patch)  # as it is, it links
    for name, changes in (
        ("a64l", {"name": "no_such_function"}),
        ("a64l", {"version": "GLIBC_9.9"}),
        ("printf", {"got": (64,)}),
        ("helper", {"address": 1 << 40}),
        ("helper", {"address": names["global"].address}),
        ("global", {"address": target.image.end}),
        ("global", {"kind": "tls"}),
        ("thread_global", {"kind": "data", "address": names["global"].address}),
        ("thread_global", {"address": 1 << 20}),
    ):
        assert _refused(target, _with_owner(patch, name, changes)) == "symbol_not_found", (
            name,
            changes,
        )
    assert _refused(target, patch, text_room=64) == "region_too_small"
    assert _refused(target, patch, data_room=4) == "region_too_small"


def test_data_out_of_reach_is_refused_and_functions_get_stubs(linkable: Any) -> None:
    path, target = linkable()
    reaching = _patch(path, *_work("\treturn helper(x);"), ["choose"])
    far = target.image.start - (5 << 30)
    linked = link(reaching, target.image, target.images, far + ROOM, far)
    assert linked.text.count(b"\xff\x25") == 1, "work is reached through a stub"
    (slot,) = struct.unpack_from("<Q", linked.data, 0)
    assert slot == target.image.address(_address(path, "work"))
    data = _patch(path, *_work("\treturn global;"), ["work"])
    with pytest.raises(Refused) as caught:
        link(data, target.image, target.images, far + ROOM, far)
    assert caught.value.reason == "symbol_out_of_reach"
    assert "global" in caught.value.message or "calls" in caught.value.message


def test_an_unresolved_indirect_function_is_found_or_refused(linkable: Any) -> None:
    """IFUNCs: the choice that the process made is taken over, never made anew."""
    path, target = linkable()
    patch = _patch(
        path,
        *_work('\treturn strspn("aab", x ? "a" : "b");'),
        ["work"],
        flags=("-O2", "-fPIE", "-fno-builtin"),
    )
    libc = next(image for image in target.images if image.soname == "libc.so.6")
    found = libc.definition("strspn", None)
    assert found is not None
    assert found.type == 10
    linked = target.load(patch)
    assert linked.imports["strspn"] != libc.address(found.value), "not the resolver itself"
    assert target.call(linked.entry("work"), 1) == "2"


def test_a_static_program_has_all_it_needs_in_itself(linkable: Any) -> None:
    path, target = linkable("-static")
    linked = target.load(_patch(path, *_work('\treturn helper(x) + atoi("9");'), ["work"]))
    assert target.call(linked.entry("work"), 1) == "20"
    assert linked.imports == {}


def test_nothing_is_bound_to_the_vdso_by_name(linkable: Any) -> None:
    """It is in the dynamic linker's list, right behind the program, and defines clock_gettime."""
    path, target = linkable()
    body = "\textern int clock_gettime(int, void *);\n\tlong now[2];\n"
    patch = _patch(path, *_work(body + "\treturn clock_gettime(1, now);"), ["work"])
    vdso = next(image for image in target.images if image.path == "[vdso]")
    assert vdso.definition("clock_gettime", None) is not None
    linked = target.load(patch)
    assert target.call(linked.entry("work"), 1) == "0"
    libc = next(image for image in target.images if image.soname == "libc.so.6")
    assert linked.imports["clock_gettime"] in libc


def test_a_slot_that_the_process_changed_counts(linkable: Any) -> None:
    """Profilers and sanitizers redirect slots: new code goes where the program goes."""
    path, target = linkable("-Wl,-z,now")
    (slot,) = target.image.slots_of("a64l", None)
    libc = next(image for image in target.images if image.soname == "libc.so.6")
    found = libc.definition("atol", None)
    assert found is not None
    target.memory.write(slot, struct.pack("<Q", libc.address(found.value)))
    linked = target.load(_patch(path, *_work('\treturn (int)a64l("17");'), ["work"]))
    assert target.call(linked.entry("work"), 1) == "17"
    # but never out of all objects
    target.memory.write(slot, struct.pack("<Q", 0x1234_5678))
    patch = _patch(path, *_work('\treturn (int)a64l("17");'), ["work"])
    assert _refused(target, patch) == "symbol_not_found"


def test_code_sections_never_touch(linkable: Any) -> None:
    """A return address behind a section's last call is not the next section's entry."""
    path, target = linkable()
    good = _patch(path, *_work("\treturn x;"), ["work", "choose"])
    places = {"work": NewEntry(1, 0, 16), "choose": NewEntry(2, 0, 32)}
    sections = {
        number: PatchSection(number, ".text", False, True, 16, size, b"\xc3" * size, ())
        for number, size in ((1, 16), (2, 32))
    }
    patch = replace(
        good,
        functions=tuple(replace(f, entry=places[f.name]) for f in good.functions),
        sections=sections,
        eh_frame=None,
    )
    linked = target.link(patch)
    one, two = (f.pieces[0] for f in linked.functions)
    assert one.high < two.low
    assert linked.text[one.high - linked.text_at : two.low - linked.text_at].strip(b"\xcc") == b""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("R_X86_64_64", 0x5000 + 7),
        ("R_X86_64_PC32", 0x6000 + 7 - 0x1000),
        ("R_X86_64_PLT32", 0x6000 + 7 - 0x1000),
        ("R_X86_64_GOTPCREL", 0x7000 + 7 - 0x1000),
        ("R_X86_64_GOTPCRELX", 0x7000 + 7 - 0x1000),
        ("R_X86_64_REX_GOTPCRELX", 0x7000 + 7 - 0x1000),
        ("R_X86_64_GOTTPOFF", 0x8000 + 7 - 0x1000),
        ("R_X86_64_TPOFF32", -0x40 + 7),
        ("R_X86_64_PC64", 0x5000 + 7 - 0x1000),
    ],
)
def test_each_relocation_is_computed_as_the_abi_says(name: str, expected: int) -> None:
    class Operands:
        symbol_name, place, addend = "symbol", 0x1000, 7

        def address(self) -> int:
            return 0x5000

        def near_address(self) -> int:
            return 0x6000

        def got_slot(self) -> int:
            return 0x7000

        def tls_slot(self) -> int:
            return 0x8000

        def tls_offset(self) -> int:
            return -0x40

    kinds = {kind.__name__: kind for kind in RELOCATIONS.values()}
    assert len(kinds) == 9
    kind = kinds[name]
    encoded = kind.encode(Operands())
    assert len(encoded) == kind.width == (8 if name.endswith("64") and "TPOFF" not in name else 4)
    assert int.from_bytes(encoded, "little", signed=True) == expected
