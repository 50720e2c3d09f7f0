# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process calls itself cannot drive a terminal."""

from __future__ import annotations

from ansible_collections.wfpatch.fleet.plugins.plugin_utils._printable import printable


def test_printable():
    assert printable("example äöü 漢") == "example äöü 漢"
    assert printable("a\x1b[2J\r\nb\x07") == "a\\x1b[2J\\r\\nb\\x07"
    assert printable("\u202etxt.exe") == "\\u202etxt.exe"
    assert printable("\udc80") == "\\udc80"
    assert printable("x" * 400) == "x" * 297 + "..."
    assert printable(None) == "None"
