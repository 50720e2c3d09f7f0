# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Validate a patch's manifest: every violation at once, each with its line in the YAML."""

from __future__ import annotations

import datetime
import typing as t
from dataclasses import dataclass

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._manifest_yaml import (
    Path,
    YamlDocument,
    read_manifest_yaml,
)
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import dotted, validator

#: What the documents of a schema are called.
NOUNS = {"manifest": "manifest", "rollout": "rollout policy"}


@dataclass(frozen=True, order=True)
class Violation:
    """One thing that is wrong. ``line`` counts from 1; 0 where no line can be named. ``path``
    like ``cves[0].id``.
    """

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


def _expectation(error: t.Any) -> str:
    """What the schema wants, in words."""
    keyword, wanted, found = error.validator, error.validator_value, error.instance
    if keyword == "type":
        kinds = wanted if isinstance(wanted, list) else [wanted]
        names = {
            "object": "a mapping",
            "array": "a list",
            "string": "a text",
            "integer": "a whole number",
            "null": "null",
        }
        return (
            f"{' or '.join(names.get(kind, kind) for kind in kinds)} is expected, "
            f"{_kind(found)} was found"
        )
    if keyword == "enum":
        return f"{found!r} is not one of {', '.join(str(each) for each in wanted)}"
    if keyword == "const":
        return f"{wanted!r} is expected, {found!r} was found"
    if keyword == "uniqueItems":
        return "an item stands here more than once"
    if keyword in ("oneOf", "anyOf") and all("required" in each for each in wanted):
        names = ", ".join(each["required"][0] for each in wanted)
        return f"{'exactly' if keyword == 'oneOf' else 'at least'} one of {names} has to be here"
    if keyword == "not" and "required" in wanted:
        return f"{' and '.join(wanted['required'])} exclude each other"
    return str(error.message)[:300]


def _kind(value: t.Any) -> str:
    if value is None:
        return "nothing"
    for kind, name in (
        (bool, "a truth value"),
        (dict, "a mapping"),
        (list, "a list"),
        (str, "a text"),
        (int, "a whole number"),
    ):
        if isinstance(value, kind):
            return name
    return type(value).__name__


def schema_violations(
    document: YamlDocument, file: str, schema: str = "manifest"
) -> t.Iterator[Violation]:
    """Everything in which the document does not fit one of the schemas, with its line."""
    # What is of the wrong type, or empty, breaks other rules too: those say nothing more.
    errors = validator(schema).iter_errors(document.data)
    for error in sorted(errors, key=lambda error: error.validator not in ("type", "minLength")):
        path: Path = tuple(error.absolute_path)
        if error.validator == "required":
            # jsonschema reports one error per missing key; all share the path of the mapping
            # around them.
            missing = str(error.message).split("'", 2)[1]
            yield Violation(file, document.line(path), dotted(path + (missing,)), "is missing")
        elif error.validator == "additionalProperties":
            for key in sorted(set(error.instance) - set(error.schema.get("properties", {}))):
                yield Violation(
                    file,
                    document.line(path + (key,)),
                    dotted(path + (key,)),
                    f"is not a field of a {NOUNS[schema]}",
                )
        else:
            yield Violation(file, document.line(path), dotted(path), _expectation(error))


def _sense_violations(document: YamlDocument, file: str) -> t.Iterator[Violation]:
    """What a schema cannot say; only called for documents that fit it."""
    data = document.data
    try:
        datetime.date.fromisoformat(data["released"])
    except ValueError:
        yield Violation(
            file,
            document.line(("released",)),
            "released",
            f"there is no such day as {data['released']}",
        )
    for relation in ("requires", "conflicts", "supersedes"):
        for index, other in enumerate(data[relation]):
            path: Path = (relation, index)
            if other == data["id"]:
                yield Violation(file, document.line(path), dotted(path), "names the patch itself")
            elif relation == "conflicts" and other in data["requires"]:
                yield Violation(
                    file, document.line(path), dotted(path), f"{other} is required as well"
                )
    cves: set[str] = set()
    for index, cve in enumerate(data["cves"]):
        if cve["id"] in cves:
            path = ("cves", index, "id")
            yield Violation(
                file, document.line(path), dotted(path), f"{cve['id']} stands here a second time"
            )
        cves.add(cve["id"])


def validate_manifest(text: str, file: str) -> tuple[YamlDocument, list[Violation]]:
    """Validate the YAML text of a manifest; ``file`` names it in the violations.

    Returns the document and all violations, sorted by line. The document's data may be relied on
    when there are none.
    """
    document = read_manifest_yaml(text)
    violations = [
        Violation(file, problem.line, dotted(problem.path), problem.message)
        for problem in document.problems
    ]
    if document.data is not None or not violations:
        by_path: dict[str, Violation] = {}
        for violation in schema_violations(document, file):
            by_path.setdefault(violation.path, violation)
        violations.extend(by_path.values())
        if not violations:
            violations.extend(_sense_violations(document, file))
    return document, sorted(set(violations))
