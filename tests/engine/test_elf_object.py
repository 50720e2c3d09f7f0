# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the objects of real processes, compared with what the processes say themselves."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sample_patch
from elftools.elf.elffile import ELFFile
from wfpatch.elf_header import PT_DYNAMIC
from wfpatch.elf_object import (
    BuildIds,
    ObjectImage,
    find_object,
    link_order,
    mapped_objects,
    objects,
    read_object,
)
from wfpatch.errors import WfpatchError
from wfpatch.maps import MemoryMap
from wfpatch.memory import ProcessMemory


def _objects(pid: int) -> tuple[ObjectImage, ...]:
    return objects(pid, ProcessMemory(pid), MemoryMap.read(pid))


def _main(pid: int) -> ObjectImage:
    found = [image for image in _objects(pid) if image.main]
    assert len(found) == 1
    return found[0]


def _named(pid: int, part: str) -> ObjectImage:
    return next(image for image in _objects(pid) if part in image.path)


def _file_symbols(path: Path) -> dict[str, Any]:
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    return {s.name: s.entry for s in elf.get_section_by_name(".symtab").iter_symbols()}


def _file_build_id(path: Path) -> str:
    section = ELFFile(io.BytesIO(path.read_bytes())).get_section_by_name(".note.gnu.build-id")
    return str(next(iter(section.iter_notes()))["n_desc"])


@pytest.fixture
def library(program: Any) -> Path:
    return Path(program("linked_library", "-Wl,-soname,liblinked.so.1", shared=True))


@pytest.fixture
def with_library(program: Any, library: Path) -> Path:
    return Path(
        program(
            "linked",
            "-ldl",
            "-DLIBRARY",
            "-DALIGN=64",
            "-Wl,-z,lazy",
            f"-L{library.parent}",
            f"-l:{library.name}",
        )
    )


def _start_with_library(start: Any, path: Path, library: Path, where: Path, **options: Any) -> Any:
    """The program asks for the library by its soname, which is not the file's name."""
    (where / "liblinked.so.1").symlink_to(library)
    return start(path, env={"LD_LIBRARY_PATH": str(where), **options.pop("env", {})}, **options)


@pytest.mark.parametrize("flags", [(), ("-no-pie",), ("-static",), ("-static-pie",)])
def test_objects_are_the_loaded_ones_with_their_bias(
    program: Any, start: Any, flags: tuple[str, ...]
) -> None:
    path = Path(
        program("linked", "-ldl", *flags, *(("-Wno-error",) if "static" in str(flags) else ()))
    )
    process = start(path)
    image = _main(process.pid)
    assert image.build_id == _file_build_id(path)
    assert image.address(_file_symbols(path)["main"]["st_value"]) == int(process.ask("main"))
    assert image.position_independent == ("-no-pie" not in flags and "-static" not in flags)
    found = _objects(process.pid)
    names = {i.path if i.soname is None else i.soname for i in found}
    expected = {str(path), "linux-vdso.so.1"}
    if "static" not in str(flags):
        expected |= {"libc.so.6", "ld-linux-x86-64.so.2"}
    # before glibc 2.34 there were more
    assert names - {"libdl.so.2", "libpthread.so.0"} == expected


def test_a_deleted_and_a_replaced_file_keep_their_identity(
    program: Any, start: Any, tmp_path: Path
) -> None:
    original = Path(program("linked", "-ldl"))
    copy = tmp_path / "service"
    shutil.copy(original, copy)
    process = start(copy)
    # as a package upgrade does it: another file under the same name
    upgrade = tmp_path / "new"
    shutil.copy("/bin/true", upgrade)
    upgrade.rename(copy)
    wanted = _file_build_id(original)
    image = _main(process.pid)
    assert (image.build_id, image.deleted, image.path) == (wanted, True, str(copy))
    found = find_object(process.pid, {wanted})
    assert [(o.start, o.deleted, o.path) for o in found] == [(image.base, True, str(copy))]
    assert find_object(process.pid, {_file_build_id(Path(shutil.which("true") or ""))}) == ()


def test_build_ids_are_read_once_for_each_file(
    start: Any, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program("linked", "-ldl")
    first, second = start(path), start(path)
    opened: list[str] = []
    original = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda name, *rest, **more: opened.append(str(name)) or original(name, *rest, **more),
    )
    cache = BuildIds()
    one = {(o.path, o.build_id) for o in mapped_objects(first.pid, cache)}
    count = len(opened)
    assert count == len(one) >= 3
    assert {(o.path, o.build_id) for o in mapped_objects(second.pid, cache)} == one
    assert len(opened) == count
    assert all(build_id for _, build_id in one)


def test_a_file_that_is_only_read_is_no_object(tmp_path: Path, start: Any, program: Any) -> None:
    image = program("linked_library", shared=True)
    code = (
        "import mmap,sys\n"
        f"f=open({str(image)!r},'rb');m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n"
        "print('ready',flush=True);sys.stdin.read()"
    )
    process = start(shutil.which("python3"), "-c", code)
    assert str(image) in {mapping.path for mapping in MemoryMap.read(process.pid)}
    assert str(image) not in {found.path for found in _objects(process.pid)}
    assert str(image) not in {found.path for found in mapped_objects(process.pid)}


def test_definitions_are_found_by_name_and_version(program: Any, start: Any) -> None:
    process = start(program("linked", "-ldl"))
    libc = next(image for image in _objects(process.pid) if image.soname == "libc.so.6")
    assert libc.dynamic is not None
    for name, version in [
        ("fopen", "GLIBC_2.2.5"),
        ("realpath", "GLIBC_2.2.5"),
        ("realpath", "GLIBC_2.3"),
        ("pthread_cond_wait", "GLIBC_2.2.5"),
        ("pthread_cond_wait", "GLIBC_2.3.2"),
    ]:
        found = libc.definition(name, version)
        assert found is not None, (name, version)
        assert libc.address(found.value) == int(process.ask(f"dlvsym {name} {version}"))
    default = libc.definition("realpath", None)
    assert default is not None
    assert default.version == "GLIBC_2.3"
    assert libc.definition("realpath", "GLIBC_9.9") is None
    # without a version it is the default one, as for dlsym, wherever it stands in its hash chain
    several = (
        "realpath",
        "regexec",
        "posix_spawn",
        "fmemopen",
        "sched_setaffinity",
        "glob",
        "fclose",
    )
    for name in several:
        found = libc.definition(name, None)
        assert found is not None
        assert libc.address(found.value) == int(process.ask(f"dlsym {name}")), name
    assert any(next(libc.dynamic.definitions(name)).hidden for name in several)
    assert libc.definition("no_such_function", None) is None


@pytest.mark.parametrize("style", ["sysv", "gnu", "both"])
def test_every_exported_symbol_is_found_by_either_hash(
    program: Any, start: Any, style: str
) -> None:
    path = program("linked_library", f"-Wl,--hash-style={style}", shared=True)
    process = start(program("linked", "-ldl"))
    assert process.ask(f"dlopen {path}") == "1"
    image = _named(process.pid, path.name)
    assert image.dynamic is not None
    exported = ["library_offset", "library_function", "library_variable", "before"]
    table = _file_symbols(path)
    for name in exported:
        found = image.definition(name, None)
        assert found is not None, name
        assert found.value == table[name]["st_value"]
    assert image.definition("abs", None) is None, "imported, not defined"


def test_a_lazy_slot_is_told_from_a_resolved_one(
    with_library: Path, library: Path, start: Any, tmp_path: Path
) -> None:
    process = _start_with_library(start, with_library, library, tmp_path)
    image = _main(process.pid)
    assert not image.bind_now
    (slot,) = image.slots_of("library_function", None)
    before = image.slot_value(slot)
    assert image.in_text(before)
    assert image.is_lazy(slot, before)
    assert image.resolved("library_function", None) is None
    assert process.ask("function") == "8"
    expected = int(process.ask("dlsym library_function"))
    assert image.slot_value(slot) == expected
    assert not image.is_lazy(slot, expected)
    assert image.resolved("library_function", None) == expected


def test_bind_now_leaves_nothing_lazy(program: Any, start: Any) -> None:
    process = start(program("linked", "-ldl", "-Wl,-z,now"))
    image = _main(process.pid)
    assert image.bind_now
    for name in ("printf", "dlvsym", "fgets"):
        assert image.resolved(name, None) == int(process.ask(f"dlsym {name}")), name


def test_versions_of_imports_are_read(program: Any, start: Any) -> None:
    path = Path(program("linked", "-ldl"))
    image = _main(start(path).pid)
    assert image.dynamic is not None
    versions = {name: pairs[0][0].version for name, pairs in image.dynamic.imports.items()}
    in_file = sample_patch._Program(path).versions
    assert versions.items() <= in_file.items()
    assert versions["fgets"] == "GLIBC_2.2.5"
    assert len(set(versions.values())) >= 3
    assert image.slots_of("fgets", "GLIBC_2.2.5") == image.slots_of("fgets", None) != ()
    assert image.slots_of("fgets", "GLIBC_9.9") == ()


@pytest.mark.parametrize("align", [None, 16, 64, 4096])
@pytest.mark.parametrize("pie", ["-pie", "-no-pie"])
def test_the_executables_thread_local_offset(
    program: Any, start: Any, align: int | None, pie: str
) -> None:
    path = program("linked", "-ldl", pie, *([] if align is None else [f"-DALIGN={align}"]))
    process = start(path)
    offset = _main(process.pid).thread_local_offset
    assert offset is not None
    table = _file_symbols(path)
    for name in ["odd", "zero", *([] if align is None else ["aligned"])]:
        assert offset + table[name]["st_value"] == int(process.ask(name)), name


def test_a_librarys_thread_local_offset(
    with_library: Path, library: Path, start: Any, tmp_path: Path
) -> None:
    process = _start_with_library(start, with_library, library, tmp_path)
    image = _named(process.pid, library.name)
    offset = image.thread_local_offset
    assert offset is not None
    value = _file_symbols(library)["library_variable"]["st_value"]
    assert offset + value == int(process.ask("library"))


def test_a_library_without_initial_exec_has_no_known_offset(program: Any, start: Any) -> None:
    path = program("linked", "-ldl", "-DALIGN=16", shared=True)
    process = start(program("linked", "-ldl"))
    assert process.ask(f"dlopen {path}") == "1"
    image = _named(process.pid, path.name)
    assert image.thread_local is not None
    assert image.thread_local_offset is None


def test_link_order_is_the_dynamic_linkers(
    with_library: Path, library: Path, program: Any, start: Any, tmp_path: Path
) -> None:
    preload = program("linked_library", "-DPRELOAD", shared=True)
    opened = program("linked_library", "-DOPENED", shared=True)
    process = _start_with_library(
        start, with_library, library, tmp_path, env={"LD_PRELOAD": str(preload)}
    )
    assert process.ask(f"dlopen {opened}") == "1"
    images = link_order(_objects(process.pid))
    order = [image.soname if "libc" in image.path else image.path for image in images]
    places = [
        order.index(str(name)) for name in (with_library, preload, library, "libc.so.6", opened)
    ]
    assert places == sorted(places)
    assert len(order) == len(set(order)) == len(_objects(process.pid))


def test_stack_switching_imports_are_named(program: Any, start: Any) -> None:
    assert _main(start(program("linked", "-ldl")).pid).stack_switching_imports() == ()
    image = _main(start(program("linked", "-ldl", "-DSWITCHES")).pid)
    assert image.stack_switching_imports() == ("makecontext",)


def test_a_32_bit_or_foreign_file_is_no_header(tmp_path: Path, program: Any) -> None:
    class Flat:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def read(self, address: int, size: int) -> bytes:
            return self.data[address : address + size]

    from wfpatch.maps import Mapping

    good = Path(program("linked", "-ldl")).read_bytes()
    mapping = Mapping(0, len(good) & -4096, "r--p", 0, "00:00", 1, "/x", False)
    assert read_object(Flat(good), mapping) is not None
    for place, value in ((4, 1), (5, 2), (18, 3), (54, 32), (56, 255)):
        bad = bytearray(good)
        bad[place] = value
        assert read_object(Flat(bytes(bad)), mapping) is None, place


class _Altered:
    """A process's memory with some bytes of one object altered, as the process could do itself."""

    def __init__(self, memory: ProcessMemory) -> None:
        self.memory = memory
        self.changes: dict[int, int] = {}

    def read(self, address: int, size: int) -> bytes:
        data = bytearray(self.memory.read(address, size))
        for place, value in self.changes.items():
            if address <= place < address + size:
                data[place - address] = value
        return bytes(data)


def _use(pid: int, memory: Any, memory_map: MemoryMap) -> set[str]:
    """Everything that the applier does with objects; the reasons of what failed."""
    reasons: set[str] = set()
    images = objects(pid, memory, memory_map)
    link_order(images)
    for image in images:
        for read in (
            lambda: image.soname,  # noqa: B023
            lambda: image.dynamic and image.dynamic.needed,  # noqa: B023
            lambda: image.definition("library_function", None),  # noqa: B023
            lambda: image.definition("printf", "GLIBC_2.2.5"),  # noqa: B023
            lambda: image.resolved("abs", None),  # noqa: B023
            lambda: image.resolved_ifunc(0x1000),  # noqa: B023
            image.stack_switching_imports,
            lambda: image.thread_local_offset,  # noqa: B023
        ):
            try:
                read()
            except WfpatchError as error:
                reasons.add(error.reason)
    assert reasons <= {"object_malformed", "memory_unreadable"}
    return reasons


def test_hostile_objects_in_memory_do_no_harm(
    with_library: Path, library: Path, start: Any, tmp_path: Path
) -> None:
    """2,000 alterations of the library's headers and tables; WFPATCH_FUZZ_SEED repeats a run."""
    process = _start_with_library(start, with_library, library, tmp_path)
    memory_map = MemoryMap.read(process.pid)
    memory = _Altered(ProcessMemory(process.pid))
    image = next(i for i in objects(process.pid, memory, memory_map) if library.name in i.path)
    dynamic = image.header.of_type(PT_DYNAMIC)[0]
    start_of_dynamic = image.address(dynamic.address)
    places = [image.base + offset for offset in range(64 + 56 * len(image.header.segments))]
    places += [start_of_dynamic + offset for offset in range(dynamic.size)]
    places += [image.base + offset for offset in range(0x200, 0x700)]  # hashes, symbols, versions
    seed = int(os.environ.get("WFPATCH_FUZZ_SEED", random.SystemRandom().randrange(1 << 32)))
    failed = 0
    others = MemoryMap([m for m in memory_map if m.path == image.path])
    for number in range(2000):
        chance = random.Random(seed * 2000 + number)
        memory.changes = {}
        for _ in range(chance.randrange(1, 4)):
            place = chance.choice(places)
            if chance.random() < 0.5:
                place &= -8
                wide = struct.pack(
                    "<Q", chance.choice((0, 1, 1 << 32, 1 << 47, (1 << 64) - 1, image.base))
                )
                memory.changes.update({place + i: byte for i, byte in enumerate(wide)})
            else:
                memory.changes[place] = chance.randrange(256)
        try:
            failed += bool(_use(process.pid, memory, others))
        except BaseException as error:
            raise AssertionError(f"seed {seed}, alteration {number}: {error!r}") from error
    assert 100 < failed < 1900, "alterations that all or never matter prove nothing"
    memory.changes = {}
    assert process.ask("function") == "8"


def test_the_main_object_is_found_though_its_name_lies(
    program: Any, start: Any, tmp_path: Path
) -> None:
    """Names in the memory map are the file system's; a process's argv[0] plays no part."""
    path = program("linked", "-ldl")
    process = start("bash", "-c", f"exec -a /usr/sbin/other {path}")
    assert _main(process.pid).path == str(path)


def test_a_process_that_is_gone_is_a_named_failure(program: Any) -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    with pytest.raises(WfpatchError) as caught:
        mapped_objects(process.pid)
    assert caught.value.reason == "target_exited"
