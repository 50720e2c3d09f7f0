# SPDX-License-Identifier: GPL-3.0-or-later
"""The schemas are sound, refuse what they are there to refuse, and fit what the applier says."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._schemas import (
    SCHEMAS,
    load_schema,
    problems,
)
from ansible_collections.wfpatch.fleet.tests.unit.conftest import FAKE_APPLIER


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_sound(name):
    jsonschema.Draft202012Validator.check_schema(load_schema(name))


def objects(schema):
    if isinstance(schema, dict):
        if "object" in str(schema.get("type", "")):
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_nothing_is_optional_and_nothing_else_is_accepted(name):
    found = list(objects(load_schema(name)))
    assert found
    for schema in found:
        if "properties" in schema:
            assert schema["additionalProperties"] is False
            # A policy is written by people only: what they leave out has a meaning. Appliers that
            # know no opt-outs do not speak of them.
            left_out = set(schema["properties"]) - set(schema.get("required", ())) - {"opted_out"}
            assert name == "rollout" or not left_out


@pytest.fixture
def result(host, make_patch):
    host.add(make_patch())
    arguments = ["--json", "--store", str(host.store)]
    arguments += ["--allowed-signers", str(host.allowed_signers), "apply", "example-a"]
    command = [sys.executable, str(FAKE_APPLIER), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def test_a_result(result):
    assert problems("result", result) == []


def set_at(value, path, new):
    for step in path[:-1]:
        value = value[step]
    value[path[-1]] = new


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("state",), "reverted"),
        (("changed",), 1),
        (("reason",), "Not A Code"),
        (("time",), "2026-01-15T10:00:00"),
        (("time",), "2026-01-15T10:00:00Z\n"),
        (("host", "boot_id"), "x"),
        (("processes", 0, "pid"), 0),
        (("processes", 0, "pid"), 1.0),
        (("processes", 0, "comm"), "evil\x1b]0;x\x07"),
        (("processes", 0, "comm"), "two\nlines"),
        (("processes", 0, "object", "build_id"), "abc"),
        (("processes", 0, "functions", 0, "address"), 2**64),
        (("processes", 0, "functions", 0, "arming"), ""),
        (("processes", 0, "functions", 0, "name"), "f\u009b"),
        (("processes", 0, "threads", "total"), -1),
        (("processes", 0, "timings_us", "load"), 0.5),
        (("before", "processes"), None),
        (("cves", 0, "patch"), "../x"),
        (("extra",), 1),
    ],
)
def test_what_a_result_may_not_say(result, path, value):
    set_at(result, path, value)
    assert len(problems("result", result)) == 1


def test_missing_fields_are_named(result):
    del result["processes"][0]["threads"]["stragglers"]
    assert problems("result", result) == [
        "processes[0].threads: 'stragglers' is a required property"
    ]
