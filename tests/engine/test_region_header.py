# SPDX-License-Identifier: GPL-3.0-or-later
"""The region's header: what is written comes back, and nothing hostile comes through."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from dataclasses import replace

import pytest
from wfpatch.errors import Failed, Refused, WfpatchError
from wfpatch.region import PAGE, RegionLayout
from wfpatch.region_header import (
    MAGIC,
    PREFIX_SIZE,
    Generation,
    LoadedPatch,
    NewCode,
    PatchNote,
    Piece,
    RegionHeader,
    RowUse,
    Slot,
    SourceNote,
    TransitionNote,
    Write,
    decode_payload,
    encode_copy,
    encode_payload,
    first_copy,
    read_header,
)

LAYOUT = RegionLayout()
MUTATIONS = 10_000
SEED = int(os.environ.get("WFPATCH_SEED", random.SystemRandom().randrange(1 << 32)))


def sample() -> RegionHeader:
    slots = tuple(
        Slot(
            index=index,
            name=f"function_{index}",
            address=0x5555_5555_0000 + 0x100 * index,
            size=0x80,
            pieces=(
                Piece(
                    0x5555_5555_0000 + 0x100 * index,
                    0x5555_5555_0080 + 0x100 * index,
                    True,
                    index == 2,
                ),
                Piece(0x5555_5554_0000 + index, 0x5555_5554_0010 + index, False, False),
            ),
            entry=bytes(range(16)),
            way=("byte", "swap", "hold")[index % 3],
            writes=(Write(0x5555_5555_0000 + 0x100 * index, b"\x55", b"\xe9"),),
            armed=index != 1,
            displaced=1 + index,
            relied=(0x5555_5555_0001, 0x5555_5555_0005),
            landing=(0x5555_9999_0000, 5) if index == 0 else (0, 0),
            migrate=("always", "after_direct_call", "never")[index % 3],
            continuation=Piece(0x5555_4444_0000, 0x5555_4444_0010, False, False),
            evicted=(0x5555_9999_1000, b"\x48\x89\xfb") if index == 3 else (0, b""),
            boundaries=((0, 0), (1, 1), (4, 9)) if index == 3 else ((0, 0),),
        )
        for index in range(4)
    )
    generations = (
        Generation(0, 0, (), ()),
        Generation(
            1,
            1,
            (PatchNote("redis-cve-2026-0001", "ab" * 32),),
            (
                NewCode(
                    0, 0x5555_4445_0000, (Piece(0x5555_4445_0000, 0x5555_4445_0100, False, True),)
                ),
            ),
        ),
    )
    return RegionHeader(
        layout=LAYOUT,
        index=0,
        object_name="sërved",
        build_id="0123456789abcdef",
        load_address=0x5555_5555_0000,
        generation=1,
        slots=slots,
        generations=generations,
        rows=(RowUse(0, 0, "generation"), RowUse(1, 1, "generation"), RowUse(2, 0, "held")),
        transition=TransitionNote(
            "apply", 0, 1, (SourceNote((0,), 0, 2),), 1, "auto", 1_700_000_000, 600, "open"
        ),
        text_cursor=LAYOUT.code_offset + 0x400,
        data_cursor=LAYOUT.data_offset,
        landing_pages=((0x5555_9999_0000, PAGE),),
        loaded=(
            LoadedPatch(
                id="redis-cve-2026-0001",
                digest="ab" * 32,
                code=generations[1].code,
                text=(0x5555_4445_0000, 0x5555_4445_0200),
                data=(0x5555_4440_0000, 0x5555_4440_0000),
                text_digest="cd" * 32,
                frames=(0x5555_4445_0180, 0x60),
            ),
        ),
    )


class Memory:
    """The rw- mapping of a region."""

    def __init__(self) -> None:
        self.data = bytearray(LAYOUT.data_size)

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= len(self.data), "reads outside the region"
        return bytes(self.data[offset : offset + size])

    def header(self):
        return read_header(self.read, len(self.data))


def test_what_is_written_comes_back():
    header = sample()
    assert decode_payload(encode_payload(header)) == header
    plain = replace(header, transition=None)
    assert decode_payload(encode_payload(plain)) == plain


def test_the_payload_is_canonical_json():
    payload = encode_payload(sample())
    again = json.dumps(
        json.loads(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert payload == again.encode()


def test_free_rows_are_those_that_no_row_uses():
    assert sample().free_rows == tuple(range(3, LAYOUT.rows))


def test_the_interval_of_a_piece():
    assert Piece(0x10, 0x20, True, False).interval == (0x11, 0x1F)
    assert Piece(0x10, 0x20, True, True).interval == (0x11, 0x20)
    assert Piece(0x10, 0x20, False, False).interval == (0x10, 0x1F)
    assert Piece(0x10, 0x20, False, True).interval == (0x10, 0x20)


def test_what_stands_for_the_first_bytes_is_old_code():
    plain, evicting = sample().slots[0], sample().slots[3]
    assert plain.displaced_pieces == (plain.continuation,)
    copy = Piece(0x5555_9999_1000, 0x5555_9999_1003, False, False)
    assert evicting.displaced_pieces == (evicting.continuation, copy)


def test_copies_are_written_in_turn_and_the_newest_counts():
    memory = Memory()
    assert memory.header() is None
    header = sample()
    memory.write(*first_copy(header))
    offsets = set()
    for generation in (0, 1, 0, 1):
        found = memory.header()
        assert found.header == header
        header = replace(header, generation=generation)
        offset, data = found.successor(header)
        offsets.add(offset)
        memory.write(offset, data)
    assert memory.header().header == header
    assert memory.header().sequence == 5
    assert offsets == {0, LAYOUT.copy_size}


def test_a_write_that_was_cut_short_leaves_the_other_copy():
    """At whatever byte the applier is killed, the header is the old or the new one."""
    memory = Memory()
    old = sample()
    memory.write(*first_copy(old))
    new = replace(old, transition=None)
    offset, data = memory.header().successor(new)
    for _ in range(2):
        for cut in range(0, len(data), 7):
            torn = Memory()
            torn.data[:] = memory.data
            torn.write(offset, data[:cut])
            assert torn.header().header in (old, new)
        memory.write(offset, data)
        old, new = new, old
        offset, data = memory.header().successor(new)


def test_a_first_write_that_was_cut_short_is_no_header():
    offset, data = first_copy(sample())
    memory = Memory()
    memory.write(offset, data[:100])
    with pytest.raises(Failed) as caught:
        memory.header()
    assert caught.value.reason == "header_corrupt"


def test_the_second_copy_is_found_when_the_first_is_destroyed():
    memory = Memory()
    memory.write(*first_copy(sample()))
    memory.write(*memory.header().successor(sample()))
    memory.write(0, bytes(PREFIX_SIZE))
    found = memory.header()
    assert (found.number, found.header) == (1, sample())
    memory.write(0, b"\xff" * 4096)
    assert memory.header().header == sample()


def test_a_newer_layout_is_refused():
    memory = Memory()
    offset, data = first_copy(sample())
    memory.write(offset, MAGIC + struct.pack("<I", 2) + data[12:])
    with pytest.raises(Refused) as caught:
        memory.header()
    assert caught.value.reason == "header_newer"


def test_a_header_that_does_not_fit_is_refused():
    header = replace(sample(), layout=RegionLayout(copy_size=PAGE))
    many = replace(
        header,
        slots=tuple(
            replace(header.slots[0], index=index, address=0x1000 * (index + 1))
            for index in range(100)
        ),
    )
    with pytest.raises(Refused) as caught:
        encode_copy(many, 1)
    assert caught.value.reason == "region_too_small"


def altered(change) -> bytes:
    value = json.loads(encode_payload(sample()))
    change(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(document):
        for key in path:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("slots"),
        _set("extra", 1),
        _set("index", -1),
        _set("index", True),
        _set("index", "0"),
        _set("index", 1.5),
        _set("object", "load_address", 1 << 63),
        _set("object", "name", "x" * (1 << 15)),
        _set("layout", "rows", 1 << 20),
        _set("layout", "copy_size", 12345),
        _set("generation", 9),
        _set("slots", 0, "index", 1),
        _set("slots", 0, "index", 504),
        _set("slots", 0, "way", "magic"),
        _set("slots", 0, "migrate", "maybe"),
        _set("slots", 0, "entry", "0G"),
        _set("slots", 0, "entry", "AB"),
        _set("slots", 0, "entry", "00" * 17),
        _set("slots", 0, "writes", [{"address": 1, "before": "00", "after": "0000"}]),
        _set("slots", 0, "pieces", [[2, 1, 0]]),
        _set("slots", 0, "pieces", [[1, 2, 4]]),
        _set("slots", 0, "pieces", [[1, 2]]),
        _set("slots", 0, "continuation", None),
        _set("slots", 0, "landing", [1, 1000]),
        _set("slots", 0, "evicted", None),
        _set("slots", 0, "evicted", {"address": 1, "code": "00" * 65}),
        _set("slots", 0, "relied", [1, 1000]),
        _set("rows", 0, "row", 64),
        _set("rows", 0, "row", 1),
        _set("rows", 0, "generation", 7),
        _set("rows", 0, "role", "king"),
        _set("generations", 0, "row", 63),
        _set("generations", 1, "code", 0, "slot", 77),
        _set("transition", "phase", "?"),
        _set("transition", "target_row", 0),
        _set("transition", "source_generation", 5),
        _set("transition", "sources", 0, "held_row", 99),
        _set("loaded", 0, "digest", "x" * 65),
        _set("loaded", 0, "text", [1]),
        _set("loaded", 0, "data", [1, 1 << 60]),
        _set("loaded", 0, "frames", [0]),
        _set("loaded", 0, "code", 0, "slot", -1),
        _set("loaded", 0, "extra", 1),
        _set("text_cursor", 0),
        _set("data_cursor", 1 << 40),
        _set("landing_pages", [[1]]),
        _set("landing_pages", {}),
    ],
)
def test_what_is_not_a_header_is_refused(change):
    with pytest.raises(Failed) as caught:
        decode_payload(altered(change))
    assert caught.value.reason == "header_corrupt"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b'{"index":1e999}',
        b'{"index":NaN}',
        b"\xff\xfe",
        b'"' + b"\\ud800" + b'"',
        b'{"index":1,"index":2}',
    ],
)
def test_bombs_and_rubbish_are_refused(payload):
    with pytest.raises(Failed) as caught:
        decode_payload(payload)
    assert caught.value.reason == "header_corrupt"


def resealed(payload: bytes, sequence: int = 7, copy_size: int = LAYOUT.copy_size) -> bytes:
    """A copy whose checksum fits: what a hostile process would write."""
    prefix = struct.pack("<8sIIQQ32s", MAGIC, 1, len(payload), sequence, copy_size, bytes(32))
    return prefix[:32] + hashlib.sha256(prefix + payload).digest() + payload


def mutate(generator: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 8))):
        at = generator.randrange(len(out))
        kind = generator.randrange(6)
        if kind == 0:
            out[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            out[at] = generator.choice(b'0123456789"[]{},:-e.\x00\xff')
        elif kind == 2:
            del out[at : at + generator.randrange(1, 40)]
        elif kind == 3:
            out[at:at] = out[: generator.randrange(1, 40)]
        elif kind == 4:
            end = at + generator.randrange(1, 30)
            out[at:end] = generator.choice(
                (b"null", b"-1", b"9" * 25, b"[]", b"{}", b'""', b"true", b"1.0", b"[[[[")
            )
        else:
            value = generator.choice((0, 1, 1 << 31, (1 << 32) - 1, (1 << 64) - 1))
            out[at : at + 8] = struct.pack("<Q", value)
        if not out:
            return b"\0"
    return bytes(out)


def test_mutations_raise_nothing_but_the_two_reasons():
    """10,000 mutations, half of them below a checksum that fits. Rerun one with WFPATCH_SEED."""
    generator = random.Random(SEED)
    payload = encode_payload(sample())
    accepted = 0
    for number in range(MUTATIONS):
        memory = Memory()
        if number % 2:
            data = resealed(mutate(generator, payload))
        else:
            data = mutate(generator, encode_copy(sample(), 3))
        memory.write(generator.choice((0, 0, LAYOUT.copy_size, PAGE)), data[: LAYOUT.copy_size])
        try:
            found = memory.header()
        except WfpatchError as error:
            if error.reason not in ("header_corrupt", "header_newer"):
                raise AssertionError(f"seed {SEED}, mutation {number}: {error}") from error
        except Exception as error:
            raise AssertionError(f"seed {SEED}, mutation {number}: {error!r}") from error
        else:
            accepted += found is not None
            if found is not None:
                assert found.header.layout.data_size <= len(memory.data)
    # Most mutations must be seen for what they are; a few only change a name or a number.
    assert accepted < MUTATIONS / 4, f"seed {SEED}: {accepted} mutations were accepted"


def test_an_error_of_the_reader_comes_through():
    def unreadable(offset, size):
        raise Failed("target_exited", "gone")

    with pytest.raises(Failed) as caught:
        read_header(unreadable, LAYOUT.data_size)
    assert caught.value.reason == "target_exited"
