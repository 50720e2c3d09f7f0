# SPDX-License-Identifier: GPL-3.0-or-later
"""How slots may migrate by the tail edges of new code, direct and indirect."""

from __future__ import annotations

import pytest
import sample_patch
from wfpatch.patch_elf import read_patch
from wfpatch.tail_calls import modes

HEAD = "int step(int number);\nint other(int number);\n"
PLAIN = """
__attribute__((noinline)) int step(int n) { __asm__ volatile("" : "+r"(n)); return n + 2; }
__attribute__((noinline)) int other(int n) { __asm__ volatile("" : "+r"(n)); return n + 20; }
"""
JUMPS = """
__attribute__((noinline)) int step(int n) { __asm__ volatile("" : "+r"(n)); return other(n + 2); }
__attribute__((noinline)) int other(int n) { __asm__ volatile("" : "+r"(n)); return n + 20; }
"""


@pytest.fixture
def build(program):
    def made(source, **overrides):
        elf = sample_patch.build(
            program("refused"), HEAD + source, ["step", "other"], overrides=overrides
        )
        patch = read_patch(elf)
        found = modes(patch)
        return {function.name: found[function.address] for function in patch.functions}

    return made


def test_new_code_that_only_calls(build):
    assert build(PLAIN) == {"step": "always", "other": "always"}


def test_a_direct_jump_of_new_code(build):
    assert build(JUMPS) == {"step": "always", "other": "after_direct_call"}


def test_an_indirect_jump_of_new_code(build):
    said = {"step": {"new_tail_edges": ["other"]}}
    assert build(PLAIN, **said) == {"step": "always", "other": "after_direct_call"}


def test_a_circle_of_new_code(build):
    """One jump is direct, the other is not: a direct call in front then proves nothing."""
    said = {"other": {"new_tail_edges": ["step"]}}
    assert build(JUMPS, **said) == {"step": "never", "other": "never"}
