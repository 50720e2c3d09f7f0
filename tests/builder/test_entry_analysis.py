# SPDX-License-Identifier: GPL-3.0-or-later
"""Displaced instructions, hold templates, padding, tail edges, migrate modes: on assembled code."""

from __future__ import annotations

import ctypes
import mmap
import struct
import subprocess

import pytest
from iced_x86 import Decoder
from wfpatch_build.displacement import (
    NotRelocatable,
    first_instruction,
    hold_template,
    whole_instructions,
)
from wfpatch_build.entry_analysis import EntryAnalysis, OldFunction, describe_functions
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.survey import WAYS, survey, table, way


@pytest.fixture
def assembled(tmp_path):
    """assembled(text) -> (ObjectFile of a shared library, name -> OldFunction)."""

    def make(text: str, *flags: str):
        source, library = tmp_path / "code.S", tmp_path / "libcode.so"
        source.write_text(text + '\n.section .note.GNU-stack,"",@progbits\n')
        subprocess.run(
            ["gcc", "-shared", "-Wl,--build-id", "-o", library, source, *flags], check=True
        )
        image = ObjectFile.load(library)
        functions = {
            s.name: OldFunction(s.name, s.address, s.size)
            for s in image.symtab
            if s.type == "STT_FUNC" and s.size and s.section is not None
        }
        return image, functions

    return make


def function(name: str, body: str, *, local: bool = False, align: int = 4) -> str:
    """An assembler function with its unwind entry."""
    scope = "" if local else f".globl {name}\n.hidden {name}\n"
    return (
        f".text\n.p2align {align}\n{scope}.type {name}, @function\n"
        f"{name}:\n.cfi_startproc\n{body}\n.cfi_endproc\n.size {name}, .-{name}\n"
    )


# (source of the function, its first instruction's length, falls through, is a call)
FIRST = {
    "push": ("push %rbx\n pop %rbx\n ret", 1, True, False),
    "push_r15": ("push %r15\n pop %r15\n ret", 2, True, False),
    "mov": ("mov %rdi, %rax\n ret", 3, True, False),
    "sub": ("sub $0x28, %rsp\n add $0x28, %rsp\n ret", 4, True, False),
    "mov_imm": ("mov $1, %eax\n ret", 5, True, False),
    "lea_rip": ("lea datum(%rip), %rax\n ret", 7, True, False),
    "cmp_rip_imm": ("cmpl $0x1234567, datum(%rip)\n ret", 10, True, False),
    "cmp_rip_imm8": ("cmpb $5, datum(%rip)\n ret", 7, True, False),
    "jmp_short": ("jmp 1f\n nop\n1: ret", 2, False, False),
    "jmp_long": ("jmp other", 5, False, False),
    "jcc_short": ("jne 1f\n nop\n1: ret", 2, True, False),
    "jcc_long": ("jb other\n ret", 6, True, False),
    "jrcxz": ("jrcxz 1f\n mov $7, %eax\n ret\n1: mov $9, %eax\n ret", 2, True, False),
    "loop": ("loop 1f\n mov $7, %eax\n ret\n1: mov $9, %eax\n ret", 2, True, False),
    "loope": ("loope 1f\n mov $7, %eax\n ret\n1: mov $9, %eax\n ret", 2, True, False),
    "jecxz": ("jecxz 1f\n mov $7, %eax\n ret\n1: mov $9, %eax\n ret", 3, True, False),
    "call": ("call other\n ret", 5, True, True),
    "call_mem": ("call *pointer(%rip)\n ret", 6, True, True),
    "jmp_mem": ("jmp *pointer(%rip)", 6, False, False),
    "ret": ("ret", 1, False, False),
    "endbr": ("endbr64\n ret", 4, True, False),
    "tls": ("mov %fs:0, %rax\n ret", 9, True, False),
    "ud2": ("ud2", 2, False, False),
    "lock": ("lock incl datum(%rip)\n ret", 7, True, False),
    "vex": ("vmovups datum(%rip), %xmm0\n ret", 8, True, False),
}
DATA = ".data\n.p2align 4\ndatum: .zero 64\npointer: .quad 0\n"


def loaded(template, resolve, at: int) -> bytes:
    """The template's code as the applier would write it to address ``at``."""
    code = bytearray(template.code)
    for fixup in template.fixups:
        value = resolve(fixup.target) + fixup.addend - (at + fixup.offset)
        code[fixup.offset : fixup.offset + 4] = struct.pack("<i", value)
    return bytes(code)


@pytest.mark.parametrize("name", FIRST)
def test_the_first_instruction_keeps_its_meaning_elsewhere(assembled, name):
    body, length, falls_through, is_call = FIRST[name]
    image, functions = assembled(
        DATA + function("subject", body) + function("other", "mov $3, %eax\n ret", align=9)
    )
    subject = functions["subject"]
    data = image.read(subject.address, subject.size)
    template = first_instruction(data, subject.address)
    assert (template.length, template.falls_through, template.is_call) == (
        length,
        falls_through,
        is_call,
    )
    original = Decoder(64, data, ip=subject.address).decode()
    at = 0x40000000
    copy = Decoder(64, loaded(template, lambda a: a, at), ip=at)
    moved = copy.decode()
    if name in ("jrcxz", "loop", "loope", "jecxz"):
        assert moved.mnemonic == original.mnemonic
        over = copy.decode()
        assert moved.near_branch_target == over.ip + over.len
        assert over.near_branch_target == over.ip + over.len + 5
        assert copy.decode().near_branch_target == original.near_branch_target
        return
    assert moved.mnemonic == original.mnemonic
    if original.is_ip_rel_memory_operand:
        assert moved.ip_rel_memory_address == original.ip_rel_memory_address
        assert template.code.replace(bytes(4), b"") != b""
    elif template.fixups:
        assert moved.near_branch_target == original.near_branch_target
    else:
        assert template.code == data[:length]


@pytest.mark.parametrize(
    ("name", "register", "value", "expected"),
    [("jrcxz", "rcx", 0, 9), ("jrcxz", "rcx", 1, 7), ("jrcxz", "rcx", 1 << 40, 7)]
    + [("jecxz", "rcx", 1 << 40, 9), ("loop", "rcx", 2, 9), ("loop", "rcx", 1, 7)],
)
def test_counted_jumps_run_as_they_did(assembled, name, register, value, expected):
    """Runs the copy: the widened forms are the only ones whose code differs from the original."""
    body = FIRST[name][0]
    image, functions = assembled(function("subject", body))
    subject = functions["subject"]
    data = image.read(subject.address, subject.size)
    template = first_instruction(data, subject.address)
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        view = ctypes.c_char.from_buffer(page)
        base = ctypes.addressof(view)
        del view  # a page that is looked into cannot be closed
        page[0 : len(data)] = data
        at = base + 256
        setter = b"\x48\xb9" + struct.pack("<Q", value)  # movabs $value, %rcx
        code = setter + loaded(template, lambda a: base + a - subject.address, at + len(setter))
        back = base + template.length - (at + len(code) + 5)
        page[256 : 256 + len(code) + 5] = code + b"\xe9" + struct.pack("<i", back)
        assert ctypes.CFUNCTYPE(ctypes.c_int)(at)() == expected


def test_bytes_that_are_no_instruction_have_no_copy():
    with pytest.raises(NotRelocatable):
        first_instruction(b"\x06\x06\x06", 0x1000)  # push %es: not in 64-bit mode


def test_a_hold_takes_whole_instructions_and_says_where_each_went():
    code = bytes.fromhex("4157 7404 4156 c3")  # push r15; je +4; push r14; ret
    template = hold_template(code, 0x1000, [])
    assert template is not None
    assert template.length == 6
    assert template.boundaries == ((0, 0), (2, 2), (4, 8))
    assert template.code == bytes.fromhex("4157 0f8400000000 4156")
    assert template.fixups[0].target == 0x1008


@pytest.mark.parametrize(
    ("code", "targets"),
    [("c3", []), ("4157 4156 c3", [0x1002]), ("4157 e800000000 c3", []), ("90 90 c3", [])],
    ids=["short", "branch target", "call", "three bytes"],
)
def test_a_hold_is_impossible(code, targets):
    assert hold_template(bytes.fromhex(code), 0x1000, targets) is None


def test_a_branch_target_behind_the_displaced_bytes_does_not_matter():
    assert hold_template(bytes.fromhex("4157 4156 4155 c3"), 0x1000, [0x1006, 0x1000]) is not None


def test_whole_instructions_do_not_read_past_the_code():
    with pytest.raises(NotRelocatable):
        whole_instructions(b"\x90", 0x1000, 5)


def analysed(assembled, text: str, names: list[str], pieces=None):
    image, functions = assembled(text)
    chosen = [functions[name] for name in names]
    analysis = EntryAnalysis(image, pieces(functions) if pieces else ())
    return image, functions, {f["name"]: f for f in describe_functions(analysis, chosen)}


def test_tail_edges_and_migrate_modes(assembled):
    text = (
        function("plain", "mov $1, %eax\n ret")
        + function("target", "mov $2, %eax\n ret")
        + function("jumper", "push %rax\n pop %rax\n jmp target")
        + function("branching", "test %edi, %edi\n je target\n ret")
    )
    _, _, found = analysed(assembled, text, ["plain", "target", "jumper", "branching"])
    assert {n: f["tail_edges"] for n, f in found.items()} == {
        "plain": [],
        "target": [],
        "jumper": ["target"],
        "branching": ["target"],
    }
    assert {n: f["migrate"] for n, f in found.items()} == {
        "plain": "always",
        "target": "after_direct_call",
        "jumper": "always",
        "branching": "always",
    }


def test_an_edge_through_code_that_is_not_replaced(assembled):
    text = (
        function("target", "mov $2, %eax\n ret")
        + function("between", "inc %edi\n jmp target")
        + function("jumper", "push %rax\n pop %rax\n jmp between")
    )
    _, _, found = analysed(assembled, text, ["target", "jumper"])
    assert found["jumper"]["tail_edges"] == ["target"]
    assert found["target"]["migrate"] == "after_direct_call"


@pytest.mark.parametrize(
    "text",
    [
        function("one", "push %rax\n pop %rax\n jmp two")
        + function("two", "test %edi, %edi\n je one\n ret"),
        function("one", "dec %edi\n jne one\n ret"),
        function("one", "push %rax\n pop %rax\n jmp three")
        + function("three", "test %edi, %edi\n je one\n ret"),
    ],
    ids=["cycle", "loop to the entry", "cycle through other code"],
)
def test_a_function_that_can_reach_itself_never_migrates(assembled, text):
    _, functions, found = analysed(assembled, text, ["one"])
    assert found["one"]["migrate"] == "never"
    assert found["one"]["tail_edges"] == ["one"]
    if "two" in functions:
        _, _, found = analysed(assembled, text, ["one", "two"])
        assert {f["migrate"] for f in found.values()} == {"never"}


def test_an_indirect_jump_may_lead_to_any_function_whose_address_is_taken(assembled):
    text = (
        function("taken", "mov $2, %eax\n ret", local=True)
        + function("private", "mov $3, %eax\n ret")
        + function("jumper", "push %rax\n pop %rax\n jmp *%rdi")
        + function("taker", "lea taken(%rip), %rax\n ret")
    )
    _, _, found = analysed(assembled, text, ["taken", "private", "jumper"])
    assert found["jumper"]["tail_edges"] == ["*"]
    assert found["taken"]["migrate"] == "after_direct_call"
    assert found["private"]["migrate"] == "always"
    assert found["jumper"]["migrate"] == "always"


def test_a_stored_address_is_taken_too(assembled):
    text = (
        function("stored", "mov $2, %eax\n ret")
        + function("jumper", "push %rax\n pop %rax\n jmp *%rdi")
        + ".data\n.quad stored\n"
    )
    _, _, found = analysed(assembled, text, ["stored", "jumper"])
    assert found["stored"]["migrate"] == "after_direct_call"


SWITCH = """
#include <stdio.h>
int work(int x)
{
    switch (x) {
    case 0: return puts("a"); case 1: return puts("b") + 1; case 2: return puts("c") * 3;
    case 3: return puts("d") - 5; case 4: return getchar(); case 5: return puts("f") + 77;
    case 6: return puts("g") ^ 3; case 7: return puts("h") + puts("i");
    }
    return -1;
}
int through(int (*f)(int), int x) { return f(x + 1); }
int table(int (**f)(int), int x) { return f[x](x + 1); }
static const void *goal;
int computed(int x)
{
    static const void *const places[] = {&&one, &&two, &&three};
    goto *places[x % 3];
one: return puts("one");
two: x += puts("two");
three: goal = places[0]; return x + puts("three");
}
int main(int c, char **v) { return work(c); }
"""


@pytest.mark.parametrize("flags", ["-O2", "-O1", "-O3", "-Os", "-O2 -fcf-protection", "-O0"])
def test_switches_and_computed_gotos_stay_inside_but_indirect_calls_leave(tmp_path, flags):
    source, binary = tmp_path / "code.c", tmp_path / "code"
    source.write_text(SWITCH)
    subprocess.run(["gcc", *flags.split(), source, "-o", binary], check=True)
    image = ObjectFile.load(binary)
    analysis = EntryAnalysis(image)
    flow = {
        s.name: analysis.flow(OldFunction(s.name, s.address, s.size))
        for s in image.symtab
        if s.name in ("work", "through", "table", "computed")
    }
    assert not flow["work"].leaves_anywhere
    assert len(flow["work"].inside) >= 8
    if flags != "-O0":  # there the address takes a way over the stack, and counts as unknown
        assert not flow["computed"].leaves_anywhere
    if flags not in ("-O0", "-O1"):  # no tail calls are made there
        assert flow["through"].leaves_anywhere
        assert flow["table"].leaves_anywhere


def test_a_piece_that_ends_in_a_call_says_so(assembled):
    text = (
        function("dies", "push %rax\n call other")
        + function("other", "ud2")
        + function("leaves", "mov $231, %eax\n syscall")
        + function("through", "call *(%rdi)")
    )
    _, _, found = analysed(assembled, text, ["dies", "other", "leaves", "through"])
    assert found["dies"]["ends_in_call"] is True
    assert found["through"]["ends_in_call"] is True
    assert found["other"]["ends_in_call"] is False
    assert found["leaves"]["ends_in_call"] is False  # it pushes no return address


def test_a_system_call_is_not_displaced_as_a_call(assembled):
    text = function("asks", "syscall\n nopw 0(%rax)\n ret")
    _, _, found = analysed(assembled, text, ["asks"])
    assert found["asks"]["displaced"]["is_call"] is False


def test_entries_inside_of_the_first_five_bytes(assembled):
    text = (
        function("tiny", "ret", align=4)
        + function("next", "mov %edi, %eax\n ret", align=0)
        + function("loops", "nop\n1: dec %edi\n jne 1b\n ret")
    )
    _, functions, found = analysed(assembled, text, ["tiny", "loops"])
    assert functions["next"].address == functions["tiny"].address + 1
    assert found["tiny"]["inner_entries"] == [1]
    assert found["tiny"]["hold"] is None
    assert found["loops"]["inner_entries"] == [1]
    assert found["loops"]["hold"] is None


def test_padding_is_fill_that_nothing_reaches(assembled):
    text = (
        function("front", "mov $1, %eax\n ret")
        + function("subject", "push %r15\n pop %r15\n ret")
        + function("calls", "push %rax\n call front")
        + function("behind", "mov $1, %eax\n ret")
    )
    image, functions, found = analysed(assembled, text, ["front", "subject", "behind"])
    padding = found["subject"]["padding"]
    # The fill in front of the entry, five bytes right before it.
    assert padding == {"address": functions["subject"].address - 5, "size": 5}
    fill = image.read(padding["address"], 5)
    assert len(fill) == 5
    analysis = EntryAnalysis(image)
    for function_ in functions.values():
        run = analysis.padding(function_)
        if run is not None:
            inside = range(run[0], run[0] + run[1])
            assert not any(
                set(inside) & set(range(f.address, f.address + f.size)) for f in functions.values()
            )
            # The fill behind a call is where that call would return to.
            assert functions["calls"].address + functions["calls"].size not in inside


def test_functions_of_one_set_do_not_share_padding(assembled):
    text = (
        function("front", "mov $1, %eax\n ret")
        + function("one", "push %r15\n pop %r15\n jmp front", align=4)
        + function("two", "push %r15\n pop %r15\n ret", align=0)
    )
    _, _, found = analysed(assembled, text, ["one", "two"])
    places = [f["padding"]["address"] for f in found.values() if f["padding"]]
    assert len(places) == len(set(places)) >= 1


def test_survey_counts_every_function_once(assembled):
    text = "".join(function(f"f_{n}", FIRST[n][0]) for n in FIRST) + function("other", "ret") + DATA
    image, functions = assembled(text)
    counted = survey(image)
    assert counted.functions >= len(functions)
    assert sum(counted.ways[w] for w in WAYS) == counted.functions
    analysis = EntryAnalysis(image)
    assert way(analysis, functions["f_mov_imm"].address, 6) in ("byte", "swap")
    printed = table([counted]).splitlines()
    assert printed[0].split()[:2] == ["object", "functions"]
    assert printed[1].split()[0] == "libcode.so"


def test_the_plan_of_a_small_function_with_nothing_around_it(assembled):
    text = function("lone", "ret", align=0) + function(
        "next", "push %rbx\n pop %rbx\n ret", align=0
    )
    image, functions = assembled(text)
    found = way(EntryAnalysis(image), functions["lone"].address, functions["lone"].size)
    assert found in ("byte", "impossible")


def test_fill_behind_a_call_is_no_padding(assembled):
    # The call would return into the fill, were it to return.
    text = function("calls", "push %rax\n call subject") + function("subject", "push %r15\n ret")
    _, _, found = analysed(assembled, text, ["subject"])
    assert found["subject"]["padding"] is None
    text = function("jumps", "push %rax\n jmp subject") + function("subject", "push %r15\n ret")
    _, _, found = analysed(assembled, text, ["subject"])
    assert found["subject"]["padding"] is not None
