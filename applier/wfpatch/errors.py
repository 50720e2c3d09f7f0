# SPDX-License-Identifier: GPL-3.0-or-later
"""The exception tree and the stable reason codes.

A reason code is part of the product's contract: docs/reasons.md lists the same set, reports carry
it, and the set only grows.
"""

from __future__ import annotations

import errno
import traceback
from typing import Any

REASONS: dict[str, str] = {
    "already_traced": "another tracer holds a thread of the process",
    "applier_failed": "the applier failed in a way it has no code for; see the message",
    "applier_missing": "the applier is not installed on the host",
    "arming_impossible": "no way of arming fits a function's entry",
    "auto_impossible": "the auto policy cannot be sound for this patch or process",
    "backend_unavailable": "the host does not offer the backend that was asked for",
    "build_id_mismatch": "no mapped object has a build-id that the patch was built for",
    "bundle_altered": "manifest or patch ELF differ from what was signed",
    "busy": "another applier works on this host",
    "code_busy": "a thread stayed inside the bytes that an entry's jump replaces",
    "compiler_missing": "a tool that builds or signs the kernel service is missing",
    "conflict": "a patch that this one conflicts with is in force",
    "disk_full": "a file could not be written on the host: there is no room left",
    "dkms_missing": "DKMS, which builds the kernel service, is not installed",
    "empty_host_set": "no host of the inventory matches what was asked for",
    "evidence_stale": "the evidence of the host is past its limit",
    "generation_exhausted": "every row of the generation table is in use",
    "global_quiescence_timeout": "no moment was found at which all threads were quiescent",
    "gs_in_use": "a thread uses its GS base",
    "header_corrupt": "the region's header is damaged",
    "header_newer": "the region was laid out by a newer applier",
    "health_check_failed": "the manifest's health check failed",
    "health_gate_failed": "a health gate of the rollout failed after the patches were applied",
    "hold_timeout": "the threads could not all be stopped in time",
    "host_unreachable": "the controller could not reach the host",
    "injection_failed": "a system call injected into the process failed",
    "injection_impossible": "the process has no code to run system calls with",
    "injection_timeout": "no thread of the process could run the injected calls in time",
    "is_init": "the process is PID 1 and was not asked for",
    "kernel_headers_missing": "the headers of the running kernel are not installed",
    "kernel_module_build_failed": "the kernel service could not be built for the kernel",
    "kernel_module_not_permitted": "modules may not be loaded here: a container, or switched off",
    "kernel_service_busy": "the kernel service is in use and cannot be replaced or removed",
    "kernel_service_failed": "the kernel service failed in a way it has no code for",
    "kernel_thread": "a kernel thread runs no program",
    "kernel_unsupported": "the kernel or the processor lacks what the applier needs",
    "maintenance_window_closed": "the maintenance window closed before the host's wave began",
    "manifest_invalid": "the manifest does not fit its schema",
    "manifest_missing": "no manifest at hand names the CVE",
    "memory_unreadable": "memory of the process could not be read",
    "memory_unwritable": "memory of the process could not be written",
    "module_signature_required": "the kernel takes only modules signed by a key that it trusts",
    "no_free_address": "no free address within reach of the object",
    "no_matching_process": "no running process maps an object this patch is for",
    "no_permission": "the applier lacks a privilege",
    "not_64bit": "the process is not a 64-bit x86-64 process",
    "not_reached": "the run ended before it came to the host",
    "object_malformed": "an ELF object mapped in the process is damaged or hostile",
    "old_code_mismatch": "the code in memory is not the code the patch was built against",
    "opt_outs_invalid": "the store's list of opt-outs is damaged, so nothing is patched",
    "opted_out": "the rollout policy takes no part of the host",
    "patch_elf_malformed": "the patch ELF is damaged or hostile",
    "patch_elf_unsupported": "the patch ELF needs a newer applier",
    "policy_unsupported": "this applier does not offer the policy",
    "python_missing": "the host has no Python that could run the applier",
    "python_too_old": "the host's Python is older than the applier needs",
    "region_too_small": "the patch does not fit into a region",
    "required_patch_missing": "a patch that this one requires is not in force",
    "result_invalid": "what the host says does not fit its schema",
    "revocations_invalid": "the list of revoked keys is damaged, so no signature is believed",
    "rollout_journal_invalid": "the controller's record of an interrupted rollout is damaged",
    "rollout_policy_invalid": "the rollout policy is wrong, or does not fit inventory and patches",
    "rollout_revert_failed": "the host should have gone back after a failed rollout, and did not",
    "rollout_reverted": "the host went back because the rollout failed on others",
    "seccomp_forbids": "the process's seccomp filter forbids a call that is needed",
    "shadow_stack": "the process uses a shadow stack",
    "signature_invalid": "the bundle's signature does not verify",
    "signature_missing": "the bundle is not signed",
    "signer_expired": "the key that signed the bundle is not valid now",
    "signer_revoked": "the key that signed the bundle is revoked",
    "signer_unknown": "the bundle's signer is not an allowed signer",
    "signing_failed": "the bundle could not be signed on the controller",
    "stack_switching": "the object switches stacks and the manifest does not speak of it",
    "still_required": "a patch in force requires this one",
    "stragglers": "threads kept the transition open past its timeout",
    "store_invalid": "a file of the host's store is damaged or cannot be read or written",
    "superseded": "a patch in force supersedes this one",
    "symbol_not_found": "a symbol the patch needs was not found",
    "symbol_out_of_reach": "a symbol is too far from the region for the way the patch refers to it",
    "tampered": "live memory is not as the region's header says",
    "target_changed": "the process executed another program",
    "target_exited": "the process is gone",
    "task_failed": "a task failed in a way it has no code for; see the message",
    "thread_gone": "the thread is gone",
    "thread_unstoppable": "the thread did not stop in time",
    "transition_open": "an earlier transition of the process is still open",
    "unsupported_relocation": "the patch ELF has a relocation of an unsupported type",
    "usage": "the command line is wrong",
    "watch_failed": "the unit of the watch could not be set up or removed",
    "watch_running": "another watch works on this store",
    "watch_unsupported": "the host does not run systemd, which keeps the watch running",
}

#: What writing to a full disk, or past a quota, ends with.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class WfpatchError(Exception):
    """The root of all errors of the applier.

    Attributes: ``reason`` a key of REASONS; ``message`` for people, naming object, thread or file,
    what was expected, what was found and what to do next; ``result`` the facts for machines.
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


class Refused(WfpatchError):
    """A refusal at plan time: nothing was written to the process."""


class Failed(WfpatchError):
    """A failure after work had begun: the process is healthy, its state named and resumable."""


class Crashed(Failed):
    """An exception that nobody foresaw, as an outcome with a code: a hostile process that finds a
    fault of the applier's must not take the report on the others with it."""

    def __init__(self, error: Exception) -> None:
        trace = traceback.extract_tb(error.__traceback__)
        where = f" ({trace[-1].filename}:{trace[-1].lineno})" if trace else ""
        super().__init__(
            "applier_failed",
            f"{type(error).__name__}: {error}{where}; this is a fault of the applier, report it",
        )


class Usage(WfpatchError):
    """The caller's words are wrong."""
