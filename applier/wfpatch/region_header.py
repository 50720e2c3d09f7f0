# SPDX-License-Identifier: GPL-3.0-or-later
"""The region's header: what the applier noted in the process about its own work.

The process may have been compromised, so the header is hostile input: sizes, types, ranges and
nesting are bounded, and whatever is not exactly a header is ``header_corrupt``. docs/region.md has
the layout. Two copies are written in turn, so that a kill in the middle of a write leaves the other
one; the newest valid copy counts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .errors import Failed, Refused, WfpatchError
from .region import LAYOUT_VERSION, MAX_COPY_SIZE, MAX_ROWS, PAGE, RegionLayout
from .self_check_stub import MODES
from .strict_json import Fields, Invalid, canonical, parse_canonical

MAGIC = b"WFPATCHR"
_PREFIX = struct.Struct("<8sIIQQ32s")
PREFIX_SIZE = _PREFIX.size

MAX_SLOTS = 1 << 14
MAX_GENERATIONS = 256
MAX_PATCHES = 256
MAX_PIECES = 64
MAX_LANDINGS = 1 << 15
NAME_LIMIT = 1 << 14
ADDRESS_LIMIT = 1 << 47

WAYS = ("byte", "swap", "hold")
KINDS = ("apply", "revert")
POLICIES = ("auto", "points", "global")
PHASES = ("load", "arm", "start", "open", "finish_rows", "finish_held")
ROLES = ("generation", "held")


@dataclass(frozen=True)
class Piece:
    """Code ``[low, high)`` of one function; ``entry`` for an original body's first piece.

    A word equal to ``low`` of an entry piece is a function pointer, not a frame; one equal to
    ``high`` is a return address only if the piece ends in a call.
    """

    low: int
    high: int
    entry: bool
    ends_in_call: bool

    @property
    def interval(self) -> tuple[int, int]:
        """The closed interval of the words that count as inside."""
        return (self.low + int(self.entry), self.high - int(not self.ends_in_call))


@dataclass(frozen=True)
class Write:
    """Bytes of the object's text that arming changes: what was there, and what arming writes."""

    address: int
    before: bytes
    after: bytes


@dataclass(frozen=True)
class Slot:
    """One replaced function, from the time its slot is given out.

    ``entry`` are the first bytes of the function as shipped; ``way``, ``writes``, ``displaced``,
    ``relied`` and ``landing`` (address, size) say how it is armed, as in arming.ArmedEntry;
    ``armed`` whether the writes are known to be done; ``evicted`` is the address and code of an
    evicted second instruction, or (0, b""); ``boundaries`` (offset in the function, offset in the
    continuation) of each displaced instruction.
    """

    index: int
    name: str
    address: int
    size: int
    pieces: tuple[Piece, ...]
    entry: bytes
    way: str
    writes: tuple[Write, ...]
    armed: bool
    displaced: int
    relied: tuple[int, int]
    landing: tuple[int, int]
    migrate: str
    continuation: Piece
    evicted: tuple[int, bytes] = (0, b"")
    boundaries: tuple[tuple[int, int], ...] = ((0, 0),)

    @property
    def displaced_pieces(self) -> tuple[Piece, ...]:
        """The function's old code outside of its own pieces: what stands for its first bytes."""
        at, code = self.evicted
        copy = (Piece(at, at + len(code), False, False),) if at else ()
        return (self.continuation, *copy)


@dataclass(frozen=True)
class PatchNote:
    """A patch in force in a generation: its id, and the SHA-256 of its ELF in hex."""

    id: str
    digest: str


@dataclass(frozen=True)
class NewCode:
    """What a generation runs for one slot: entry address, and all pieces of the new code."""

    slot: int
    address: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class LoadedPatch:
    """A patch whose code lies in the region, in force or not: it is loaded only once.

    ``digest`` as in PatchNote; ``text`` and ``data`` are the runtime intervals ``[low, high)`` it
    takes; ``text_digest`` the SHA-256 of the text as written; ``frames`` the address and size of
    the new code's unwind table, (0, 0) where there is none.
    """

    id: str
    digest: str
    code: tuple[NewCode, ...]
    text: tuple[int, int]
    data: tuple[int, int]
    text_digest: str
    frames: tuple[int, int]


@dataclass(frozen=True)
class Generation:
    """One generation: slots without new code run their old continuation."""

    number: int
    row: int
    patches: tuple[PatchNote, ...]
    code: tuple[NewCode, ...]


@dataclass(frozen=True)
class RowUse:
    """A row that threads may be in, the generation whose code it leads to, and its role."""

    row: int
    generation: int
    role: str


@dataclass(frozen=True)
class SourceNote:
    """A source of the open transition: rows, and their held row or None."""

    rows: tuple[int, ...]
    generation: int
    held_row: int | None


@dataclass(frozen=True)
class TransitionNote:
    """The open transition. ``started`` in Unix seconds, ``timeout`` in seconds."""

    kind: str
    source_generation: int
    target_generation: int
    sources: tuple[SourceNote, ...]
    target_row: int
    policy: str
    started: int
    timeout: int
    phase: str


@dataclass(frozen=True)
class RegionHeader:
    """All of it. ``text_cursor`` and ``data_cursor`` are offsets from the region's base;
    ``landing_pages`` and ``scratch_pages`` (start, size) of other mappings that are ours."""

    layout: RegionLayout
    index: int
    object_name: str
    build_id: str
    load_address: int
    generation: int
    slots: tuple[Slot, ...]
    generations: tuple[Generation, ...]
    rows: tuple[RowUse, ...]
    transition: TransitionNote | None
    text_cursor: int
    data_cursor: int
    landing_pages: tuple[tuple[int, int], ...] = ()
    scratch_pages: tuple[tuple[int, int], ...] = ()
    loaded: tuple[LoadedPatch, ...] = ()

    @property
    def free_rows(self) -> tuple[int, ...]:
        """Rows that no thread can be in."""
        used = {use.row for use in self.rows}
        return tuple(row for row in range(self.layout.rows) if row not in used)


def _corrupt(message: str) -> WfpatchError:
    return Failed("header_corrupt", f"the region's header: {message}")


def _piece_json(piece: Piece) -> list[int]:
    return [piece.low, piece.high, int(piece.entry) | int(piece.ends_in_call) << 1]


def _pairs_json(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    return [list(pair) for pair in pairs]


def _slot_json(slot: Slot) -> dict[str, object]:
    return {
        "index": slot.index,
        "name": slot.name,
        "address": slot.address,
        "size": slot.size,
        "pieces": [_piece_json(piece) for piece in slot.pieces],
        "entry": slot.entry.hex(),
        "way": slot.way,
        "writes": [
            {"address": write.address, "before": write.before.hex(), "after": write.after.hex()}
            for write in slot.writes
        ],
        "armed": slot.armed,
        "displaced": slot.displaced,
        "relied": list(slot.relied),
        "landing": list(slot.landing),
        "migrate": slot.migrate,
        "continuation": _piece_json(slot.continuation),
        "evicted": {"address": slot.evicted[0], "code": slot.evicted[1].hex()},
        "boundaries": [list(pair) for pair in slot.boundaries],
    }


def _code_json(codes: Sequence[NewCode]) -> list[dict[str, object]]:
    return [
        {
            "slot": code.slot,
            "address": code.address,
            "pieces": [_piece_json(piece) for piece in code.pieces],
        }
        for code in codes
    ]


def _generation_json(generation: Generation) -> dict[str, object]:
    return {
        "number": generation.number,
        "row": generation.row,
        "patches": [{"id": patch.id, "digest": patch.digest} for patch in generation.patches],
        "code": _code_json(generation.code),
    }


def _loaded_json(patch: LoadedPatch) -> dict[str, object]:
    return {
        "id": patch.id,
        "digest": patch.digest,
        "code": _code_json(patch.code),
        "text": list(patch.text),
        "data": list(patch.data),
        "text_digest": patch.text_digest,
        "frames": list(patch.frames),
    }


def _transition_json(note: TransitionNote) -> dict[str, object]:
    return {
        "kind": note.kind,
        "source_generation": note.source_generation,
        "target_generation": note.target_generation,
        "sources": [
            {
                "rows": list(source.rows),
                "generation": source.generation,
                "held_row": source.held_row,
            }
            for source in note.sources
        ],
        "target_row": note.target_row,
        "policy": note.policy,
        "started": note.started,
        "timeout": note.timeout,
        "phase": note.phase,
    }


def encode_payload(header: RegionHeader) -> bytes:
    """The canonical JSON of the header."""
    layout = header.layout
    return canonical(
        {
            "layout": {
                "rows": layout.rows,
                "table_pages": layout.table_pages,
                "copy_size": layout.copy_size,
                "descriptor_size": layout.descriptor_size,
                "calls_size": layout.calls_size,
                "free_data": layout.free_data,
                "free_text": layout.free_text,
            },
            "index": header.index,
            "object": {
                "name": header.object_name,
                "build_id": header.build_id,
                "load_address": header.load_address,
            },
            "generation": header.generation,
            "slots": [_slot_json(slot) for slot in header.slots],
            "generations": [_generation_json(generation) for generation in header.generations],
            "rows": [
                {"row": use.row, "generation": use.generation, "role": use.role}
                for use in header.rows
            ],
            "transition": (
                None if header.transition is None else _transition_json(header.transition)
            ),
            "text_cursor": header.text_cursor,
            "data_cursor": header.data_cursor,
            "landing_pages": _pairs_json(header.landing_pages),
            "scratch_pages": _pairs_json(header.scratch_pages),
            "loaded": [_loaded_json(patch) for patch in header.loaded],
        }
    )


def _integers(value: object, path: str, count: int) -> list[int]:
    if not isinstance(value, list) or len(value) != count:
        raise Invalid(path, f"a list of {count} integers is expected")
    for item in value:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= ADDRESS_LIMIT:
            raise Invalid(path, "an integer within user space is expected")
    return value


def _read_piece(value: object, path: str) -> Piece:
    low, high, flags = _integers(value, path, 3)
    if high < low or flags > 3:
        raise Invalid(path, "not a piece of code")
    return Piece(low, high, bool(flags & 1), bool(flags & 2))


def _read_pieces(fields: Fields, name: str) -> tuple[Piece, ...]:
    return tuple(_read_piece(item, path) for path, item in fields.items(name, MAX_PIECES))


def _read_pairs(fields: Fields, name: str, limit: int) -> tuple[tuple[int, int], ...]:
    result = []
    for path, item in fields.items(name, limit):
        first, second = _integers(item, path, 2)
        result.append((first, second))
    return tuple(result)


def _read_bytes(fields: Fields, name: str, limit: int) -> bytes:
    text = fields.text(name, 2 * limit)
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise Invalid(name, "hex digits are expected") from None
    if data.hex() != text:
        raise Invalid(name, "lower-case hex digits are expected")
    return data


def _address(fields: Fields, name: str) -> int:
    return fields.number(name, 0, ADDRESS_LIMIT)


def _read_write(fields: Fields) -> Write:
    write = Write(
        _address(fields, "address"),
        _read_bytes(fields, "before", 16),
        _read_bytes(fields, "after", 16),
    )
    if not write.before or len(write.before) != len(write.after):
        raise Invalid("writes", "before and after differ in length")
    return write


def _read_slot(fields: Fields) -> Slot:
    relied = _integers(fields.raw("relied"), "relied", 2)
    landing = _integers(fields.raw("landing"), "landing", 2)
    if relied[1] - relied[0] > 16 or landing[1] > 16:
        raise Invalid("slots", "a jump is longer than jumps are")
    evicted = fields.nested("evicted")
    evicted_code = (_address(evicted, "address"), _read_bytes(evicted, "code", 64))
    evicted.done()
    return Slot(
        index=fields.number("index", 0, MAX_SLOTS),
        name=fields.text("name", NAME_LIMIT),
        address=_address(fields, "address"),
        size=_address(fields, "size"),
        pieces=_read_pieces(fields, "pieces"),
        entry=_read_bytes(fields, "entry", 16),
        way=fields.text("way", 16, WAYS),
        writes=fields.each("writes", _read_write, 8),
        armed=fields.flag("armed"),
        displaced=fields.number("displaced", 0, 64),
        relied=(relied[0], relied[1]),
        landing=(landing[0], landing[1]),
        migrate=fields.text("migrate", 32, MODES),
        continuation=_read_piece(fields.raw("continuation"), "continuation"),
        evicted=evicted_code,
        boundaries=_read_boundaries(fields),
    )


def _read_boundaries(fields: Fields) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for path, item in fields.items("boundaries", 16):
        there, here = _integers(item, path, 2)
        if not (0 <= there < 32 and 0 <= here < 128):
            raise Invalid(path, "an offset in the displaced code is expected")
        if found and (there <= found[-1][0] or here <= found[-1][1]):
            raise Invalid(path, "is not in order")
        found.append((there, here))
    if not found or found[0] != (0, 0):
        raise Invalid("boundaries", "the first is not [0,0]")
    return tuple(found)


def _read_patch(fields: Fields) -> PatchNote:
    return PatchNote(fields.text("id", 128), fields.text("digest", 64))


def _read_code(fields: Fields) -> NewCode:
    return NewCode(
        fields.number("slot", 0, MAX_SLOTS),
        _address(fields, "address"),
        _read_pieces(fields, "pieces"),
    )


def _read_loaded(fields: Fields) -> LoadedPatch:
    text = _integers(fields.raw("text"), "text", 2)
    data = _integers(fields.raw("data"), "data", 2)
    frames = _integers(fields.raw("frames"), "frames", 2)
    return LoadedPatch(
        id=fields.text("id", 128),
        digest=fields.text("digest", 64),
        code=fields.each("code", _read_code, MAX_SLOTS),
        text=(text[0], text[1]),
        data=(data[0], data[1]),
        text_digest=fields.text("text_digest", 64),
        frames=(frames[0], frames[1]),
    )


def _read_generation(fields: Fields) -> Generation:
    return Generation(
        number=fields.number("number", 0, 2**32),
        row=fields.number("row", 0, MAX_ROWS),
        patches=fields.each("patches", _read_patch, MAX_PATCHES),
        code=fields.each("code", _read_code, MAX_SLOTS),
    )


def _read_row(fields: Fields) -> RowUse:
    return RowUse(
        fields.number("row", 0, MAX_ROWS),
        fields.number("generation", 0, 2**32),
        fields.text("role", 16, ROLES),
    )


def _read_source(fields: Fields) -> SourceNote:
    rows = tuple(_integers([item], path, 1)[0] for path, item in fields.items("rows", MAX_ROWS))
    held = fields.raw("held_row")
    if held is not None:
        held = _integers([held], "held_row", 1)[0]
    return SourceNote(rows, fields.number("generation", 0, 2**32), held)


def _read_transition(fields: Fields) -> TransitionNote:
    note = TransitionNote(
        kind=fields.text("kind", 16, KINDS),
        source_generation=fields.number("source_generation", 0, 2**32),
        target_generation=fields.number("target_generation", 0, 2**32),
        sources=fields.each("sources", _read_source, MAX_ROWS),
        target_row=fields.number("target_row", 0, MAX_ROWS),
        policy=fields.text("policy", 16, POLICIES),
        started=fields.number("started", 0, 2**40),
        timeout=fields.number("timeout", 0, 2**32),
        phase=fields.text("phase", 16, PHASES),
    )
    fields.done()
    return note


def _read_layout(fields: Fields) -> RegionLayout:
    sizes = {
        name: fields.number(name, 0, 1 << 32)
        for name in (
            "rows",
            "table_pages",
            "copy_size",
            "descriptor_size",
            "calls_size",
            "free_data",
            "free_text",
        )
    }
    fields.done()
    try:
        return RegionLayout(**sizes)
    except Refused as error:
        raise Invalid("layout", error.message) from None


def _read_header(fields: Fields) -> RegionHeader:
    named = fields.nested("object")
    transition = fields.optional_nested("transition")
    header = RegionHeader(
        layout=_read_layout(fields.nested("layout")),
        index=fields.number("index", 0, 1 << 16),
        object_name=named.text("name", NAME_LIMIT),
        build_id=named.text("build_id", 128),
        load_address=_address(named, "load_address"),
        generation=fields.number("generation", 0, 2**32),
        slots=fields.each("slots", _read_slot, MAX_SLOTS),
        generations=fields.each("generations", _read_generation, MAX_GENERATIONS),
        rows=fields.each("rows", _read_row, MAX_ROWS),
        transition=None if transition is None else _read_transition(transition),
        text_cursor=_address(fields, "text_cursor"),
        data_cursor=_address(fields, "data_cursor"),
        landing_pages=_read_pairs(fields, "landing_pages", MAX_LANDINGS),
        scratch_pages=_read_pairs(fields, "scratch_pages", MAX_LANDINGS),
        loaded=fields.each("loaded", _read_loaded, MAX_PATCHES),
    )
    named.done()
    fields.done()
    _check(header)
    return header


def _unique(values: Sequence[object], path: str) -> None:
    if len(set(values)) != len(values):
        raise Invalid(path, "a value occurs twice")


def _check(header: RegionHeader) -> None:
    """What the parts must say about one another."""
    layout = header.layout
    slots = [slot.index for slot in header.slots]
    known = set(slots)
    numbers = [generation.number for generation in header.generations]
    rows = [use.row for use in header.rows]
    _unique(slots, "slots")
    _unique([slot.address for slot in header.slots], "slots")
    _unique(numbers, "generations")
    _unique(rows, "rows")
    if any(index >= layout.slots for index in slots):
        raise Invalid("slots", "a slot lies outside the tables")
    if any(row >= layout.rows for row in rows):
        raise Invalid("rows", "a row lies outside the tables")
    if any(use.generation not in numbers for use in header.rows):
        raise Invalid("rows", "a row leads to a generation that is not listed")
    if header.generation not in numbers:
        raise Invalid("generation", "is not listed in generations")
    for generation in header.generations:
        if generation.row >= layout.rows:
            raise Invalid("generations", "a row lies outside the tables")
        _unique([code.slot for code in generation.code], "generations.code")
        if not all(code.slot in known for code in generation.code):
            raise Invalid("generations.code", "a slot that was not given out")
    _unique([patch.digest for patch in header.loaded], "loaded")
    for patch in header.loaded:
        if not all(code.slot in known for code in patch.code):
            raise Invalid("loaded", "code for a slot that was not given out")
    if not layout.data_offset <= header.data_cursor <= layout.data_size:
        raise Invalid("data_cursor", "lies outside the region's data")
    if not layout.code_offset <= header.text_cursor <= layout.size:
        raise Invalid("text_cursor", "lies outside the region's text")
    note = header.transition
    if note is not None:
        used = [note.target_row]
        for source in note.sources:
            used += source.rows
            if source.held_row is not None:
                used.append(source.held_row)
        _unique(used, "transition")
        if any(row >= layout.rows for row in used):
            raise Invalid("transition", "a row lies outside the tables")
        wanted = {note.source_generation, note.target_generation}
        wanted |= {source.generation for source in note.sources}
        if not wanted <= set(numbers):
            raise Invalid("transition", "a generation that is not listed")


def decode_payload(payload: bytes) -> RegionHeader:
    """The header that a payload says; raises Failed("header_corrupt")."""
    try:
        return _read_header(Fields(parse_canonical(payload, MAX_COPY_SIZE)))
    except Invalid as error:
        raise _corrupt(str(error)) from None


def _digest(version: int, size: int, sequence: int, copy_size: int, payload: bytes) -> bytes:
    prefix = _PREFIX.pack(MAGIC, version, size, sequence, copy_size, bytes(32))
    return hashlib.sha256(prefix + payload).digest()


def encode_copy(header: RegionHeader, sequence: int) -> bytes:
    """One copy of the header: prefix and payload. Raises Refused("region_too_small")."""
    payload = encode_payload(header)
    copy_size = header.layout.copy_size
    if PREFIX_SIZE + len(payload) > copy_size:
        raise Refused(
            "region_too_small",
            f"the region's header needs {PREFIX_SIZE + len(payload)} bytes, a copy has {copy_size}",
            needed=PREFIX_SIZE + len(payload),
            available=copy_size,
        )
    digest = _digest(LAYOUT_VERSION, len(payload), sequence, copy_size, payload)
    prefix = _PREFIX.pack(MAGIC, LAYOUT_VERSION, len(payload), sequence, copy_size, digest)
    return prefix + payload


@dataclass(frozen=True)
class HeaderCopy:
    """A valid copy as found: its number (0 or 1), sequence and contents."""

    number: int
    sequence: int
    header: RegionHeader

    def successor(self, header: RegionHeader) -> tuple[int, bytes]:
        """(offset from the region's base, bytes) of the write that replaces this header."""
        header = replace(header, layout=self.header.layout)
        number = 1 - self.number
        return number * header.layout.copy_size, encode_copy(header, self.sequence + 1)


def first_copy(header: RegionHeader) -> tuple[int, bytes]:
    """(offset from the region's base, bytes) of the first header of a fresh region."""
    return 0, encode_copy(header, 1)


Read = Callable[[int, int], bytes]
"""read(offset from the region's base, size) -> exactly that many bytes, or it raises."""


def _copy_at(read: Read, offset: int, number: int, available: int) -> HeaderCopy | None:
    """The copy at an offset; None when there is none, raises when it is damaged or too new."""
    if offset + PREFIX_SIZE > available:
        return None
    prefix = read(offset, PREFIX_SIZE)
    if len(prefix) != PREFIX_SIZE:
        raise _corrupt("could not be read in full")
    magic, version, size, sequence, copy_size, digest = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        return None
    if version > LAYOUT_VERSION:
        raise Refused(
            "header_newer",
            f"the region was laid out in version {version}, this applier knows {LAYOUT_VERSION}; "
            "use the newer applier",
            version=version,
        )
    if version != LAYOUT_VERSION:
        raise _corrupt(f"layout version {version} never existed")
    if not 1 <= size <= MAX_COPY_SIZE - PREFIX_SIZE or offset + PREFIX_SIZE + size > available:
        raise _corrupt(f"a payload of {size} bytes")
    if number == 1 and copy_size != offset:
        raise _corrupt(f"the second copy lies at {offset}, and says {copy_size}")
    payload = read(offset + PREFIX_SIZE, size)
    if len(payload) != size or _digest(version, size, sequence, copy_size, payload) != digest:
        raise _corrupt("its checksum is wrong")
    header = decode_payload(payload)
    if header.layout.copy_size != copy_size or header.layout.data_size > available:
        raise _corrupt("its sizes do not fit the region")
    return HeaderCopy(number, sequence, header)


def read_header(read: Read, available: int) -> HeaderCopy | None:
    """The newest valid copy, or None when no header was ever written.

    ``available`` are the bytes of the region's rw- mapping. The second copy is looked for at every
    size that a copy can have if the first is destroyed. Raises Failed("header_corrupt") when copies
    exist and none is valid, Refused("header_newer"), and whatever ``read`` raises.
    """
    found: list[HeaderCopy] = []
    damage: WfpatchError | None = None

    def look(offset: int, number: int) -> None:
        nonlocal damage
        try:
            copy = _copy_at(read, offset, number, available)
        except WfpatchError as error:
            if error.reason != "header_corrupt":
                raise
            damage = damage or error
        else:
            if copy is not None:
                found.append(copy)

    look(0, 0)
    if found:
        look(found[0].header.layout.copy_size, 1)
    else:
        size = PAGE
        while size <= MAX_COPY_SIZE:
            look(size, 1)
            size *= 2
    if not found and damage is not None:
        raise damage
    return max(found, key=lambda copy: copy.sequence) if found else None
