# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading patch ELFs: what a good one says, and that no damaged one does harm."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import relocatable_elf as elf
import sample_patch
from wfpatch.errors import WfpatchError
from wfpatch.patch_elf import ImportedSymbol, ObjectSymbol, PatchElf, read_patch

OLD = """
#include <stdio.h>
#include <stdlib.h>
static int counter; int shared = 3; static __thread int local;
__attribute__((noinline, cold)) void warn(int x) { fprintf(stderr, "big %d\\n", x); }
static __attribute__((noinline)) int helper(int x) { counter += x; return counter; }
__attribute__((noinline)) int step(int x)
{
    static int calls;
    calls++;
    if (__builtin_expect(x > 1000, 0)) { warn(x); abort(); }
    return helper(x) + shared + local + calls;
}
__attribute__((noinline)) int choose(int x)
{
    switch (x) {
    case 0: return step(3);
    case 1: return 77;
    case 2: return helper(2) * 3;
    case 3: return 12;
    case 4: return helper(9);
    case 5: return -4;
    default: return 0;
    }
}
int main(int argc, char **argv) { local = argc; printf("%d %d\\n", step(argc), choose(argc)); }
"""
NEW = OLD.replace("x > 1000", "x > 2000").replace("return -4", 'return printf("minus %p", &stderr)')


@pytest.fixture(scope="module")
def old_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_patch.compile_program(OLD, tmp_path_factory.mktemp("patch") / "program")


@pytest.fixture(scope="module")
def good(old_program: Path) -> bytes:
    return sample_patch.build(old_program, NEW, ["step", "choose"])


def test_a_good_patch_is_read_in_full(old_program: Path, good: bytes) -> None:
    patch = read_patch(good)
    assert [f.name for f in patch.functions] == ["step", "choose"]
    step = patch.function("step")
    image = old_program.read_bytes()
    offset = image.index(step.main.old)
    assert image[offset : offset + step.size] == step.main.old
    assert step.main.mask == b"\xff" * step.size
    assert step.migrate == "after_direct_call", "choose jumps to it"
    assert patch.function("choose").tail_edges == ("step",)
    assert patch.function("choose").migrate == "always"
    cold = [piece.kind for piece in step.pieces]
    assert cold == ["cold"], "the unlikely branch lies in step.cold"
    owners = {s.name: s.owner for s in patch.symbols if s.owner is not None}
    helper = owners["helper"]
    assert isinstance(helper, ObjectSymbol)
    assert (helper.kind, helper.file) == ("function", "source.c")
    printed = owners["printf"]
    assert isinstance(printed, ImportedSymbol)
    assert printed.version == "GLIBC_2.2.5"
    assert len(printed.got) == 1
    tls = owners["local"]
    assert isinstance(tls, ObjectSymbol)
    assert tls.kind == "tls"
    assert patch.eh_frame is not None
    entry = step.entry
    assert patch.sections[entry.section].executable
    assert patch.sections[entry.section].name == ".text.step"
    jumps = next(s for s in patch.sections.values() if s.name == ".rodata.choose")
    assert not jumps.executable
    assert not jumps.writable
    assert len(jumps.relocations) == jumps.size // 4


def _section_header(data: bytes, name: str) -> int:
    """The file offset of a section's header."""
    (table,) = struct.unpack_from("<Q", data, 40)
    count, names = struct.unpack_from("<HH", data, 60)
    (strings,) = struct.unpack_from("<Q", data, table + 64 * names + 24)
    for index in range(count):
        (offset,) = struct.unpack_from("<I", data, table + 64 * index)
        if data[strings + offset :].split(b"\0", 1)[0] == name.encode():
            return table + 64 * index
    raise AssertionError(name)


def _meta(data: bytes) -> Any:
    header = _section_header(data, ".wfpatch.meta")
    offset, size = struct.unpack_from("<QQ", data, header + 24)
    return json.loads(data[offset : offset + size])


def _with_meta(data: bytes, meta: Any, raw: bytes | None = None) -> bytes:
    """The patch ELF with other metadata, appended at its end."""
    text = sample_patch.canonical_json(meta) if raw is None else raw
    header = _section_header(data, ".wfpatch.meta")
    changed = bytearray(data)
    struct.pack_into("<QQ", changed, header + 24, len(data), len(text))
    return bytes(changed) + text


def _change(data: bytes, change: Callable[[Any], None]) -> bytes:
    meta = _meta(data)
    change(meta)
    return _with_meta(data, meta)


def _poke(data: bytes, offset: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, value)
    return bytes(changed)


def _refusal(data: bytes) -> str:
    with pytest.raises(WfpatchError) as caught:
        read_patch(data)
    return caught.value.reason


def _set(*path: Any) -> Callable[[Any], None]:
    """A change of metadata: the last of ``path`` is the value."""

    def change(meta: Any) -> None:
        for key in path[:-2]:
            meta = meta[key]
        meta[path[-2]] = path[-1]

    return change


def _drop(*path: Any) -> Callable[[Any], None]:
    def change(meta: Any) -> None:
        for key in path[:-1]:
            meta = meta[key]
        del meta[path[-1]]

    return change


MALFORMED_META = {
    "unknown top field": _set("more", 1),
    "unknown field in a function": _set("functions", 0, "more", 1),
    "missing field": _drop("functions", 0, "migrate"),
    "no functions": _set("functions", []),
    "unknown migrate rule": _set("functions", 0, "migrate", "sometimes"),
    "tail edge to nowhere": _set("functions", 0, "tail_edges", ["nothing"]),
    "new tail edge to anywhere": _set("functions", 0, "new_tail_edges", ["*"]),
    "old bytes beyond their section": _set("functions", 0, "old_offset", 10**6),
    "negative size": _set("functions", 0, "size", -1),
    "address beyond user space": _set("functions", 0, "address", 1 << 63),
    "address outside of text": _set("functions", 0, "address", 1 << 40),
    "symbol that is not there": _set("functions", 0, "symbol", "nothing"),
    "symbol that is undefined": _set("functions", 0, "symbol", "helper"),
    "two functions, one entry": _set("functions", 0, "symbol", "choose"),
    "first instruction of 16 bytes": _set("functions", 0, "displaced", "length", 16),
    "first instruction without bytes": _set("functions", 0, "displaced", "code", ""),
    "code in upper-case hex": _set("functions", 0, "displaced", "code", "4883EC08"),
    "fixup beyond the code": _set(
        "functions", 0, "displaced", "fixups", [{"offset": 1, "addend": -4, "target": 0}]
    ),
    "float": _set("functions", 0, "displaced", "length", 4.0),
    "true for a number": _set("functions", 0, "displaced", "length", True),
    "hold of four bytes": _set("functions", 0, "hold", "length", 4),
    "hold whose boundaries go back": _set("functions", 0, "hold", "boundaries", [[0, 0], [0, 4]]),
    "hold without its first boundary": _set("functions", 0, "hold", "boundaries", [[4, 4]]),
    "inner entry of 5": _set("functions", 0, "inner_entries", [5]),
    "padding inside the function": lambda m: m["functions"][0].update(
        padding={"address": m["functions"][0]["address"] + 5, "size": 8}
    ),
    "undefined symbol without owner": _drop("symbols", "helper"),
    "owner without symbol": lambda m: m["symbols"].update(more=m["symbols"]["helper"]),
    "unknown owner": _set("symbols", "helper", "owner", "someone"),
    "GOT slots out of order": _set("symbols", "printf", "got", [16, 8]),
    "build-id that is no hex": _set("object", "build_ids", ["xyz"]),
    "no build-id": _set("object", "build_ids", []),
    "terminal control in a name": _set("object", "name", "\x1b[2J"),
    "overlapping functions": lambda m: m["functions"][0].update(
        address=m["functions"][1]["address"] + 1
    ),
}


@pytest.mark.parametrize("name", sorted(MALFORMED_META))
def test_wrong_metadata_are_refused(good: bytes, name: str) -> None:
    assert _refusal(_change(good, MALFORMED_META[name])) == "patch_elf_malformed"


def test_unchanged_metadata_pass_through_the_same_machinery(good: bytes) -> None:
    assert read_patch(_with_meta(good, _meta(good))) == read_patch(good)


def test_only_canonical_json_is_taken(good: bytes) -> None:
    loose = json.dumps(_meta(good), sort_keys=True).encode()
    assert _refusal(_with_meta(good, None, loose)) == "patch_elf_malformed"
    deep = b"[" * 100_000
    assert _refusal(_with_meta(good, None, deep)) == "patch_elf_malformed"


def test_another_format_or_machine_is_told_apart_from_damage(good: bytes) -> None:
    assert _refusal(_change(good, _set("format", 2))) == "patch_elf_unsupported"
    assert _refusal(_change(good, _set("machine", "aarch64"))) == "patch_elf_unsupported"
    assert _refusal(_poke(good, 18, "<H", 183)) == "patch_elf_unsupported"


def _relocation(data: bytes, section: str) -> int:
    header = _section_header(data, ".rela" + section)
    (offset,) = struct.unpack_from("<Q", data, header + 24)
    return int(offset)


@pytest.mark.parametrize(
    ("number", "name"), [(11, "32S"), (19, "TLSGD"), (10, "R_X86_64_32"), (99, "99")]
)
def test_unsupported_relocations_are_named(good: bytes, number: int, name: str) -> None:
    place = _relocation(good, ".text.step")
    (info,) = struct.unpack_from("<Q", good, place + 8)
    with pytest.raises(WfpatchError) as caught:
        read_patch(_poke(good, place + 8, "<Q", info >> 32 << 32 | number))
    assert caught.value.reason == "unsupported_relocation"
    assert name in caught.value.message
    assert caught.value.result["type"] == number


def _header_change(section: str, field: int, form: str, value: int) -> Callable[[bytes], bytes]:
    return lambda data: _poke(data, _section_header(data, section) + field, form, value)


MALFORMED_ELF: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "no ELF": lambda data: b"\x7fELG" + data[4:],
    "32-bit": lambda data: _poke(data, 4, "<B", 1),
    "big endian": lambda data: _poke(data, 5, "<B", 2),
    "executable": lambda data: _poke(data, 16, "<H", 2),
    "section headers beyond the file": lambda data: _poke(data, 40, "<Q", len(data) - 63),
    "section headers near 2**64": lambda data: _poke(data, 40, "<Q", (1 << 64) - 64),
    "too many sections": lambda data: _poke(data, 60, "<H", 0xFFFE),
    "names in no section": lambda data: _poke(data, 62, "<H", 0xFFFE),
    "section beyond the file": _header_change(".text.step", 32, "<Q", 1 << 40),
    "section whose end wraps": _header_change(".text.step", 24, "<Q", (1 << 64) - 16),
    "writable code": _header_change(".text.step", 8, "<Q", 7),
    "merged strings": _header_change(".text.step", 8, "<Q", 0x32),
    "thread-local section": _header_change(".text.step", 8, "<Q", 0x402),
    "alignment of 3": _header_change(".text.step", 48, "<Q", 3),
    "alignment of 1 GiB": _header_change(".text.step", 48, "<Q", 1 << 30),
    "init array": _header_change(".text.step", 4, "<I", 14),
    "zero-filled code": _header_change(".text.step", 4, "<I", 8),
    "zero-filled section of 4 EiB": lambda data: _header_change(
        ".rodata.choose.str1.1", 4, "<I", 8
    )(_header_change(".rodata.choose.str1.1", 32, "<Q", 1 << 62)(data)),
    "relocations for no section": _header_change(".rela.text.step", 44, "<I", 999),
    "relocations for the notes": lambda data: _header_change(
        ".rela.text.step", 44, "<I", _index(data, ".wfpatch.meta")
    )(data),
    "relocations of the same section twice": lambda data: _header_change(
        ".rela.text.step", 44, "<I", _index(data, ".text.choose")
    )(data),
    "relocation table of odd size": _header_change(".rela.text.step", 32, "<Q", 25),
    "symbol table of odd size": _header_change(".symtab", 32, "<Q", 25),
    "symbol table without names": _header_change(".symtab", 40, "<I", 0),
    "relocation beyond its section": lambda data: _poke(
        data, _relocation(data, ".text.step"), "<Q", 0x7FFFFFFFFFFFFFFF
    ),
    "relocation one byte beyond": lambda data: _poke(
        data, _relocation(data, ".text.step"), "<Q", _size(data, ".text.step") - 3
    ),
    "relocation of symbol 0": lambda data: _poke(
        data, _relocation(data, ".text.step") + 12, "<I", 0
    ),
    "relocation of no symbol": lambda data: _poke(
        data, _relocation(data, ".text.step") + 12, "<I", 1 << 31
    ),
    "mask shorter than old bytes": _header_change(".wfpatch.mask", 32, "<Q", 3),
    "mask with other bytes": lambda data: _poke(data, _offset(data, ".wfpatch.mask"), "<B", 1),
    "metadata that are loaded": _header_change(".wfpatch.meta", 8, "<Q", 2),
    "metadata twice": lambda data: _header_change(
        ".wfpatch.old",
        0,
        "<I",
        struct.unpack_from("<I", data, _section_header(data, ".wfpatch.meta"))[0],
    )(data),
}


def _index(data: bytes, section: str) -> int:
    (table,) = struct.unpack_from("<Q", data, 40)
    return int((_section_header(data, section) - table) // 64)


def _size(data: bytes, section: str) -> int:
    return int(struct.unpack_from("<Q", data, _section_header(data, section) + 32)[0])


def _offset(data: bytes, section: str) -> int:
    return int(struct.unpack_from("<Q", data, _section_header(data, section) + 24)[0])


@pytest.mark.parametrize("name", sorted(MALFORMED_ELF))
def test_damaged_structure_is_refused(good: bytes, name: str) -> None:
    changed = MALFORMED_ELF[name](good)
    assert changed != good
    assert _refusal(changed) == "patch_elf_malformed"


def test_symbols_that_clash_are_refused(old_program: Path) -> None:
    """Two undefined symbols of one name would make the owner ambiguous."""
    text = elf.Section(".text.f", elf.SHT_PROGBITS, elf.SHF_ALLOC | elf.SHF_EXECINSTR, b"\xc3" * 16)
    symbols = [
        elf.Symbol("f", elf.STT_FUNC, text, 0, 1),
        elf.Symbol("g", elf.STT_NOTYPE),
        elf.Symbol("g", elf.STT_NOTYPE),
    ]
    base = _meta(sample_patch.build(old_program, NEW, ["step"]))
    base["functions"][0].update(symbol="f", pieces=[], tail_edges=[], new_tail_edges=[])
    base["symbols"] = {
        "g": {"owner": "import", "name": "g", "version": None, "kind": "data", "got": []}
    }
    old = b"\x90" * 200

    def made(count: int) -> bytes:
        notes = {
            ".wfpatch.meta": sample_patch.canonical_json(base),
            ".wfpatch.old": old,
            ".wfpatch.mask": b"\xff" * len(old),
        }
        return elf.write([text], symbols[:count], notes)

    assert read_patch(made(2)).functions[0].entry.size == 1
    assert _refusal(made(3)) == "patch_elf_malformed"


INTERESTING = (0, 1, 2, 3, 4, 7, 8, 24, 63, 64, 0x7F, 0x80, 0xFF, 0xFF00, 0xFFF1, 0xFFFF)
INTERESTING_WIDE = (1 << 20, 1 << 31, (1 << 32) - 1, 1 << 47, 1 << 62, 1 << 63, (1 << 64) - 1)


def _mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    kind = chance.randrange(4)
    if kind == 0:
        return bytes(changed[: chance.randrange(len(changed))])
    if kind == 1:
        for _ in range(chance.randrange(1, 9)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    elif kind == 2:
        start = chance.randrange(len(changed))
        changed[start:start] = chance.randbytes(chance.randrange(1, 65))
    else:
        start = chance.randrange(len(changed))
        del changed[start : start + chance.randrange(1, 65)]
    return bytes(changed)


def _mutate_structure(data: bytes, chance: random.Random) -> bytes:
    """Fields of the file header, section headers, symbols and relocations."""
    changed = bytearray(data)
    places = list(range(0, 64, 2)) + list(
        range(struct.unpack_from("<Q", data, 40)[0], len(data), 4)
    )
    for section in (".symtab", ".rela.text.step", ".rela.eh_frame"):
        start = _offset(data, section)
        places += range(start, start + _size(data, section), 4)
    for _ in range(chance.randrange(1, 4)):
        place = chance.choice(places)
        value = chance.choice(INTERESTING + INTERESTING_WIDE + (chance.getrandbits(64),))
        form = chance.choice(["<B", "<H", "<I", "<Q"])
        size = struct.calcsize(form)
        if place + size <= len(changed):
            struct.pack_into(form, changed, place, value & (1 << 8 * size) - 1)
    return bytes(changed)


def _mutate_meta(data: bytes, chance: random.Random) -> bytes:
    """One or two values anywhere in the metadata, which stay canonical JSON."""
    meta = copy.deepcopy(_meta(data))
    values = [None, True, -1, "", "x", "\x1b", [], {}, [[]], 10**30, "*", "f" * 100, 5, 4096]
    values += [*INTERESTING, *INTERESTING_WIDE]
    for _ in range(chance.randrange(1, 3)):
        node, path = meta, []
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = chance.choice(keys)
            path.append(key)
            if isinstance(node[key], (dict, list)) and node[key] and chance.random() < 0.9:
                node = node[key]
                continue
            if isinstance(node, dict) and chance.random() < 0.15:
                del node[key]
            elif isinstance(node[key], int) and chance.random() < 0.4:
                node[key] += chance.choice((-1, 1, -8, 8, 4096))
            else:
                node[key] = copy.deepcopy(chance.choice(values))
            break
    return _with_meta(data, meta)


def test_ten_thousand_mutations_only_ever_refuse(good: bytes) -> None:
    """A hostile patch ELF is read or refused, quickly; nothing else may happen.

    WFPATCH_FUZZ_SEED repeats a run; the failing input's number and seed are in the message.
    """
    seed = int(os.environ.get("WFPATCH_FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    mutators = (_mutate_bytes, _mutate_structure, _mutate_meta)
    passed, reasons = 0, set()
    for number in range(10_000):
        chance = random.Random(seed * 10_000 + number)
        data = mutators[number % 3](good, chance)
        started = time.process_time()
        try:
            result = read_patch(data)
        except WfpatchError as error:
            reasons.add(error.reason)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, input {number}: {error!r}") from error
        else:
            assert isinstance(result, PatchElf)
            passed += 1
        spent = time.process_time() - started
        assert spent < 2, f"seed {seed}, input {number} took {spent:.1f} s"
    # a mutator that never got past the first check would prove nothing
    assert reasons >= {"patch_elf_malformed", "patch_elf_unsupported", "unsupported_relocation"}
    assert passed > 50
