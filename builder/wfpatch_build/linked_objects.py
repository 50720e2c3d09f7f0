# SPDX-License-Identifier: GPL-3.0-or-later
"""Which compiler calls made the objects that a binary was linked from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wfpatch_build.build_tree import BuildTree
from wfpatch_build.compile_log import CompilerCall
from wfpatch_build.errors import Refusal
from wfpatch_build.object_file import ObjectFile


@dataclass(frozen=True)
class Unit:
    """One compilation: ``call`` compiles ``source`` (as the call spells it)."""

    call: CompilerCall
    source: str

    @property
    def source_path(self) -> str:
        return self.call.absolute(self.source)


def unstripped_binary(build: BuildTree, build_id: str) -> Path:
    """The linked file of the tree with this build-id and a symbol table; of several copies, the
    one that a logged link command wrote."""
    outputs = {call.output for call in build.calls if call.links and call.output is not None}
    written = [build.on_machine(o) for o in sorted(outputs) if o.startswith(build.path + "/")]
    for path in written:
        if _is_unstripped(path, build_id):
            return path
    copies = [p for p in sorted(build.tree.rglob("*")) if _is_unstripped(p, build_id)]
    if not copies:
        raise Refusal(
            "stock_mismatch",
            f"no unstripped binary with build-id {build_id} is in the built tree {build.tree}",
        )
    return min(copies, key=lambda path: ("/debian/" in str(path), path))


def _is_unstripped(path: Path, build_id: str) -> bool:
    """Whether it is an executable or library with this build-id, all code and a symbol table."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(18)
    if head[:4] != b"\x7fELF" or len(head) < 18 or head[16] not in (2, 3):
        return False
    image = ObjectFile(path.read_bytes(), path.name)
    text = image.section(".text")
    return (
        image.build_id == build_id
        and text is not None
        and text.type != "SHT_NOBITS"  # separate debug symbols
        and bool(image.symtab)
    )


def units_of(build: BuildTree, binary: Path) -> list[Unit]:
    """The compilations that ``binary`` (a file of the tree) was linked from.

    Raises Refusal("compile_command_unknown").
    """
    link = _link_call(build, binary)
    made: dict[str, Unit] = {}
    for call in build.calls:
        if call.compiles:
            for source in call.sources:
                if call.compiles_only:
                    made[call.object_of(source)] = Unit(call, source)
    found: dict[str, Unit] = {}
    for source in link.sources if link.compiles else ():
        found[f"{link.directory}:{source}"] = Unit(link, source)
    for path in _objects(build, link, made):
        unit = made.get(path)
        if unit is not None:
            found[path] = unit
    if not found:
        raise Refusal(
            "compile_command_unknown",
            f"no compile command was logged for the objects of {binary.name}",
        )
    return list(found.values())


def _link_call(build: BuildTree, binary: Path) -> CompilerCall:
    wanted = build.inside(binary)
    links = [c for c in build.calls if c.links]
    exact = [c for c in links if c.output == wanted]
    if exact:
        return exact[-1]
    # libtool relinks into a temporary name ("libx.so.1.0T") before it installs; packages also
    # link in one directory and move the file.
    name = binary.name
    for call in reversed(links):
        if os.path.basename(call.output or "").rstrip("T") == name:
            return call
    raise Refusal("compile_command_unknown", f"no link command was logged whose output is {wanted}")


def _objects(build: BuildTree, link: CompilerCall, made: dict[str, Unit]) -> Iterator[str]:
    """Paths of the objects that a link command names, directly or in archives of the tree."""
    for name in link.inputs:
        path = link.absolute(name)
        if name.endswith((".o", ".lo", ".os", ".pic.o")):
            yield path
        elif name.endswith(".a"):
            yield from _members(build, path, made)
    directories = [a[2:] for a in link.arguments if a.startswith("-L")]
    for word in link.arguments:
        if word.startswith("-l"):
            for directory in directories:
                path = link.absolute(os.path.join(directory, f"lib{word[2:]}.a"))
                if path.startswith(build.path + "/") and build.on_machine(path).is_file():
                    yield from _members(build, path, made)
                    break


def _members(build: BuildTree, archive: str, made: dict[str, Unit]) -> Iterator[str]:
    """Paths of the objects in an ar archive: the same bytes, or the same name nearby."""
    file = build.on_machine(archive)
    if not file.is_file():
        return
    by_name: dict[str, list[str]] = {}
    for path in made:
        by_name.setdefault(os.path.basename(path), []).append(path)
    for name, content in _ar_members(file):
        candidates = by_name.get(name, [])
        same = [p for p in candidates if _content(build.on_machine(p)) == content]
        near = sorted(
            same or candidates,
            key=lambda p: -len(os.path.commonprefix([p, archive])),
        )
        if near:
            yield near[0]


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _ar_members(file: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of an ar archive's members, GNU long names and thin archives included."""
    data = file.read_bytes()
    thin = data[:8] == b"!<thin>\n"
    if data[:8] not in (b"!<arch>\n", b"!<thin>\n"):
        return
    names = b""
    at = 8
    while at + 60 <= len(data):
        raw = data[at : at + 16].decode("latin-1").rstrip()
        size = int(data[at + 48 : at + 58])
        at += 60
        inline = not thin or raw in ("/", "//", "/SYM64/")
        content = data[at : at + size] if inline else b""
        at += (size + 1) // 2 * 2 if inline else 0
        if raw == "//":
            names = content
        elif raw in ("/", "/SYM64/"):
            continue
        elif raw.startswith("/"):
            start = int(raw[1:])
            name = names[start : names.index(b"\n", start)].decode("utf-8").rstrip("/")
            if thin:
                content = (file.parent / name).read_bytes()
            yield os.path.basename(name), content
        else:
            yield raw.rstrip("/"), content
