# SPDX-License-Identifier: GPL-3.0-or-later
"""Reason codes of modules that did not run to their end."""

from __future__ import annotations

import pytest
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._failure_reason import (
    name_reason,
    said_no_room,
)

TRACE = "Traceback:\n  File \"x\", line 1\nOSError: [Errno 28] No space left on device: '/tmp/x'\n"


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ({"failed": True, "rc": 1, "msg": "MODULE FAILURE", "module_stderr": TRACE}, "disk_full"),
        ({"failed": True, "msg": "Disk quota exceeded"}, "disk_full"),
        (
            {"failed": True, "module_stdout": "No usable temporary directory found in ['/tmp']"},
            "disk_full",
        ),
        (
            {"failed": True, "rc": 127, "msg": "The module interpreter was not found"},
            "python_missing",
        ),
        ({"failed": True, "rc": 127, "msg": "sudo: not found"}, None),
        ({"failed": True, "reason": "busy", "msg": "No space left on device"}, "busy"),
        ({"msg": "No space left on device"}, None),
        ({"failed": True, "msg": "another"}, None),
    ],
)
def test_reasons(outcome, reason):
    assert name_reason(outcome).get("reason") == reason


def test_the_line_that_says_it_is_the_message():
    outcome = {"failed": True, "msg": "No start of json char found", "module_stderr": TRACE}
    wanted = "OSError: [Errno 28] No space left on device: '/tmp/x'"
    assert said_no_room(outcome) == wanted
    assert name_reason(outcome)["msg"] == wanted
