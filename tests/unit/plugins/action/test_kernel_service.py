# SPDX-License-Identifier: GPL-3.0-or-later
"""The action half sends the source only to a host that says it wants it."""

from __future__ import annotations

import tarfile
from unittest import mock

import pytest
from ansible.playbook.task import Task
from ansible_collections.wfpatch.fleet.plugins.action import kernel_service
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._kernel_source import KernelSource


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "kmod"
    folder.mkdir()
    (folder / "dkms.conf").write_text('PACKAGE_NAME="wfpatch"\nPACKAGE_VERSION="1.2"\n')
    (folder / "main.c").write_text("int a;\n")
    return folder


@pytest.fixture
def run(source):
    """Runs the action; ``run.calls`` are the arguments of the module's calls, ``run.sent`` the
    names in the archives that were sent.
    """

    def run(*outcomes, check=False, **args):
        task = mock.MagicMock(spec=Task)
        task.async_val = False
        task.args = {"src": str(source), **args}
        task.check_mode = check
        task.diff = False
        action = kernel_service.ActionModule(
            task,
            connection=mock.MagicMock(),
            play_context=mock.MagicMock(check_mode=check),
            loader=mock.MagicMock(),
            templar=mock.MagicMock(),
            shared_loader_obj=None,
        )
        answers = list(outcomes)

        def execute(module_name, module_args, task_vars):
            run.calls.append(module_args)
            return answers.pop(0)

        def transfer(local, remote):
            with tarfile.open(local) as archive:
                run.sent.append(archive.getnames())
            return "/remote/source.tar.gz"

        action._execute_module = execute
        action._transfer_file = transfer
        action._fixup_perms2 = mock.MagicMock()
        result = action.run(task_vars={})
        assert answers == []
        return result

    run.calls = []
    run.sent = []
    return run


def test_a_host_that_has_it(run, source):
    found = run({"changed": False})
    assert found == {"changed": False, "reason": None}
    expected = KernelSource(str(source))
    assert run.calls == [{"src": str(source), "version": "1.2", "digest": expected.digest}]
    assert run.sent == []


def test_a_host_that_wants_it(run):
    found = run({"changed": False, "_wanted": True}, {"changed": True})
    assert found["changed"]
    assert [args.get("staged") for args in run.calls] == [None, "/remote/source.tar.gz"]
    assert run.sent == [["dkms.conf", "main.c"]]


def test_removal_needs_no_source(run, source):
    (source / "dkms.conf").unlink()
    run({"changed": True}, state="absent")
    assert "digest" not in run.calls[0]


def test_what_only_the_action_half_may_say(run):
    run({"changed": False}, version="9", digest="x", staged="/tmp/mine")
    assert run.calls[0]["version"] == "1.2"
    assert run.calls[0]["digest"] != "x"
    assert "staged" not in run.calls[0]


def test_a_host_without_python(run):
    found = run({"failed": True, "rc": 127, "msg": "the interpreter was not found"})
    assert found["reason"] == "python_missing"
