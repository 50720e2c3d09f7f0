# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot be live-patched, and is refused before a patch ELF is made.

Old and new code run side by side in one address space, and nothing that has run already runs again:
so no change of existing data or of its layout, and no change of code that has had its only run.
"""

from __future__ import annotations

from collections.abc import Sequence

from iced_x86 import FlowControl

from wfpatch_build.compiled_object import SHN_COMMON, STT_FUNC, STT_GNU_IFUNC, CompiledObject
from wfpatch_build.control_flow import control_flow
from wfpatch_build.errors import Refusal
from wfpatch_build.instructions import decode, jump_target
from wfpatch_build.normal_form import Canonical, NormalForms
from wfpatch_build.object_change import ObjectChange
from wfpatch_build.object_file import ObjectFile
from wfpatch_build.pairing import is_compiler_made, source_name
from wfpatch_build.patch_file import Replaced
from wfpatch_build.type_layout import changed_layouts

_RUN_ONCE = (".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors", ".init", ".fini")
_ORDINARY = (
    *(".text", ".rodata", ".data", ".bss", ".tdata", ".tbss", ".lrodata", ".ldata", ".lbss"),
    *(".eh_frame", ".gcc_except_table", ".note", ".group", ".comment", *_RUN_ONCE),
)


# What code that throws, or lets others throw through it, needs of the C++ run-time library.
_EXCEPTIONS = frozenset(("__gxx_personality_v0", "__cxa_throw", "_Unwind_RaiseException"))


def _is(name: str, families: Sequence[str]) -> bool:
    return any(name == family or name.startswith(family + ".") for family in families)


def check_changes(changes: Sequence[ObjectChange], accept_layout: Sequence[str] = ()) -> None:
    """Refuse what the compiled objects show. Raises Refusal with the first reason that holds.

    ``accept_layout`` names types (`struct x` or `x`) whose layout may change all the same.
    """
    for change in changes:
        _check_assembly(change)
        _check_run_once(change)
        _check_main(change)
        _check_data(change)
        _check_collected(change)
        _check_layouts(change, accept_layout)
    if all(change.diff.is_empty for change in changes):
        sources = ", ".join(change.unit.source for change in changes) or "no object of it"
        raise Refusal(
            "empty_diff",
            "the patch changes no code that is compiled into this binary "
            f"(compiled before and after: {sources})",
        )


def _check_main(change: ObjectChange) -> None:
    if any(source_name(old) == "main" for old, _ in change.diff.changed):
        raise Refusal(
            "changes_main",
            f"main() in {change.unit.source} changes; it runs once and is never entered again, "
            "so the change could not take effect in a running process",
        )


def _commons(obj: CompiledObject) -> dict[str, int]:
    """Name -> size of the variables that the linker allocates (-fcommon)."""
    return {s.name: s.size for s in obj.symbols if s.section == SHN_COMMON}


def _check_data(change: ObjectChange) -> None:
    before, after = _commons(change.pre), _commons(change.post)
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            raise Refusal(
                "data_layout_changed",
                f"{name} in {change.unit.source}: {before[name]} bytes become {after[name]}",
                name=name,
            )
    if change.diff.data.ambiguous:
        raise Refusal(
            "data_layout_changed",
            f"{change.unit.source}: static variables come or go, and which of "
            f"{', '.join(change.diff.data.ambiguous)} is which cannot be told",
        )
    for item in change.diff.data_changes:
        if is_compiler_made(item.name):
            continue
        where = f"{item.name} in {change.unit.source}"
        if item.what in ("size", "kind"):
            raise Refusal(
                "data_layout_changed", f"{where}: {item.detail}", name=item.name, what=item.what
            )
        if item.what == "removed" and item.writable:
            raise Refusal(
                "data_removed",
                f"{where} is no longer defined, its value would be lost",
                name=item.name,
            )
        if item.what == "content" and (item.writable or item.relocated or not item.is_local):
            raise Refusal(
                "data_initialiser_changed",
                f"{where}: {item.detail}; the running process keeps the old ones",
                name=item.name,
            )


def _entries(obj: CompiledObject, forms: NormalForms, canonical: Canonical) -> set[object]:
    """What the arrays of functions that run once refer to."""
    found: set[object] = set()
    for section in obj.sections:
        if section.allocated and _is(section.name, _RUN_ONCE):
            found |= {
                forms.token(forms.references.resolve(section, r), canonical)
                for r in section.relocations
            }
    return found


def _check_run_once(change: ObjectChange) -> None:
    diff = change.diff
    before = _entries(diff.old.obj, diff.old.forms, diff.old_canonical)
    after = _entries(diff.new.obj, diff.new.forms, diff.canonical)
    once = {str(t[1]) for t in before if isinstance(t, tuple) and t[0] == "function"}
    changed = {old for old, _ in diff.changed}
    resolvers = {n for n, s in diff.old.obj.functions.items() if s.type == STT_GNU_IFUNC}
    hit = sorted(changed & (once | resolvers))
    if before != after or hit:
        names = ", ".join(hit) or "the list of constructors and destructors"
        raise Refusal(
            "init_code",
            f"{names} in {change.unit.source} changes; it runs before main() or at exit only",
        )


def _check_assembly(change: ObjectChange) -> None:
    before, after = _loose_code(change.pre), _loose_code(change.post)
    if before != after:
        raise Refusal(
            "inline_assembly",
            f"code outside of functions (top-level asm) in {change.unit.source} changes; "
            "it has no bounds by which it could be replaced",
        )


def _loose_code(obj: CompiledObject) -> list[tuple[str, bytes]]:
    """Bytes of executable sections that no function symbol covers."""
    loose = []
    for section in obj.sections:
        if not section.executable or not section.allocated or _is(section.name, _RUN_ONCE):
            continue
        covered = sorted(
            (s.value, s.value + s.size)
            for s in obj.by_section.get(section.index, ())
            if s.type in (STT_FUNC, STT_GNU_IFUNC)
        )
        at, rest = 0, b""
        for start, end in covered:
            rest += section.data[at:start]
            at = max(at, end)
        rest += section.data[at:]
        if rest.strip(b"\x90\xcc\x00"):
            loose.append((section.name, rest))
    return loose


def _check_collected(change: ObjectChange) -> None:
    """Sections of one's own naming are arrays that the linker collects, walked at some time."""

    def content(
        obj: CompiledObject, forms: NormalForms, canonical: Canonical
    ) -> list[tuple[str, ...]]:
        return sorted(
            (
                (s.name, *map(repr, forms.content(s, 0, s.size, canonical)))
                for s in obj.sections
                if s.allocated and s.size and not _is(s.name, _ORDINARY)
            ),
        )

    diff = change.diff
    before = content(diff.old.obj, diff.old.forms, diff.old_canonical)
    after = content(diff.new.obj, diff.new.forms, diff.canonical)
    if before != after:
        raise Refusal(
            "data_layout_changed",
            f"a section of its own kind in {change.unit.source} changes, which the linker collects "
            "into an array of the binary",
        )


def _check_layouts(change: ObjectChange, accepted: Sequence[str]) -> None:
    if change.diff.is_empty:
        return
    for item in changed_layouts(change.pre, change.post):
        if item.type not in accepted and item.type.partition(" ")[2] not in accepted:
            raise Refusal(
                "data_layout_changed",
                f"{item.type} in {change.unit.source}: {item.text}; the process has instances of "
                "the old layout",
                type=item.type,
            )


def check_replaced(image: ObjectFile, replaced: Sequence[Replaced]) -> None:
    """Refuse what the stock object shows: exceptions, and functions that no thread ever leaves."""
    throwers = sorted(_EXCEPTIONS & {s.name for s in image.dynsym if s.section is None})
    if throwers:
        raise Refusal(
            "exceptions_unsupported",
            f"{image.name} may throw exceptions (it imports {throwers[0]}); one that is thrown "
            "through new code would end the process, as no unwinder knows that code",
        )
    for item in replaced:
        if never_returns(image, item.old.bounds):
            raise Refusal(
                "never_returns",
                f"{item.old.name} loops for ever: a thread in it never enters it again, and no "
                "thread could run the new code",
                function=item.old.name,
            )


def never_returns(image: ObjectFile, pieces: Sequence[tuple[int, int]]) -> bool:
    """Whether the code has a loop but neither a return nor a jump out.

    A function without a loop that ends in calls of exit() or abort() is left by ending the process
    and is entered anew each time: that is no obstacle.
    """
    flow = control_flow(image, pieces)
    if flow.leaving or flow.slots or flow.leaves_anywhere:
        return False
    loops = False
    for start, size in pieces:
        for instruction in decode(image.read(start, size), start):
            if instruction.flow_control == FlowControl.RETURN:
                return False
            target = jump_target(instruction)
            loops = loops or (target is not None and target <= instruction.ip)
    return loops
