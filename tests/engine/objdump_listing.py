# SPDX-License-Identifier: GPL-3.0-or-later
"""What objdump makes of hand-encoded bytes, in a form that compares with a Listing's assembly."""

from __future__ import annotations

import re
import subprocess


def decoded(code: bytes, at: int, directory) -> list[tuple[int, str]]:
    """(address, instruction) of each instruction objdump sees; RIP-relative operands show the
    address they mean."""
    file = directory / "code.bin"
    file.write_bytes(code)
    output = subprocess.run(
        ["objdump", "-D", "-w", "-b", "binary", "-m", "i386:x86-64"]
        + ["--no-show-raw-insn", f"--adjust-vma={at:#x}", str(file)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    result = []
    for line in output.splitlines():
        match = re.match(r"\s*([0-9a-f]+):\s+(.*)$", line)
        if match:
            result.append((int(match.group(1), 16), canonical(match.group(2))))
    return result


def canonical(text: str) -> str:
    """One spelling of an instruction across versions of binutils."""
    comment = re.search(r"#\s*(0x[0-9a-f]+)", text)
    text = text.partition("#")[0].strip()
    if comment:
        text = re.sub(r"-?0x[0-9a-f]+\(%rip\)", f"{comment.group(1)}(%rip)", text)
    text = re.sub(r"\s+", " ", text)
    # Before 2.36 some instructions carried a suffix that says nothing.
    text = re.sub(r"^(call|jmp|ret|pushf?|popf?|leave)q\b", r"\1", text)
    # binutils 2.41 spells the shift by one out.
    return re.sub(r"^(shr|shl) \$1,", r"\1 ", text)


def meant(listing, at: int, targets: dict[str, int], fields: dict[str, int]):
    """(address, instruction) of each line of a Listing, with its gaps filled in."""
    known = {**targets, **listing.labels(at)}
    result = []
    for address, line in listing.placed(at):
        text = re.sub(r"<(\w+)>", lambda match: hex(known[match.group(1)]), line.assembly)
        text = re.sub(r"\{(\w+)\}", lambda match: hex(fields[match.group(1)]), text)
        # objdump leaves out a displacement of nought unless the encoding has one.
        result.append((address, canonical(text)))
    return result
