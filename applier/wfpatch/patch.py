# SPDX-License-Identifier: GPL-3.0-or-later
"""A patch, as read from a patch ELF (docs/patch-elf.md): frozen, checked, consistent in itself.

patch_elf.py reads the ELF structures, patch_metadata.py what ``.wfpatch.meta`` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from .errors import Refused

MAX_FILE = 64 << 20
MAX_SYMBOLS = 1 << 17
MAX_NAME = 16 << 10  # mangled C++ names run to several thousand characters
MAX_FUNCTIONS = 4096
MAX_ADDRESS = 1 << 47  # of user space (4-level paging), and so of link-time addresses


@dataclass(frozen=True)
class Fixup:
    """``code[offset:offset+4]`` = runtime(target) + addend - address_of(code[offset])."""

    offset: int
    addend: int
    target: int


@dataclass(frozen=True)
class Displaced:
    """A function's first instruction in relocated form; ``length`` is that of the original."""

    length: int
    code: bytes
    fixups: tuple[Fixup, ...]
    falls_through: bool
    is_call: bool
    cfa_offset: int


@dataclass(frozen=True)
class Hold:
    """The whole instructions that make up the first >= 5 bytes, relocated.

    ``boundaries`` are (offset in the old code, offset in ``code``) of each instruction.
    """

    length: int
    code: bytes
    fixups: tuple[Fixup, ...]
    boundaries: tuple[tuple[int, int], ...]
    falls_through: bool


@dataclass(frozen=True)
class Padding:
    """Bytes near an entry that are never executed."""

    address: int
    size: int


@dataclass(frozen=True)
class OldPiece:
    """One stretch of old code; ``kind`` is main, cold or part.

    ``mask`` is as long as ``old``: 0xff where a byte must be equal in memory, else 0x00.
    """

    kind: str
    address: int
    size: int
    old: bytes
    mask: bytes
    ends_in_call: bool


@dataclass(frozen=True)
class NewEntry:
    """Where a replaced function's new code begins: section index and offset in it; its size."""

    section: int
    offset: int
    size: int


@dataclass(frozen=True)
class ReplacedFunction:
    """A function that the patch brings new code for. Addresses are link-time virtual ones."""

    name: str
    file: str | None
    symbol: str
    main: OldPiece
    pieces: tuple[OldPiece, ...]
    displaced: Displaced
    hold: Hold | None
    padding: Padding | None
    inner_entries: tuple[int, ...]
    migrate: str
    tail_edges: tuple[str, ...]
    new_tail_edges: tuple[str, ...]
    entry: NewEntry

    @property
    def address(self) -> int:
        return self.main.address

    @property
    def size(self) -> int:
        return self.main.size

    def all_pieces(self) -> tuple[OldPiece, ...]:
        """The main piece and the others."""
        return (self.main, *self.pieces)


@dataclass(frozen=True)
class ObjectSymbol:
    """An undefined symbol that the patched object itself has.

    ``address`` is a link-time virtual address; for ``kind`` tls it is the offset in the object's
    thread-local block, as in a symbol table.
    """

    name: str
    file: str | None
    kind: str
    address: int
    size: int


@dataclass(frozen=True)
class ImportedSymbol:
    """An undefined symbol of another object.

    ``got`` are the link-time addresses of the patched object's own slots that hold its address.
    """

    name: str
    version: str | None
    kind: str
    got: tuple[int, ...]


@dataclass(frozen=True)
class PatchSymbol:
    """A row of the symbol table; ``section`` is None for an undefined symbol."""

    name: str
    type: int
    section: int | None
    value: int
    size: int
    owner: ObjectSymbol | ImportedSymbol | None


@dataclass(frozen=True)
class PatchRelocation:
    """``symbol`` is an index into PatchElf.symbols."""

    offset: int
    type: int
    symbol: int
    addend: int


@dataclass(frozen=True)
class PatchSection:
    """An allocatable section; ``data`` is empty for a zero-filled one."""

    index: int
    name: str
    writable: bool
    executable: bool
    alignment: int
    size: int
    data: bytes
    relocations: tuple[PatchRelocation, ...]

    @property
    def zero_filled(self) -> bool:
        return len(self.data) != self.size


@dataclass(frozen=True)
class TextSegment:
    address: int
    size: int


@dataclass(frozen=True)
class PatchedObject:
    """The object the patch is for."""

    build_ids: tuple[str, ...]
    name: str
    soname: str | None
    kind: str
    text: tuple[TextSegment, ...]


@dataclass(frozen=True)
class Built:
    """How the patch was made, for reports."""

    builder: str
    compiler: str
    flags: str
    method: str


@dataclass(frozen=True)
class PatchElf:
    """A patch ELF, read and checked. ``sections`` maps section indices to allocatable sections."""

    object: PatchedObject
    functions: tuple[ReplacedFunction, ...]
    sections: dict[int, PatchSection]
    symbols: tuple[PatchSymbol, ...]
    eh_frame: int | None
    built: Built

    def function(self, name: str) -> ReplacedFunction:
        """The first replaced function of that name; KeyError when there is none."""
        for function in self.functions:
            if function.name == name:
                return function
        raise KeyError(name)


def malformed(message: str, **facts: Any) -> NoReturn:
    """Refuse a patch ELF that contradicts its format."""
    raise Refused(
        "patch_elf_malformed", f"the patch ELF is malformed: {message}; rebuild the patch", **facts
    )
