# SPDX-License-Identifier: GPL-3.0-or-later
"""Every reason code is provoked by a test, so that a new one cannot be forgotten.

The table names, for each code, the test that provokes it. The test must exist, and the code must
stand as a word in its text or in the table it is parametrized by; a code without a row fails.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from wfpatch.errors import REASONS

TESTS = Path(__file__).resolve().parents[1]
APPLIER = TESTS.parent / "applier" / "wfpatch"
PLUGINS = TESTS.parent / "plugins"
ROLES = TESTS.parent / "roles"

KERNEL_SERVICE = "unit/plugins/modules/test_kernel_service.py"

PROVOKED_BY = {
    "already_traced": "engine/test_refusals.py::test_a_traced_process",
    "applier_failed": "engine/test_hostile_processes.py::test_a_fault_of_the_applier_has_a_code",
    "applier_missing": "unit/plugins/modules/test_bundle.py",
    "arming_impossible": "engine/test_arming.py",
    "auto_impossible": "engine/test_refusals.py::test_no_entry_could_ever_migrate",
    "backend_unavailable": "engine/test_refusals.py::test_a_backend_that_is_not_there",
    "build_id_mismatch": "engine/test_refusals.py::test_a_patch_for_another_build",
    "bundle_altered": "engine/test_refusals.py::test_an_altered_patch_elf",
    "busy": "engine/test_refusals.py::test_another_applier",
    "code_busy": "engine/test_kernel_requests.py::test_a_thread_that_stays_inside_is_said",
    "compiler_missing": KERNEL_SERVICE,
    "conflict": "engine/test_refusals.py::test_a_conflict",
    "disk_full": "engine/test_store.py::test_no_room_to_note_what_shall_be_in_force",
    "dkms_missing": KERNEL_SERVICE,
    "empty_host_set": "integration/targets/playbooks/test_empty_host_set.py",
    "evidence_stale": "compliance/test_formats.py::test_stale_evidence_is_unknown_everywhere",
    "generation_exhausted": "engine/test_generation_table.py",
    "global_quiescence_timeout": "engine/test_refusals.py::test_no_global_quiescence",
    "gs_in_use": "engine/test_refusals.py::test_a_program_that_uses_gs",
    "header_corrupt": "engine/test_refusals.py::test_a_header_that_is_not_ours",
    "header_newer": "engine/test_refusals.py::test_a_header_that_is_not_ours",
    "health_check_failed": "engine/test_refusals.py::test_a_health_check_that_fails",
    "health_gate_failed": "fleet/test_rollouts.py::test_each_gate_names_what_is_unwell",
    "hold_timeout": "engine/test_hold.py",
    "host_unreachable": "fleet/test_operation.py",
    "injection_failed": "engine/test_refusals.py::test_a_process_that_may_map_no_more",
    "injection_impossible": "engine/test_injection.py",
    "injection_timeout": "engine/test_injection.py",
    "is_init": "engine/test_refusals.py::test_process_one",
    "kernel_headers_missing": KERNEL_SERVICE,
    "kernel_module_build_failed": KERNEL_SERVICE + "::test_a_build_that_fails",
    "kernel_module_not_permitted": KERNEL_SERVICE + "::test_where_modules_may_not_be_loaded",
    "kernel_service_busy": KERNEL_SERVICE + "::test_a_busy_one_is_not_removed",
    "kernel_service_failed": "engine/test_kernel_requests.py::test_each_errno_is_a_reason_code",
    "kernel_thread": "engine/test_preflight.py::test_kernel_threads",
    "kernel_unsupported": "engine/test_tasks.py",
    "maintenance_window_closed": "fleet/test_rollouts.py::test_no_wave_begins_outside_the_window",
    "manifest_invalid": "engine/test_refusals.py::test_a_manifest_of_another_schema",
    "manifest_missing": "compliance/test_formats.py::test_a_report_of_no_cve_is_no_good_news",
    "memory_unreadable": "engine/test_memory.py",
    "memory_unwritable": "engine/test_memory.py",
    "module_signature_required": KERNEL_SERVICE + "::test_secure_boot_wants_a_key_that_is_enrolled",
    "no_free_address": "engine/test_region.py",
    "no_matching_process": "engine/test_refusals.py::test_no_process",
    "no_permission": "engine/test_refusals.py::test_without_permission",
    "not_64bit": "engine/test_preflight.py::test_32_bit_programs",
    "not_reached": "fleet/test_operation.py",
    "object_malformed": "engine/test_elf_object.py",
    "old_code_mismatch": "engine/test_refusals.py::test_other_old_bytes",
    "opt_outs_invalid": "engine/test_opt_out.py::test_an_opted_out_process_is_left_as_it_is",
    "opted_out": "fleet/test_rollouts.py::test_opt_outs",
    "patch_elf_malformed": "engine/test_refusals.py::test_a_truncated_patch_elf",
    "patch_elf_unsupported": "engine/test_refusals.py::test_a_newer_patch_elf",
    "policy_unsupported": "engine/test_refusals.py::test_declared_points",
    "python_missing": "fleet/test_operation.py",
    "python_too_old": "unit/plugins/modules/test_applier.py",
    "region_too_small": "engine/test_link.py",
    "required_patch_missing": "engine/test_refusals.py::test_a_missing_requirement",
    "result_invalid": "unit/plugins/modules/test_live_patch.py",
    "rollout_journal_invalid": "unit/plugins/plugin_utils/test_rollout_journal.py",
    "rollout_policy_invalid": "unit/plugins/action/test_rollout.py::test_a_policy_that_is_wrong",
    "rollout_revert_failed": "fleet/test_rollouts.py::test_each_gate_names_what_is_unwell",
    "rollout_reverted": "fleet/test_rollouts.py",
    "seccomp_forbids": "engine/test_refusals.py::test_a_filter_that_forbids",
    "revocations_invalid": "engine/test_trust.py",
    # No processor here lets Linux give a program a shadow stack: the status line stands in.
    "shadow_stack": "engine/test_preflight.py::test_a_shadow_stack",
    "signature_invalid": "engine/test_refusals.py::test_an_altered_manifest",
    "signature_missing": "engine/test_refusals.py::test_an_unsigned_bundle",
    "signer_expired": "engine/test_trust.py",
    "signer_revoked": "engine/test_trust.py",
    "signer_unknown": "engine/test_refusals.py::test_a_signature_of_a_stranger",
    "signing_failed": "unit/plugins/action/test_signature.py",
    "stack_switching": "engine/test_refusals.py::test_a_program_that_switches_stacks",
    "still_required": "engine/test_refusals.py::test_a_missing_requirement",
    "stragglers": "engine/test_refusals.py::test_a_straggler",
    "store_invalid": "engine/test_store.py::test_the_list_of_what_is_wanted_is_damaged",
    "superseded": "engine/test_refusals.py::test_a_superseded_patch",
    "symbol_not_found": "engine/test_refusals.py::test_a_symbol_that_nobody_has",
    "symbol_out_of_reach": "engine/test_link.py",
    "tampered": "engine/test_hostile_processes.py::test_code_behind_the_back",
    "target_changed": "engine/test_stops.py",
    "target_exited": "engine/test_preflight.py::test_no_process_and_zombies",
    "task_failed": "unit/plugins/plugin_utils/test_fleet_report.py",
    "thread_gone": "engine/test_stops.py",
    "thread_unstoppable": "engine/test_stops.py",
    "transition_open": "engine/test_refusals.py::test_a_straggler",
    "unsupported_relocation": "engine/test_refusals.py::test_an_unsupported_relocation",
    "watch_failed": "unit/plugins/modules/test_applier.py",
    "watch_running": "engine/test_watch.py::test_one_watch_per_store",
    "watch_unsupported": "unit/plugins/modules/test_applier.py",
    "usage": "engine/test_refusals.py::test_an_unknown_patch",
}


def missing_codes(reasons):
    """Codes that no row of the table names."""
    return sorted(set(reasons) - set(PROVOKED_BY))


def strings_of(node):
    return [
        item.value
        for item in ast.walk(node)
        if isinstance(item, ast.Constant) and isinstance(item.value, str)
    ]


def speaks_of(code, text, function):
    """Whether a test of ``text`` (the one named) has the code as a string of its own."""
    tests = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    if function:
        tests = [test for test in tests if test.name == function]
        return any(code in strings_of(test) for test in tests)
    # Helpers and tables of the module count, where the module has tests at all.
    return bool(tests) and code in strings_of(ast.parse(text))


def test_every_code_has_a_test():
    assert missing_codes(REASONS) == []
    assert sorted(set(PROVOKED_BY) - set(REASONS)) == []


@pytest.mark.parametrize("code", sorted(PROVOKED_BY))
def test_the_test_that_is_named_provokes_it(code):
    name, _, function = PROVOKED_BY[code].partition("::")
    assert speaks_of(code, (TESTS / name).read_text(), function), PROVOKED_BY[code]


@pytest.mark.parametrize("code", sorted(REASONS))
def test_every_code_is_given_somewhere(code):
    """A code that nobody raises promises something that does not happen."""
    sources = [*APPLIER.rglob("*.py"), *PLUGINS.rglob("*.py"), *ROLES.rglob("tasks/*.yml")]
    words = re.compile(rf"\b{code}\b")
    given = [
        path for path in sources if path.name != "errors.py" and words.search(path.read_text())
    ]
    assert given


def test_a_new_code_is_missed():
    assert missing_codes([*REASONS, "brand_new"]) == ["brand_new"]
    text = "def test_a():\n    assert 'busy'\ndef test_b():\n    pass\n"
    assert speaks_of("busy", text, "test_a")
    assert not speaks_of("busy", text, "test_b")
    assert not speaks_of("idle", text, "")
