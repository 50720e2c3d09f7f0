# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions whose entries are of every kind, generated as assembly: a program and its patches.

Each function works with whatever registers it gets and tells its version by a byte at
``VERSION(%r15)``; some tell a result at ``RESULT(%r15)``. Each has a twin, the same code, which is
never replaced: programs/proof_entries.c calls both with the same live values in every register,
flag and vector, and wants the same of both.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sample_patch
from programs_fixture import PROGRAMS, ProgramCache

_TELL = "movb ${v}, 8(%r15)\n"
_RESULT = "16(%r15)"
_END = _TELL + "ret\n"
_LARGE_GAP = ".fill 200, 1, 0xcc\n"
_ALIGNED = ".p2align 4\n"


@dataclass(frozen=True)
class Kind:
    """One kind of entry.

    ``body`` is its assembly; ``{v}`` stands for the version's number, ``{n}`` for the function's
    name, ``{t}`` for the twin's name or the function's. ``length`` is that of the first
    instruction. ``before`` stands in front of the function, ``behind`` right behind it, ``data``
    is its own datum.
    ``rax`` is the value that rax must have; ``silent``: as shipped it does not tell a version;
    ``body_later`` is the body of later versions if it differs.
    """

    name: str
    length: int
    body: str
    before: str = _ALIGNED
    behind: str = ""
    data: str = ""
    rax: int = 0
    silent: bool = False
    body_later: str = ""


def _two_ways(branch: str, gap: str) -> str:
    return f"{branch} 1f\nmovb $2, {_RESULT}\n{_END}{gap}1:\nmovb $3, {_RESULT}\n{_END}"


def _at_page_end(bytes_left: int) -> str:
    return f".p2align 12\n.fill {4096 - bytes_left}, 1, 0xcc\n"


_PUSH = "push %rbp\n" + _TELL + "pop %rbp\nret\n"
_PUSH_REX = "push %r12\n" + _TELL + "pop %r12\nret\n"
_MOVE_5 = "mov $0x5a5a1234, %eax\n" + _END
_LEA_7 = "lea {n}_data(%rip), %rax\nmov %rax, " + _RESULT + "\n" + _END

KINDS: tuple[Kind, ...] = (
    Kind("push", 1, _PUSH),
    Kind("push_rex", 2, _PUSH_REX),
    Kind("nop3", 3, "nopl (%rax)\n" + _END),
    Kind("move3", 3, "mov %rdi, %rax\n" + _END),
    Kind("endbr", 4, "endbr64\n" + _END),
    Kind("sub_rsp", 4, "sub $24, %rsp\n" + _TELL + "add $24, %rsp\ncmp %rsp, %rsp\nret\n"),
    Kind("move5", 5, _MOVE_5),
    Kind("move10", 10, "movabs $0x123456789abcdef0, %rax\n" + _END),
    Kind("rip_lea", 7, _LEA_7, data=".quad 1"),
    Kind(
        "rip_load",
        7,
        "mov {n}_data(%rip), %r11\nmov %r11, " + _RESULT + "\n" + _END,
        data=".quad 0x1122334455667788",
    ),
    Kind(
        "rip_store",
        10,
        "movl $0x77777777, {n}_data(%rip)\nmov {n}_data(%rip), %r8\nmov %r8, "
        + _RESULT
        + "\n"
        + _END,
        data=".quad 0",
    ),
    Kind(
        "rip_compare",
        7,
        "cmpb $5, {n}_data(%rip)\nsete " + _RESULT + "\n" + _END,
        data=".quad 5",
    ),
    Kind("jump8", 2, "jmp 1f\n.fill 7, 1, 0xcc\n1:\n" + _END),
    Kind("jump32", 5, "jmp 1f\n" + _LARGE_GAP + "1:\n" + _END),
    Kind(
        "jump_away",
        5,
        "jmp {t}_rest\n",
        behind=_LARGE_GAP + "{t}_rest:\nmovb $1, 8(%r15)\nret\n",
        body_later=_END,
    ),
    Kind("branch8", 2, _two_ways("jc", "")),
    Kind("branch32", 6, _two_ways("jz", _LARGE_GAP)),
    Kind("branch_rcx", 2, _two_ways("jrcxz", "")),
    Kind("branch_loop", 2, _two_ways("loop", "")),
    Kind("call", 5, "call bystander\n" + _END),
    Kind("call_memory", 6, "call *{n}_data(%rip)\n" + _END, data=".quad bystander"),
    Kind("system_call", 2, "syscall\nxor %ecx, %ecx\n" + _END, rax=39),
    Kind("return", 1, "ret\n", silent=True, body_later=_END),
    Kind(
        "return_beside_another",
        1,
        "ret\n",
        silent=True,
        body_later=_END,
        behind="{t}_neighbour: lea 1(%rax), %rax\nlea -1(%rax), %rax\nret\n",
    ),
    Kind("two_bytes", 2, "rep ret\n", silent=True, body_later=_END),
    Kind(
        "three_bytes", 2, "xor %eax, %eax\nret\n", silent=True, body_later="xor %eax, %eax\n" + _END
    ),
    Kind(
        "four_bytes", 3, "mov %rsi, %rax\nret\n", silent=True, body_later="mov %rsi, %rax\n" + _END
    ),
    Kind("branch_inside", 3, "mov %rdi, %rax\n1:\ntest %rax, %rax\nmov $0, %eax\njnz 1b\n" + _END),
    Kind("padding_behind", 2, _PUSH_REX, behind=".fill 24, 1, 0x90\n"),
    *(Kind(f"page_end_{left}_length_1", 1, _PUSH, _at_page_end(left)) for left in (1, 2, 3, 4)),
    *(Kind(f"page_end_{left}_length_2", 2, _PUSH_REX, _at_page_end(left)) for left in (1, 2, 4)),
    *(
        Kind(f"page_end_{left}_length_5", 5, _MOVE_5, _at_page_end(left))
        for left in (1, 2, 3, 4, 5)
    ),
    Kind("page_end_1_length_7", 7, _LEA_7, _at_page_end(1), data=".quad 1"),
    Kind("page_end_6_length_7", 7, _LEA_7, _at_page_end(6), data=".quad 1"),
    Kind("page_end_1_return", 1, "ret\n", _at_page_end(1), silent=True, body_later=_END),
)
BY_NAME = {kind.name: kind for kind in KINDS}


def _function(kind: Kind, symbol: str) -> str:
    """The function as shipped, or its twin, which both use the function's datum."""
    text = (
        ".text\n{before}.globl {t}\n.type {t}, @function\n{t}:\n{body}.size {t}, . - {t}\n{behind}"
    )
    text = text.replace("{before}", kind.before).replace("{behind}", kind.behind)
    text = text.replace("{body}", kind.body)
    return text.replace("{v}", "1").replace("{n}", f"e_{kind.name}").replace("{t}", symbol)


def _assembly(kind: Kind) -> str:
    name = f"e_{kind.name}"
    text = _function(kind, name) + ".p2align 4\n"
    text += _function(kind, f"twin_{kind.name}") + ".p2align 4\n"
    # A function that calls it directly, and one that jumps to it.
    text += f".globl direct_{kind.name}\n.type direct_{kind.name}, @function\n"
    text += (
        f"direct_{kind.name}: call {name}\nret\n.size direct_{kind.name}, . - direct_{kind.name}\n"
    )
    text += f".globl jump_{kind.name}\n.type jump_{kind.name}, @function\n"
    text += f"jump_{kind.name}: jmp {name}\n.size jump_{kind.name}, . - jump_{kind.name}\n"
    if kind.data:
        text += f".data\n.p2align 3\n.globl {name}_data\n.type {name}_data, @object\n"
        text += f".size {name}_data, 8\n{name}_data: {kind.data}\n.text\n"
    return text


def _quoted(assembly: str) -> str:
    return "\n".join(f'\t"{line}\\n"' for line in assembly.splitlines())


def generated() -> str:
    """The C header with all functions as shipped, and the table of them."""
    lines = ["/* Made by tests/engine/proof/entries.py. */", "__asm__("]
    lines += [_quoted(_assembly(kind)) for kind in KINDS]
    lines.append('\t".text\\n");')
    for kind in KINDS:
        for prefix in ("e", "twin", "direct", "jump"):
            lines.append(f"void {prefix}_{kind.name}(void);")
    lines.append("static const struct entry entries[] = {")
    for kind in KINDS:
        name = kind.name
        functions = ", ".join(f"{p}_{name}" for p in ("e", "direct", "jump", "twin"))
        lines.append(f'\t{{ "{name}", {{ {functions} }}, {int(kind.silent)}, {kind.rax} }},')
    lines.append("};\n")
    return "\n".join(lines)


@functools.cache
def program() -> Path:
    """The program, not stripped."""
    cache = ProgramCache(PROGRAMS)
    text = generated()
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    header = cache.directory / f"proof_entries-{digest}.h"
    if not header.exists():
        header.write_text(text)
    return cache.build("proof_entries", f'-DGENERATED="{header}"')


def symbol(name: str) -> str:
    """The symbol of a kind's function."""
    return f"e_{name}"


def patch(version: int, names: Iterable[str]) -> bytes:
    """A patch ELF that brings ``version`` of the named kinds' functions."""
    lines = []
    chosen = [BY_NAME[name] for name in names]
    for kind in chosen:
        body = (kind.body_later or kind.body).replace("{v}", str(version))
        body = body.replace("{n}", symbol(kind.name)).replace("{t}", symbol(kind.name))
        lines.append(f"__attribute__((naked)) void {symbol(kind.name)}(void)\n{{\n\t__asm__(")
        lines.append(_quoted(body) + ");\n}\n")
    return sample_patch.build(
        program(), "\n".join(lines), [symbol(kind.name) for kind in chosen], flags=("-O2", "-fPIE")
    )
