# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The collection's JSON Schemas as validators. Runs on the controller only: jsonschema is a
compiled dependency.
"""

from __future__ import annotations

import functools
import json
import os
import re
import typing as t

from ansible.errors import AnsibleError

try:
    import jsonschema
    import referencing
    from referencing.jsonschema import DRAFT202012
except ImportError as exc:
    JSONSCHEMA_ERROR: ImportError | None = exc
else:
    JSONSCHEMA_ERROR = None

SCHEMAS = (
    "manifest",
    "event",
    "result",
    "report",
    "rollout",
    "advisories",
    "evidence",
    "compliance",
)
_FOLDER = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "schemas"
)


def load_schema(name: str) -> dict[str, t.Any]:
    """One of SCHEMAS as it stands in the schemas folder."""
    with open(os.path.join(_FOLDER, f"{name}.schema.json"), encoding="utf-8") as file:
        return json.load(file)


@functools.cache
def _at_end_of_string(pattern: str) -> re.Pattern[str]:
    # JSON Schema's regular expressions are ECMA-262's, where "$" is the end of the string.
    # Python's "$"
    # also matches before a last newline, which would let "id\n" pass.
    return re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", pattern))


def _pattern(_validator: t.Any, pattern: str, instance: t.Any, _schema: t.Any) -> t.Iterator[t.Any]:
    if isinstance(instance, str) and not _at_end_of_string(pattern).search(instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _is_integer(_checker: t.Any, instance: t.Any) -> bool:
    # JSON Schema takes 1.0 for an integer; canonical JSON has no floats at all.
    return isinstance(instance, int) and not isinstance(instance, bool)


@functools.cache
def validator(name: str) -> t.Any:
    """A validator for one of SCHEMAS; references between the schemas are resolved from the folder.

    Raises AnsibleError when jsonschema is not installed for the Python that runs Ansible.
    """
    if JSONSCHEMA_ERROR is not None:
        raise AnsibleError(
            "wfpatch.fleet needs the Python package jsonschema (4.18 or newer) on the controller: "
            f"install it for the Python that runs Ansible ({JSONSCHEMA_ERROR})"
        )
    base = jsonschema.Draft202012Validator
    cls = jsonschema.validators.extend(
        base,
        validators={"pattern": _pattern},
        type_checker=base.TYPE_CHECKER.redefine("integer", _is_integer),
    )
    resources = [
        referencing.Resource(contents=load_schema(each), specification=DRAFT202012)
        for each in SCHEMAS
    ]
    registry = referencing.Registry().with_resources(
        (resource.id(), resource) for resource in resources
    )
    return cls(load_schema(name), registry=registry)


def dotted(path: t.Iterable[str | int]) -> str:
    """A path into a document as people write it: cves[0].severity."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def problems(name: str, document: t.Any) -> list[str]:
    """Everything in which the document does not fit the schema, one text each, sorted by place."""
    errors = sorted(
        validator(name).iter_errors(document),
        key=lambda error: [str(step) for step in error.absolute_path],
    )
    return [f"{dotted(error.absolute_path) or '(top)'}: {error.message[:300]}" for error in errors]
