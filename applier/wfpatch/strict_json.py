# SPDX-License-Identifier: GPL-3.0-or-later
"""Strict, bounded reading and canonical writing of JSON.

Canonical: UTF-8, keys sorted, separators ``,`` and ``:``, integers only, no trailing newline.
Signed bytes are parsed exactly as signed, so everything a lenient parser forgives is an error here:
duplicate keys, floats, NaN, numbers beyond 64 bits, unknown and missing fields, deep nesting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

MAX_DEPTH = 24


class Invalid(Exception):
    """A document does not say what it must; ``path`` names the place (``cves[0].id``)."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path or '(top)'}: {message}")
        self.path = path
        self.message = message


def canonical(value: Any) -> bytes:
    """The canonical bytes of ``value``."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise Invalid("", "a key occurs twice")
    return result


def _no_float(text: str) -> NoReturn:
    raise Invalid("", f"the number {text[:32]} is not an integer")


def _bounded_int(text: str) -> int:
    if len(text) > 21:
        raise Invalid("", f"the number {text[:32]}... is too large")
    return int(text)


def parse(data: bytes, limit: int) -> Any:
    """Parse at most ``limit`` bytes of JSON; raises Invalid."""
    if len(data) > limit:
        raise Invalid("", f"{len(data)} bytes exceed the limit of {limit}")
    depth = 0
    in_string = False
    escaped = False
    for byte in data:
        # Nesting is bounded before the recursive parser sees it.
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Invalid("", f"nested deeper than {MAX_DEPTH}")
        elif byte in b"]}":
            depth -= 1
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_float=_no_float,
            parse_constant=_no_float,
            parse_int=_bounded_int,
        )
    except UnicodeDecodeError as error:
        raise Invalid("", f"not UTF-8: {error}") from None
    except ValueError as error:
        raise Invalid("", f"not JSON: {error}") from None


def parse_canonical(data: bytes, limit: int) -> Any:
    """Parse, and insist that ``data`` is the canonical form of what it says."""
    value = parse(data, limit)
    try:
        again = canonical(value)
    except UnicodeEncodeError as error:
        raise Invalid("", f"not UTF-8: {error}") from None
    if again != data:
        raise Invalid("", "not in canonical form")
    return value


class Fields:
    """The fields of one JSON object, each taken once and checked; ``done`` refuses the rest."""

    def __init__(self, value: Any, path: str = "") -> None:
        if not isinstance(value, dict):
            raise Invalid(path, "an object is expected")
        self._values: dict[str, Any] = dict(value)
        self._path = path

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _take(self, name: str) -> Any:
        if name not in self._values:
            raise Invalid(self._at(name), "is missing")
        return self._values.pop(name)

    def raw(self, name: str) -> Any:
        """Any value at all."""
        return self._take(name)

    def text(self, name: str, limit: int = 4096, choices: Iterable[str] | None = None) -> str:
        """A string of at most ``limit`` characters, one of ``choices`` when given."""
        value = self._take(name)
        if not isinstance(value, str):
            raise Invalid(self._at(name), "a string is expected")
        if len(value) > limit:
            raise Invalid(self._at(name), f"longer than {limit} characters")
        if choices is not None and value not in set(choices):
            raise Invalid(self._at(name), f"{value[:64]!r} is not one of {sorted(choices)}")
        return value

    def optional_text(self, name: str, limit: int = 4096) -> str | None:
        """A string or null."""
        if self._values.get(name, "") is None:
            self._take(name)
            return None
        return self.text(name, limit)

    def number(self, name: str, low: int = 0, high: int = 2**64 - 1) -> int:
        """An integer in ``[low, high]``."""
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Invalid(self._at(name), "an integer is expected")
        if not low <= value <= high:
            raise Invalid(self._at(name), f"{value} is outside {low}..{high}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise Invalid(self._at(name), "true or false is expected")
        return value

    def items(self, name: str, limit: int = 4096) -> list[tuple[str, Any]]:
        """A list of at most ``limit`` values, each with its path."""
        value = self._take(name)
        if not isinstance(value, list):
            raise Invalid(self._at(name), "a list is expected")
        if len(value) > limit:
            raise Invalid(self._at(name), f"more than {limit} entries")
        return [(f"{self._at(name)}[{index}]", item) for index, item in enumerate(value)]

    def texts(self, name: str, limit: int = 4096, item_limit: int = 4096) -> tuple[str, ...]:
        """A list of strings."""
        result = []
        for path, item in self.items(name, limit):
            if not isinstance(item, str) or len(item) > item_limit:
                raise Invalid(path, "a string is expected")
            result.append(item)
        return tuple(result)

    def nested(self, name: str) -> Fields:
        """An object inside this one."""
        return Fields(self._take(name), self._at(name))

    def optional_nested(self, name: str) -> Fields | None:
        """An object or null."""
        if self._values.get(name, "") is None:
            self._take(name)
            return None
        return self.nested(name)

    def each(self, name: str, read: Callable[[Fields], Any], limit: int = 4096) -> tuple[Any, ...]:
        """A list of objects, each read by ``read``, which must use all fields."""
        result = []
        for path, item in self.items(name, limit):
            fields = Fields(item, path)
            result.append(read(fields))
            fields.done()
        return tuple(result)

    def done(self) -> None:
        """Refuse fields that nobody took."""
        if self._values:
            raise Invalid(self._path, f"unknown fields {sorted(self._values)[:8]}")
