# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest as the host reads it: sound ones are read, hostile ones refused by one reason."""

from __future__ import annotations

import copy
import json
import os
import random
import time

import pytest
from wfpatch.errors import Refused
from wfpatch.manifest import Manifest, parse_manifest
from wfpatch.strict_json import canonical

SEED = int(os.environ.get("WFPATCH_SEED", random.SystemRandom().randrange(1 << 32)))
MUTATIONS = 10_000
GOOD = {
    "schema": 1,
    "id": "fix-1",
    "summary": "é test",
    "cves": [{"id": "CVE-2026-1", "severity": "high", "references": ["https://example.org"]}],
    "released": "2026-01-02",
    "target": {
        "object": "server",
        "build_ids": ["ab" * 20],
        "package": "server",
        "versions": ["1"],
        "architecture": "amd64",
    },
    "artifact": {"file": "patch.elf", "sha256": "cd" * 32, "size": 4096},
    "policy": "auto",
    "timeouts": {"transition": 30},
    "stragglers": "leave",
    "requires": ["fix-0"],
    "conflicts": [],
    "supersedes": ["fix-00"],
    "health_check": {"command": ["/bin/true"], "timeout": 5},
    "stack_switching": "none",
}
VALUES = [None, True, -1, 0, 1 << 64, 10**40, "", "x", "../../etc", "\x1b[2J", "\0", "é" * 5000]
VALUES += [[], {}, [[]], [None], {"a": 1}, ["x"] * 5000, ".", "-", "a/b", "A" * 200]
BYTES = [b"null", b"1.5", b"NaN", b"[" * 30, b'"a":1,', b"\xff", b"\\ud800", b"9" * 30, b" ", b"\n"]


def mutate_values(choose):
    document = copy.deepcopy(GOOD)
    for _ in range(choose.randrange(1, 3)):
        node = document
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = choose.choice(keys)
            if isinstance(node[key], (dict, list)) and node[key] and choose.random() < 0.6:
                node = node[key]
                continue
            if choose.random() < 0.2:
                del node[key]
            elif isinstance(node, dict) and choose.random() < 0.1:
                node["unknown"] = 1
            else:
                node[key] = copy.deepcopy(choose.choice(VALUES))
            break
    return canonical(document)


def mutate_bytes(choose):
    data = bytearray(canonical(GOOD))
    for _ in range(choose.randrange(1, 4)):
        at = choose.randrange(len(data) or 1)
        kind = choose.randrange(4)
        if kind == 0:
            data[at : at + 1] = choose.randbytes(1)
        elif kind == 1:
            data[at:at] = choose.choice(BYTES)
        elif kind == 2:
            del data[at : at + choose.randrange(1, 20)]
        else:
            del data[at:]
            data += b"{"
    return bytes(data)


def test_a_sound_manifest():
    manifest = parse_manifest(canonical(GOOD))
    assert isinstance(manifest, Manifest)
    assert (manifest.id, manifest.requires, manifest.transition_timeout) == (
        "fix-1",
        ("fix-0",),
        30,
    )


def test_mutations_only_ever_refuse():
    """WFPATCH_SEED repeats a run; the failing input's number and seed are in the message."""
    accepted = 0
    for number in range(MUTATIONS):
        choose = random.Random(SEED * MUTATIONS + number)
        data = (mutate_values if number % 2 else mutate_bytes)(choose)
        begun = time.process_time()
        try:
            found = parse_manifest(data)
        except Refused as error:
            assert error.reason == "manifest_invalid", f"seed {SEED}, input {number}: {error}"
            assert error.message.isprintable(), f"seed {SEED}, input {number}: {error.message!r}"
        except BaseException as error:
            raise AssertionError(f"seed {SEED}, input {number}: {error!r}") from error
        else:
            # What is accepted names a folder of the store, and is exactly what was signed.
            accepted += 1
            assert "/" not in found.id and found.id not in (".", "..")
            assert canonical(json.loads(data)) == data
        assert time.process_time() - begun < 2, f"seed {SEED}, input {number}"
    assert 0 < accepted < MUTATIONS / 3, f"seed {SEED}: {accepted} were accepted"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": 2}, "schema"),
        ({"id": "../fix"}, "id"),
        ({"policy": "never"}, "policy"),
        ({"unknown": 1}, "unknown"),
        ({"stack_switching": None}, "stack_switching"),
        ({"requires": ["a/b"]}, "requires"),
        ({"health_check": {"command": [], "timeout": 1}}, "health_check"),
        ({"timeouts": {"transition": 0}}, "timeouts.transition"),
        ({"timeouts": {"transition": 1, "more": 1}}, "more"),
        ({"artifact": {**GOOD["artifact"], "file": "/etc/passwd"}}, "artifact.file"),
        ({"artifact": {**GOOD["artifact"], "sha256": "XY" * 32}}, "artifact.sha256"),
        ({"target": {**GOOD["target"], "build_ids": []}}, "target.build_ids"),
    ],
)
def test_what_is_wrong_is_named(change, named):
    with pytest.raises(Refused) as caught:
        parse_manifest(canonical({**GOOD, **change}))
    assert caught.value.reason == "manifest_invalid"
    assert named in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        canonical(GOOD) + b"\n",
        json.dumps(GOOD).encode(),
        canonical(GOOD).replace(b'"id"', b'"id":"x","id"'),
        canonical(GOOD).replace(b"4096", b"4096.0"),
    ],
    ids=["a line's end", "spaces", "a key twice", "a float"],
)
def test_what_is_not_canonical(data):
    with pytest.raises(Refused) as caught:
        parse_manifest(data)
    assert caught.value.reason == "manifest_invalid"
