# SPDX-License-Identifier: GPL-3.0-or-later
"""The metadata of a patch ELF: canonical JSON, with the old bytes and their mask beside it.

Strict: unknown fields, missing fields and values outside of their bounds are errors.
"""

from __future__ import annotations

import bisect

from .errors import Refused
from .patch import (
    MAX_ADDRESS,
    MAX_FILE,
    MAX_FUNCTIONS,
    MAX_NAME,
    MAX_SYMBOLS,
    Built,
    Displaced,
    Fixup,
    Hold,
    ImportedSymbol,
    NewEntry,
    ObjectSymbol,
    OldPiece,
    Padding,
    PatchedObject,
    ReplacedFunction,
    TextSegment,
    malformed,
)
from .strict_json import Fields, Invalid, parse_canonical

FORMAT = 1
MACHINE = "x86_64"
MAX_META = 8 << 20

_KINDS = ("function", "data", "tls")
_MIGRATE = ("always", "after_direct_call", "never")
_METHODS = ("exact_rebuild", "matching", "plain")


class Metadata:
    """``.wfpatch.meta`` with ``.wfpatch.old`` and ``.wfpatch.mask``. Raises Invalid or Refused."""

    def __init__(self, meta: bytes, old: bytes, mask: bytes) -> None:
        if len(old) != len(mask):
            malformed(f"{len(old)} old bytes, but {len(mask)} bytes of mask")
        if mask.translate(None, b"\x00\xff"):
            malformed("the mask has bytes other than 0x00 and 0xff")
        self._old, self._mask = old, mask
        top = Fields(parse_canonical(meta, MAX_META))
        number = top.number("format")
        machine = top.text("machine", 64)
        if number != FORMAT or machine != MACHINE:
            raise Refused(
                "patch_elf_unsupported",
                f"the patch ELF has format {number} for {machine!r}; this applier reads format "
                f"{FORMAT} for {MACHINE}; install a newer applier",
                format=number,
                machine=machine,
            )
        self.object = _read_object(top.nested("object"))
        self.symbols = _read_owners(top)
        self.function_fields = [
            Fields(item, path) for path, item in top.items("functions", MAX_FUNCTIONS)
        ]
        if not self.function_fields:
            raise Invalid("functions", "no function is replaced")
        built = top.nested("built")
        self.built = Built(
            _name(built, "builder", 256),
            _name(built, "compiler", 1024),
            _name(built, "flags", MAX_NAME),
            built.text("method", choices=_METHODS),
        )
        built.done()
        top.done()

    def function(self, fields: Fields, entries: dict[str, NewEntry | None]) -> ReplacedFunction:
        """One entry of ``functions``."""
        name = _name(fields, "name")
        symbol = _name(fields, "symbol")
        entry = entries.get(symbol)
        if entry is None:
            malformed(f"new code of {name!r}: no single function symbol {symbol!r}", function=name)
        main = self._piece(fields, "main", name)
        pieces = []
        for path, item in fields.items("pieces", 64):
            piece = Fields(item, path)
            kind = piece.text("kind", choices=("cold", "part"))
            pieces.append(self._piece(piece, kind, name))
            piece.done()
        displaced = self._displaced(fields.nested("displaced"), main, name)
        held = fields.optional_nested("hold")
        hold = None if held is None else _read_hold(held, main)
        gap = fields.optional_nested("padding")
        padding = None
        if gap is not None:
            padding = Padding(gap.number("address", 0, MAX_ADDRESS), gap.number("size", 5, 4096))
            gap.done()
        inner = _numbers(fields, "inner_entries", 1, 4)
        function = ReplacedFunction(
            name,
            _optional_name(fields, "file"),
            symbol,
            main,
            tuple(pieces),
            displaced,
            hold,
            padding,
            inner,
            fields.text("migrate", choices=_MIGRATE),
            fields.texts("tail_edges", MAX_FUNCTIONS + 1, MAX_NAME),
            fields.texts("new_tail_edges", MAX_FUNCTIONS, MAX_NAME),
            entry,
        )
        fields.done()
        return function

    def _piece(self, fields: Fields, kind: str, name: str) -> OldPiece:
        address = fields.number("address", 0, MAX_ADDRESS)
        size = fields.number("size", 1, MAX_FILE)
        offset = fields.number("old_offset", 0, MAX_FILE)
        if offset > len(self._old) or size > len(self._old) - offset:
            malformed(f"old bytes of {name!r} reach beyond .wfpatch.old", function=name)
        return OldPiece(
            kind,
            address,
            size,
            self._old[offset : offset + size],
            self._mask[offset : offset + size],
            fields.flag("ends_in_call"),
        )

    def _displaced(self, fields: Fields, main: OldPiece, name: str) -> Displaced:
        code = _hex(fields, "code", 64)
        frame = fields.nested("frame")
        displaced = Displaced(
            fields.number("length", 1, 15),  # Intel SDM vol. 2, 2.3.11: no instruction is longer
            code,
            _read_fixups(fields, code),
            fields.flag("falls_through"),
            fields.flag("is_call"),
            frame.number("cfa_offset", 8, 8),
        )
        frame.done()
        fields.done()
        if displaced.length > main.size:
            malformed(f"the first instruction of {name!r} is longer than it", function=name)
        return displaced


def _name(fields: Fields, name: str, limit: int = MAX_NAME) -> str:
    value = fields.text(name, limit)
    if not value.isprintable():
        raise Invalid(name, "has unprintable characters")
    return value


def _optional_name(fields: Fields, name: str) -> str | None:
    value = fields.optional_text(name, MAX_NAME)
    if value is not None and not value.isprintable():
        raise Invalid(name, "has unprintable characters")
    return value


def _numbers(fields: Fields, name: str, low: int, high: int) -> tuple[int, ...]:
    """A list of strictly increasing integers."""
    found: list[int] = []
    for path, item in fields.items(name):
        if not isinstance(item, int) or isinstance(item, bool) or not low <= item <= high:
            raise Invalid(path, f"an integer in {low}..{high} is expected")
        if found and item <= found[-1]:
            raise Invalid(path, "is not in order")
        found.append(item)
    return tuple(found)


def _hex(fields: Fields, name: str, limit: int) -> bytes:
    text = fields.text(name, 2 * limit)
    if not text or len(text) % 2 or text.strip("0123456789abcdef"):
        raise Invalid(name, "bytes in lower-case hexadecimal are expected")
    return bytes.fromhex(text)


def _read_object(fields: Fields) -> PatchedObject:
    build_ids = fields.texts("build_ids", 64, 128)
    for build_id in build_ids:
        if len(build_id) % 2 or not build_id or build_id.strip("0123456789abcdef"):
            raise Invalid("object.build_ids", "a build-id in lower-case hexadecimal is expected")
    if not build_ids:
        raise Invalid("object.build_ids", "is empty")

    def segment(item: Fields) -> TextSegment:
        return TextSegment(item.number("address", 0, MAX_ADDRESS), item.number("size", 1, 1 << 32))

    text = fields.each("text", segment, 64)
    if not text:
        raise Invalid("object.text", "is empty")
    found = PatchedObject(
        build_ids,
        _name(fields, "name"),
        _optional_name(fields, "soname"),
        fields.text("kind", choices=("executable", "shared_library")),
        text,
    )
    fields.done()
    return found


def _read_owners(top: Fields) -> dict[str, ObjectSymbol | ImportedSymbol]:
    raw = top.raw("symbols")
    if not isinstance(raw, dict) or len(raw) > MAX_SYMBOLS:
        raise Invalid("symbols", "an object is expected")
    owners: dict[str, ObjectSymbol | ImportedSymbol] = {}
    for key, value in raw.items():
        fields = Fields(value, f"symbols[{key[:128]!r}]")
        if fields.text("owner", choices=("object", "import")) == "object":
            owners[key] = ObjectSymbol(
                _name(fields, "name"),
                _optional_name(fields, "file"),
                fields.text("kind", choices=_KINDS),
                fields.number("address", 0, MAX_ADDRESS),
                fields.number("size"),
            )
        else:
            owners[key] = ImportedSymbol(
                _name(fields, "name"),
                _optional_name(fields, "version"),
                fields.text("kind", choices=_KINDS[:2]),
                _numbers(fields, "got", 0, MAX_ADDRESS),
            )
        fields.done()
    return owners


def _read_fixups(fields: Fields, code: bytes) -> tuple[Fixup, ...]:
    def fixup(item: Fields) -> Fixup:
        return Fixup(
            item.number("offset", 0, len(code) - 4 if len(code) > 4 else 0),
            item.number("addend", -64, 64),
            item.number("target", 0, MAX_ADDRESS),
        )

    fixups: tuple[Fixup, ...] = fields.each("fixups", fixup, 16)
    taken = [range(f.offset, f.offset + 4) for f in fixups]
    for index, first in enumerate(taken):
        if first.stop > len(code):
            raise Invalid("fixups", "a fixup reaches beyond the code")
        if any(first.start < other.stop and other.start < first.stop for other in taken[:index]):
            raise Invalid("fixups", "two fixups overlap")
    return fixups


def _read_hold(fields: Fields, main: OldPiece) -> Hold:
    code = _hex(fields, "code", 128)
    length = fields.number("length", 5, 32)
    boundaries: list[tuple[int, int]] = []
    for path, item in fields.items("boundaries", 16):
        if not isinstance(item, list) or len(item) != 2:
            raise Invalid(path, "a pair is expected")
        for value, limit in zip(item, (length, len(code))):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
                raise Invalid(path, "an offset in the code is expected")
        pair = (item[0], item[1])
        if boundaries and (pair[0] <= boundaries[-1][0] or pair[1] <= boundaries[-1][1]):
            raise Invalid(path, "is not in order")
        boundaries.append(pair)
    if not boundaries or boundaries[0] != (0, 0):
        raise Invalid("hold.boundaries", "the first is not [0,0]")
    hold = Hold(
        length,
        code,
        _read_fixups(fields, code),
        tuple(boundaries),
        fields.flag("falls_through"),
    )
    fields.done()
    if length > main.size:
        raise Invalid("hold.length", "is larger than the function")
    return hold


def check_functions(functions: tuple[ReplacedFunction, ...], patched: PatchedObject) -> None:
    """What holds between the functions: nothing overlaps, all lies in the object's text."""
    names = {function.name for function in functions}
    if len({(function.name, function.file) for function in functions}) != len(functions):
        malformed("a function is replaced twice")
    if len({(f.entry.section, f.entry.offset) for f in functions}) != len(functions):
        malformed("two functions share one new entry")
    edges_known = names | {"*"}
    code = []
    for function in functions:
        if list(function.tail_edges) != sorted(set(function.tail_edges) & edges_known):
            malformed(f"tail edges of {function.name!r} are not names of replaced functions")
        if list(function.new_tail_edges) != sorted(set(function.new_tail_edges) & names):
            malformed(f"new tail edges of {function.name!r} are not names of replaced functions")
        for piece in function.all_pieces():
            end = piece.address + piece.size
            code.append((piece.address, end, f"{piece.kind} piece of {function.name!r}"))
    code.sort()
    starts = [start for start, _, _ in code]
    for (_, end, name), (following, _, other) in zip(code, code[1:]):
        if end > following:
            malformed(f"{name} and {other} overlap")
    # two functions may name the same padding: which one uses it is decided when arming is planned
    gaps = []
    for function in functions:
        gap = function.padding
        if gap is not None:
            before = bisect.bisect_left(starts, gap.address + gap.size) - 1
            if before >= 0 and code[before][1] > gap.address:
                malformed(f"padding of {function.name!r} overlaps {code[before][2]}")
            gaps.append((gap.address, gap.address + gap.size, f"padding of {function.name!r}"))
    for start, end, name in [*code, *gaps]:
        if not any(t.address <= start and end <= t.address + t.size for t in patched.text):
            malformed(f"{name} lies outside of the object's text")
