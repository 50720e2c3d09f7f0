# SPDX-License-Identifier: GPL-3.0-or-later
"""The builder's refusals and failures, each with a stable reason code.

A code is part of the builder's contract (docs/patch-authors.md lists them); the set only grows.
"""

from __future__ import annotations

from typing import Any

REASONS: dict[str, str] = {
    "archive_missing": "the archive does not have the package, version or file",
    "build_failed": "the package or tree did not build",
    "changes_main": "the patch changes main(), which is never entered again",
    "chroot_failed": "the build chroot could not be made",
    "compile_command_unknown": "no compile command of an affected object was found",
    "data_layout_changed": "size or layout of existing data or of a structure changes",
    "data_initialiser_changed": "the initial value of existing data changes",
    "data_removed": "data that running code may use is removed or changes its kind",
    "empty_diff": "the patch changes no code of this binary",
    "entry_not_relocatable": "a function's first instruction has no copy that works elsewhere",
    "exceptions_unsupported": "exceptions may pass through new code, which no unwinder knows",
    "functions_unexpected": "other functions change than the recipe names",
    "generated_source": "the patch changes an input from which sources are generated",
    "init_code": "the patch changes code that runs before main() or at exit",
    "inline_assembly": "code outside of functions (assembler source or top-level asm) changes",
    "lto_unsupported": "the package is built with link-time optimisation",
    "manifest_invalid": "the recipe does not make a valid manifest",
    "match_unresolved": "matching did not find what the patch needs in the stock binary",
    "never_returns": "a changed function never returns, so no thread would ever run the new code",
    "no_build_id": "the stock binary has no build-id",
    "not_an_object": "the file is not a linked x86-64 ELF image",
    "old_code_unknown": "the old code of a changed function was not found in the stock binary",
    "patch_does_not_apply": "the source patch does not apply",
    "signing_failed": "ssh-keygen could not sign the bundle",
    "stock_mismatch": "the rebuilt binary is not the stock binary",
    "symbol_not_found": "a symbol that the new code uses was not found in the stock binary",
    "tool_missing": "a program the builder needs is missing",
    "unsupported_relocation": "the compiler made a relocation the patch ELF does not carry",
    "usage": "the command line is wrong",
}


class Refusal(Exception):
    """The builder will not, or could not, make a patch.

    ``reason`` is a key of REASONS, ``message`` names what was expected, what was found and what to
    do next, ``result`` holds the facts for machines.
    """

    def __init__(self, reason: str, message: str, **result: Any) -> None:
        if reason not in REASONS:
            raise AssertionError(f"reason code {reason!r} is not listed in errors.REASONS")
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.result: dict[str, Any] = result

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
