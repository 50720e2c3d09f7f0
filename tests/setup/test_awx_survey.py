# SPDX-License-Identifier: GPL-3.0-or-later
"""AWX's survey is that of the roles' argument specs, and each answer is one the playbook takes."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import yaml

TOP = pathlib.Path(__file__).resolve().parents[2]
SURVEY = TOP / "extensions" / "awx" / "patch_survey.yml"
TYPES = {"text", "textarea", "integer", "multiplechoice", "multiselect"}


def test_the_survey_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, TOP / "setup" / "awx_survey"], check=True, capture_output=True, text=True
    )
    assert SURVEY.read_text() == made.stdout


def test_the_survey_is_one_that_awx_takes() -> None:
    """Its serializer wants these fields, and a default that is one of the choices."""
    survey = yaml.safe_load(SURVEY.read_text())
    assert set(survey) == {"name", "description", "spec"}
    for question in survey["spec"]:
        assert question["type"] in TYPES
        assert question["question_name"] and question["variable"]
        assert isinstance(question["required"], bool)
        default = question["default"]
        if question["type"] == "integer":
            assert isinstance(default, int) and question["min"] <= default
        else:
            assert isinstance(default, str)
        if "choices" in question:
            chosen = default.splitlines()
            assert set(chosen) <= set(question["choices"])


def test_the_survey_asks_what_a_rollout_needs() -> None:
    variables = {each["variable"] for each in yaml.safe_load(SURVEY.read_text())["spec"]}
    assert {"wfpatch_rollout", "wfpatch_patches", "wfpatch_hosts"} <= variables
    # Whatever else a role calls it, the playbook's own variables file reads the answer.
    read = (TOP / "playbooks" / "vars" / "fleet.yml").read_text()
    assert all(name in read for name in variables)
