# SPDX-License-Identifier: GPL-3.0-or-later
"""The ELF objects of a process, read from its memory.

Everything here works for files that are deleted on disk or lie in another mount namespace, and
takes the process's memory for what it is: possibly altered, possibly hostile. Errors are
WfpatchErrors, and no structure read is trusted beyond the object's own bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .dynamic_symbols import (
    DT_DEBUG,
    R_X86_64_IRELATIVE,
    R_X86_64_JUMP_SLOT,
    R_X86_64_TPOFF64,
    DynamicSymbol,
    DynamicSymbols,
    Slot,
)
from .elf_header import (
    ET_EXEC,
    PAGE,
    PF_X,
    PT_DYNAMIC,
    PT_GNU_EH_FRAME,
    PT_LOAD,
    PT_TLS,
    ElfHeader,
    Segment,
    build_id,
    parse_header,
)
from .errors import Failed, WfpatchError
from .mapped_object import BuildIds, MappedObject, find_object, mapped_objects
from .maps import Mapping, MemoryMap
from .object_memory import Memory, ObjectMemory

AT_PHDR, AT_BASE, AT_SYSINFO_EHDR = 3, 7, 33
_MAX_EXTENT = 1 << 32
_MAX_LINK_MAPS = 4096

# Imports by which an object switches stacks by itself: frames of a thread then lie elsewhere than
# on its own stack. glibc's ucontext functions, Boost.Context's, GNU Pth's, libco's, libgcc's for
# split stacks. (What an object does by its own assembly, no import tells.)
STACK_SWITCHING = frozenset(
    ("makecontext", "setcontext", "swapcontext")
    + ("make_fcontext", "jump_fcontext", "ontop_fcontext")
    + ("pth_init", "pth_spawn", "co_create", "co_switch", "__splitstack_makecontext")
)


@dataclass(frozen=True)
class ThreadLocalBlock:
    """PT_TLS: the size in bytes and alignment of the object's thread-local variables."""

    address: int
    size: int
    alignment: int


@dataclass(frozen=True, eq=False)
class ObjectImage:
    """One object of a process.

    ``base`` is the address of its ELF header, ``bias`` what is added to a link-time address;
    ``path`` as in the memory map; ``main`` tells the executable itself.
    """

    memory: Memory
    header: ElfHeader
    base: int
    path: str
    deleted: bool
    main: bool
    build_id: str
    contents: ObjectMemory = field(repr=False)

    @property
    def bias(self) -> int:
        return self.base - self.header.first_address

    @property
    def start(self) -> int:
        """The lowest address of its segments."""
        return self.contents.start

    @property
    def end(self) -> int:
        """The end of its segments, a whole page."""
        return self.contents.end

    @property
    def position_independent(self) -> bool:
        return self.header.type != ET_EXEC

    def address(self, linked: int) -> int:
        """The run-time address of a link-time one."""
        return linked + self.bias

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end

    @cached_property
    def text(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of each executable segment, at run time."""
        return tuple(
            (self.address(s.address), self.address(s.address + s.size))
            for s in self.header.of_type(PT_LOAD)
            if s.flags & PF_X
        )

    def in_text(self, address: int) -> bool:
        """Whether an address lies in one of its executable segments."""
        return any(start <= address < end for start, end in self.text)

    @cached_property
    def eh_frame_hdr(self) -> tuple[int, int] | None:
        """(address, size) of its .eh_frame_hdr."""
        found = self.header.of_type(PT_GNU_EH_FRAME)
        if not found:
            return None
        return self.address(found[0].address), found[0].size

    @cached_property
    def dynamic(self) -> DynamicSymbols | None:
        """Its dynamic section; None for a static executable without one."""
        found = self.header.of_type(PT_DYNAMIC)
        if not found:
            return None
        return DynamicSymbols(
            self.contents, self.bias, self.address(found[0].address), found[0].size
        )

    @property
    def soname(self) -> str | None:
        return self.dynamic.soname if self.dynamic else None

    @property
    def bind_now(self) -> bool:
        return self.dynamic is None or self.dynamic.bind_now

    # -- imports ----------------------------------------------------------------------------------

    def slots_of(self, name: str, version: str | None) -> tuple[int, ...]:
        """Run-time addresses of its slots for a symbol (any version for None)."""
        return tuple(self.address(slot.address) for slot in self._slots_of(name, version))

    def _slots_of(self, name: str, version: str | None) -> list[Slot]:
        if self.dynamic is None:
            return []
        return [
            slot
            for symbol, slot in self.dynamic.imports.get(name, ())
            if version is None or symbol.version is None or symbol.version == version
        ]

    def slot_value(self, slot: int) -> int:
        """The word in a slot of this object, as it is in memory now."""
        if not self.start <= slot <= self.end - 8:
            self.contents.fail(f"slot {slot:#x} lies outside of it")
        value: int = struct.unpack("<Q", self.memory.read(slot, 8))[0]
        return value

    def resolved(self, name: str, version: str | None) -> int | None:
        """The address its own slots hold for a symbol; None while they are unresolved or differ."""
        values = set()
        for slot in self._slots_of(name, version):
            value = self.slot_value(self.address(slot.address))
            if value and not (slot.type == R_X86_64_JUMP_SLOT and self._lazy(slot, value)):
                values.add(value)
        return values.pop() if len(values) == 1 else None

    def is_lazy(self, address: int, value: int) -> bool:
        """Whether ``value``, read from the slot at run-time ``address``, is still unresolved."""
        if self.dynamic is None:
            return False
        return any(
            self.address(slot.address) == address and self._lazy(slot, value)
            for slot in self.dynamic.slots
            if slot.type == R_X86_64_JUMP_SLOT
        )

    def _lazy(self, slot: Slot, value: int) -> bool:
        """Whether a PLT slot still leads to the code that resolves it: ``push $number; jmp``.

        Both forms of the AMD64 supplement begin so, the one for IBT after an endbr64 (5.2 and
        13.2); the number pushed is that of the slot's own relocation.
        """
        if not self.in_text(value):
            return False
        code = self.memory.read(value, 16)
        if code.startswith(b"\xf3\x0f\x1e\xfa"):
            code = code[4:]
        return code[:5] == b"\x68" + slot.place.to_bytes(4, "little")

    def resolved_ifunc(self, resolver: int) -> int | None:
        """What its own IRELATIVE slots hold for the resolver at a link-time address."""
        if self.dynamic is None:
            return None
        for slot in self.dynamic.slots:
            if slot.type == R_X86_64_IRELATIVE and slot.addend == resolver:
                value = self.slot_value(self.address(slot.address))
                if not self._lazy(slot, value) and value != self.address(resolver):
                    return value
        return None

    def definition(self, name: str, version: str | None) -> DynamicSymbol | None:
        """Its definition of a symbol; the default version for None."""
        return None if self.dynamic is None else self.dynamic.definition(name, version)

    def stack_switching_imports(self) -> tuple[str, ...]:
        """The imports by which it switches stacks, sorted."""
        if self.dynamic is None:
            return ()
        return tuple(sorted(STACK_SWITCHING & set(self.dynamic.imports)))

    # -- thread-local storage ---------------------------------------------------------------------

    @cached_property
    def thread_local(self) -> ThreadLocalBlock | None:
        """Its PT_TLS segment."""
        found = self.header.of_type(PT_TLS)
        if not found:
            return None
        segment = found[0]
        alignment = max(segment.alignment, 1)
        if alignment & (alignment - 1) or alignment > 1 << 20:
            self.contents.fail(f"its thread-local block wants alignment {alignment}")
        return ThreadLocalBlock(segment.address, segment.size, alignment)

    @cached_property
    def thread_local_offset(self) -> int | None:
        """What to add to a variable's offset in the block to get that from the thread pointer.

        Negative (ABI variant II: blocks lie below the thread pointer). The executable's follows
        from its size and alignment; a library's is read from a word that the dynamic linker filled
        in for an initial-exec access. None where neither tells: no block, or a library that was
        never given a fixed place.
        """
        block = self.thread_local
        if block is None:
            return None
        if self.main:
            # the block ends at the thread pointer, but for its alignment (ELF TLS, variant II); of
            # a block that begins unaligned, linkers and loaders have had different opinions
            if block.address % block.alignment:
                return None
            return -(block.size + block.alignment - 1 & -block.alignment)
        return self._library_tls_offset()

    def _library_tls_offset(self) -> int | None:
        if self.dynamic is None:
            return None
        offsets = set()
        for slot in self.dynamic.slots:
            if slot.type != R_X86_64_TPOFF64:
                continue
            value = 0
            if slot.symbol:
                symbol = self.dynamic.symbol(slot.symbol)
                if not symbol.defined:
                    continue
                value = symbol.value
            word = self.slot_value(self.address(slot.address))
            offsets.add((word - value - slot.addend + (1 << 63)) % (1 << 64) - (1 << 63))
        # a symbol defined here may still have been bound to another object's: then they differ
        if len(offsets) != 1:
            return None
        offset = offsets.pop()
        block = self.thread_local
        return offset if block is not None and offset <= -block.size else None


def read_object(memory: Memory, mapping: Mapping, main: bool = False) -> ObjectImage | None:
    """The object whose headers a mapping begins with; None when there is none."""
    try:
        page = memory.read(mapping.start, min(PAGE, mapping.size))
    except Failed as error:
        if error.reason != "memory_unreadable":
            raise
        return None
    header = parse_header(page)
    if header is None:
        return None
    low, high = header.extent
    bias = mapping.start - header.first_address
    if high - low > _MAX_EXTENT or not 0 <= low + bias <= high + bias <= 1 << 47:
        return None
    name = mapping.path or f"object at {mapping.start:#x}"
    contents = ObjectMemory(memory, low + bias, high + bias, name)

    def read(segment: Segment) -> bytes:
        start = segment.address + bias - mapping.start
        if start >= 0 and start + segment.file_size <= len(page):
            return page[start : start + segment.file_size]
        try:
            return contents.read(segment.address + bias, segment.file_size)
        except WfpatchError:
            return b""

    return ObjectImage(
        memory,
        header,
        mapping.start,
        mapping.path,
        mapping.deleted,
        main,
        build_id(header, read),
        contents,
    )


def objects(pid: int, memory: Memory, memory_map: MemoryMap) -> tuple[ObjectImage, ...]:
    """All loaded objects of a process, the vdso included, by address.

    A file that is only mapped to be read is none: the place of its code must be mapped executable.
    """
    auxiliary = auxiliary_vector(pid)
    found = []
    for mapping in memory_map:
        vdso = mapping.start == auxiliary.get(AT_SYSINFO_EHDR)
        if mapping.offset or not mapping.readable or (mapping.anonymous and not vdso):
            continue
        image = read_object(memory, mapping)
        if image is None or not _loaded(image, memory_map):
            continue
        # AT_PHDR points at the executable's program headers, wherever the kernel put it
        main = image.start <= auxiliary.get(AT_PHDR, 0) < image.end
        found.append(image if not main else read_object(memory, mapping, main=True) or image)
    return tuple(found)


def _loaded(image: ObjectImage, memory_map: MemoryMap) -> bool:
    for start, _ in image.text:
        mapping = memory_map.containing(start)
        if mapping is None or not mapping.executable:
            return False
    return bool(image.text)


def auxiliary_vector(pid: int) -> dict[int, int]:
    """What the kernel told the program at its start (getauxval(3)): type -> value."""
    try:
        with open(f"/proc/{pid}/auxv", "rb") as file:
            data = file.read(4096)
    except OSError:
        return {}
    pairs = struct.iter_unpack("<QQ", data[: len(data) & -16])
    return {kind: value for kind, value in pairs if kind}


def link_order(images: Sequence[ObjectImage]) -> tuple[ObjectImage, ...]:
    """The objects in the order in which the dynamic linker searches them for a symbol.

    That is the list that DT_DEBUG of the executable leads to (struct r_debug and link_map of
    <link.h>): the executable, then its dependencies breadth-first, then what was opened later.
    Objects that are not in a readable list follow by address.
    """
    ordered: list[ObjectImage] = []
    main = next((image for image in images if image.main), None)
    if main is not None:
        ordered.append(main)
        try:
            for dynamic in _link_map(main):
                for image in images:
                    if dynamic in image and image not in ordered:
                        ordered.append(image)
        except WfpatchError:
            pass  # a damaged list: the order by address is as good as it gets
    return (*ordered, *(image for image in images if image not in ordered))


def _link_map(main: ObjectImage) -> Iterable[int]:
    """The dynamic sections' addresses (l_ld) along the list."""
    debug = main.dynamic.tags.get(DT_DEBUG, 0) if main.dynamic else 0
    if not debug:
        return
    (entry,) = struct.unpack("<Q", main.memory.read(debug + 8, 8))  # r_map
    for _ in range(_MAX_LINK_MAPS):
        if not entry:
            return
        _, _, dynamic, entry = struct.unpack("<QQQQ", main.memory.read(entry, 32))
        yield dynamic


__all__ = [
    "BuildIds",
    "MappedObject",
    "ObjectImage",
    "ThreadLocalBlock",
    "auxiliary_vector",
    "find_object",
    "link_order",
    "mapped_objects",
    "objects",
    "read_object",
]
