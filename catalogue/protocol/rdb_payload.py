# SPDX-License-Identifier: GPL-3.0-or-later
"""Serialized values as RESTORE takes them, well-formed or broken on purpose.

Layout after redis 7.0's rdb.c, listpack.c, t_stream.c and zipmap.c: one type byte, the value, the
RDB version (2 bytes, little endian) and a CRC-64 of all before it (8 bytes, little endian).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

RDB_VERSION = 9
TYPE_STRING = 0
TYPE_HASH_ZIPMAP = 9
TYPE_STREAM_LISTPACKS = 15

ZIPMAP_LONG_LENGTH = 254
ZIPMAP_END = 0xFF
LISTPACK_END = 0xFF

#: CRC-64 of Jones as redis' crc64.c uses it, bits reflected, no initial and no final inversion.
_POLYNOMIAL = 0x95AC9329AC4BC9B5


def crc64(data: bytes) -> int:
    """The checksum that ends a serialized value; crc64(b"123456789") is 0xe9c6d914c4b8d9ca."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc


def payload(type_byte: int, value: bytes) -> bytes:
    """A value of that type with version and checksum."""
    body = bytes([type_byte]) + value + struct.pack("<H", RDB_VERSION)
    return body + struct.pack("<Q", crc64(body))


def length(number: int) -> bytes:
    """rdbSaveLen()."""
    if number < 1 << 6:
        return bytes([number])
    if number < 1 << 14:
        return struct.pack(">H", 0x4000 | number)
    if number < 1 << 32:
        return b"\x80" + struct.pack(">I", number)
    return b"\x81" + struct.pack(">Q", number)


def string(data: bytes) -> bytes:
    """A string of the RDB format, uncompressed."""
    return length(len(data)) + data


def string_of_claimed_length(claimed: int) -> bytes:
    """A string value that says it has `claimed` bytes and has none."""
    return payload(TYPE_STRING, length(claimed))


def zipmap_length(number: int, wide: bool) -> bytes:
    """A length in a zipmap: one byte, or five where it is large or `wide` asks for it."""
    if wide or number >= ZIPMAP_LONG_LENGTH:
        return bytes([ZIPMAP_LONG_LENGTH]) + struct.pack("<I", number)
    return bytes([number])


def zipmap_hash(field: bytes, value: bytes, wide_value_length: bool) -> bytes:
    """A hash of one field as a zipmap. With a wide length of a short value it is malformed."""
    zipmap = (
        b"\x01"
        + zipmap_length(len(field), False)
        + field
        + zipmap_length(len(value), wide_value_length)
        + b"\x00"  # no unused bytes behind the value
        + value
        + bytes([ZIPMAP_END])
    )
    return payload(TYPE_HASH_ZIPMAP, string(zipmap))


def listpack(elements: Sequence[int | bytes]) -> bytes:
    """A listpack of small numbers (0..127) and short strings (< 64 bytes)."""
    body = b""
    for element in elements:
        if isinstance(element, int):
            body += struct.pack("BB", element, 1)
        else:
            body += struct.pack("B", 0x80 | len(element)) + element
            body += struct.pack("B", 1 + len(element))
    total = 6 + len(body) + 1
    return struct.pack("<IH", total, len(elements)) + body + bytes([LISTPACK_END])


def stream_id(milliseconds: int, sequence: int) -> bytes:
    """An entry's id as a key of the radix trees: 16 bytes, big endian."""
    return struct.pack(">QQ", milliseconds, sequence)


def stream_with_pending_entry(group: bytes, consumers: Sequence[bytes]) -> bytes:
    """A stream with the entry 1-0 (field: value), pending for each of the consumers.

    An entry may be pending for one consumer of a group; with two the value is corrupt.
    """
    field, value = b"field", b"value"
    # The master entry: one valid and no deleted entry, one field, its name, terminator.
    master: list[int | bytes] = [1, 0, 1, field, 0]
    # The entry: flags (same fields as the master), id relative to it, value, element count.
    items = listpack([*master, 2, 0, 0, value, 4])
    entry = stream_id(1, 0)
    seen = struct.pack("<Q", 1_700_000_000_000)
    body = length(1) + string(entry) + string(items)
    body += length(1) + length(1) + length(0)  # length, last id
    body += length(1) + string(group) + length(1) + length(0)  # one group and its last id
    body += length(1) + entry + seen + length(1)  # pending entries of the group: id, time, count
    body += length(len(consumers))
    for consumer in consumers:
        body += string(consumer) + seen + length(1) + entry
    return payload(TYPE_STREAM_LISTPACKS, body)
