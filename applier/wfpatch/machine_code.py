# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand-encoded x86-64: the notation, and the small pieces of code that a region is made of.

The host has neither assembler nor disassembler, so code is written as bytes with the assembly they
stand for beside them (AT&T syntax, as objdump prints it); the tests have objdump decode the bytes
and compare. Encodings: Intel SDM volume 2.

All functions are pure: addresses in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import Refused

_LOW_32 = -(1 << 31)
_HIGH_32 = (1 << 31) - 1

CALL_RECORD_SIZE = 72
"""Bytes of a system call record: u64 number, 6 u64 arguments, u64 result, u64 done."""


@dataclass(frozen=True)
class Line:
    """One instruction: its bytes with gaps to fill, its assembly, and the label before it.

    ``gaps`` are (offset, size, kind, name); kind is ``target`` (a distance from the end of the
    instruction) or ``field`` (a constant).
    """

    label: str
    code: bytes
    gaps: tuple[tuple[int, int, str, str], ...]
    assembly: str


def _line(label: str, code: str, assembly: str) -> Line:
    out = bytearray()
    gaps: list[tuple[int, int, str, str]] = []
    for token in code.split():
        if token.startswith("<"):
            gaps.append((len(out), 4, "target", token[1:-1]))
            out += bytes(4)
        elif token.startswith("{"):
            name, _, width = token[1:-1].partition(":")
            size = int(width or 8) // 8
            gaps.append((len(out), size, "field", name))
            out += bytes(size)
        else:
            out.append(int(token, 16))
    return Line(label, bytes(out), tuple(gaps), assembly)


class Listing:
    """A routine as text, one instruction a line: ``label:``, or ``bytes ; assembly``.

    A line that begins with ``;`` is a comment.

    In the bytes, ``<name>`` is the 32-bit distance from the end of the instruction to a label or an
    external address, ``{name}`` an 8-bit and ``{name:32}`` a 32-bit constant.
    """

    def __init__(self, text: str) -> None:
        lines: list[Line] = []
        label = ""
        for row in text.strip().splitlines():
            row = row.strip()
            if row.startswith(";"):
                continue
            if row.endswith(":"):
                label = row[:-1]
                continue
            parts = [part.strip() for part in row.split(";")]
            lines.append(_line(label, parts[0], parts[1]))
            label = ""
        self.lines = tuple(lines)
        self.size = sum(len(line.code) for line in lines)

    def placed(self, at: int) -> list[tuple[int, Line]]:
        """Each instruction with its address when the routine begins at ``at``."""
        result = []
        for line in self.lines:
            result.append((at, line))
            at += len(line.code)
        return result

    def labels(self, at: int) -> dict[str, int]:
        """The addresses of the labels."""
        return {line.label: address for address, line in self.placed(at) if line.label}

    def assemble(
        self, at: int, targets: Mapping[str, int] = {}, fields: Mapping[str, int] = {}
    ) -> bytes:
        """The routine's bytes at address ``at``.

        ``targets`` are external addresses, ``fields`` constants; raises Refused("no_free_address")
        when a target is out of reach.
        """
        known = {**targets, **self.labels(at)}
        out = bytearray()
        for address, line in self.placed(at):
            code = bytearray(line.code)
            for offset, size, kind, name in line.gaps:
                if kind == "target":
                    value = rel32(address + len(line.code), known[name])
                else:
                    value = fields[name]
                code[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(
                    size, "little"
                )
            out += code
        return bytes(out)


def reaches(origin: int, target: int) -> bool:
    """Whether a signed 32-bit distance leads from ``origin`` to ``target``."""
    return _LOW_32 <= target - origin <= _HIGH_32


def rel32(origin: int, target: int) -> int:
    """The signed 32-bit distance from ``origin`` (the end of the instruction) to ``target``."""
    if not reaches(origin, target):
        raise Refused(
            "no_free_address",
            f"{target:#x} is not within 2 GiB of {origin:#x}, which must jump to or read from it",
            origin=origin,
            target=target,
        )
    return target - origin


def jmp_rel32(at: int, target: int) -> bytes:
    """``jmp target`` at address ``at``: e9 rel32, 5 bytes."""
    return b"\xe9" + struct.pack("<i", rel32(at + 5, target))


def jmp_rel8(at: int, target: int) -> bytes:
    """``jmp target`` at address ``at``: eb rel8, 2 bytes; the caller has checked the reach."""
    return b"\xeb" + struct.pack("<b", target - (at + 2))


def jmp_absolute(target: int) -> bytes:
    """``jmp *0(%rip)`` and the address it reads: 14 bytes, reaches everywhere."""
    return b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", target)


def landing(at: int, target: int) -> bytes:
    """What stands where a punned jump lands: the shortest jump that reaches ``target``."""
    if reaches(at + 5, target):
        return jmp_rel32(at, target)
    return jmp_absolute(target)


def entry_stub(at: int, cell: int) -> bytes:
    """``jmp *%gs:cell(%rip)``: through the dispatch table row that the GS base selects, 7 bytes."""
    return b"\x65\xff\x25" + struct.pack("<i", rel32(at + 7, cell))


class Fixup(Protocol):
    """A 32-bit PC-relative field at ``offset`` in a template.

    Its value is ``resolve(target) + addend - address of the field``.
    """

    @property
    def offset(self) -> int: ...

    @property
    def addend(self) -> int: ...

    @property
    def target(self) -> int: ...


class ContinuationTemplate(Protocol):
    """The displaced instructions in relocated form: patch_elf.Displaced or patch_elf.Hold.

    ``length`` bytes of the function are displaced; ``code`` stands for them elsewhere;
    ``falls_through`` tells whether control can leave at the end of ``code``.
    """

    @property
    def length(self) -> int: ...

    @property
    def code(self) -> bytes: ...

    @property
    def fixups(self) -> Sequence[Fixup]: ...

    @property
    def falls_through(self) -> bool: ...


def continuation_size(template: ContinuationTemplate) -> int:
    """Bytes of the continuation: the code, and the jump back where control falls through."""
    return len(template.code) + (5 if template.falls_through else 0)


def continuation(
    template: ContinuationTemplate, at: int, function: int, resolve: Callable[[int], int]
) -> bytes:
    """The old continuation of the function at ``function``, placed at ``at``.

    ``resolve`` turns a link-time address of the object into a runtime address. Raises
    Refused("no_free_address") when a target is out of reach, Refused("patch_elf_malformed") when a
    fixup lies outside the code.
    """
    code = bytearray(template.code)
    for fixup in template.fixups:
        if not 0 <= fixup.offset <= len(code) - 4:
            raise Refused(
                "patch_elf_malformed",
                f"the displaced code of the function at {function:#x} has a fixup at offset "
                f"{fixup.offset}, outside its {len(code)} bytes",
                function=function,
            )
        value = rel32(at + fixup.offset, resolve(fixup.target) + fixup.addend)
        struct.pack_into("<i", code, fixup.offset, value)
    if template.falls_through:
        code += jmp_rel32(at + len(code), function + template.length)
    return bytes(code)


SYSCALL_RUNNER = Listing("""
next:
  4d 85 ed                      ; test %r13,%r13
  0f 84 <return>                ; je <return>
  ; A record that is done was run before a rerun of the same array.
  49 83 7c 24 40 01             ; cmpq $0x1,0x40(%r12)
  0f 84 <skip>                  ; je <skip>
  49 8b 04 24                   ; mov (%r12),%rax
  49 8b 7c 24 08                ; mov 0x8(%r12),%rdi
  49 8b 74 24 10                ; mov 0x10(%r12),%rsi
  49 8b 54 24 18                ; mov 0x18(%r12),%rdx
  4d 8b 54 24 20                ; mov 0x20(%r12),%r10
  4d 8b 44 24 28                ; mov 0x28(%r12),%r8
  4d 8b 4c 24 30                ; mov 0x30(%r12),%r9
  0f 05                         ; syscall
  49 89 44 24 38                ; mov %rax,0x38(%r12)
  49 c7 44 24 40 01 00 00 00    ; movq $0x1,0x40(%r12)
skip:
  49 83 c4 48                   ; add $0x48,%r12
  49 ff cd                      ; dec %r13
  e9 <next>                     ; jmp <next>
return:
  ; rt_sigreturn, its frame at rsp; the last instruction is not reached
  b8 0f 00 00 00                ; mov $0xf,%eax
  0f 05                         ; syscall
  0f 0b                         ; ud2
""")


def syscall_runner() -> bytes:
    """Runs the system call records at r12, r13 of them, then rt_sigreturn with the frame at rsp.

    Position independent; uses no stack. A record (72 bytes) is {u64 number, u64 arguments[6],
    u64 result, u64 done}: records that are done are skipped, the raw result is stored before done.
    The frame restores everything, so the thread ends where the frame says, tracer or not.
    """
    return SYSCALL_RUNNER.assemble(0)


def pack_call_records(calls: Sequence[tuple[int, Sequence[int]]]) -> bytes:
    """The records of (number, arguments) for the runner; arguments are taken modulo 2**64."""
    out = bytearray()
    for number, arguments in calls:
        words = [argument & (2**64 - 1) for argument in arguments]
        out += struct.pack("<9Q", number, *(words + [0] * (6 - len(words))), 0, 0)
    return bytes(out)


def unpack_call_records(data: bytes) -> list[tuple[int, bool]]:
    """(raw signed result, done) of each record."""
    return [
        (result, done == 1)
        for result, done in (
            struct.unpack_from("<qQ", data, at + 56) for at in range(0, len(data), CALL_RECORD_SIZE)
        )
    ]
