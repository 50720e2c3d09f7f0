# SPDX-License-Identifier: GPL-3.0-or-later
"""What was there before a rollout outlives a run of it, and not the rollout."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.plugin_utils._rollout_journal import RolloutJournal


def test_the_first_word_on_a_host_holds(tmp_path):
    path = str(tmp_path / "new" / "journal.json")
    assert RolloutJournal(path).before == {}
    RolloutJournal(path).add({"a": ["p2", "p1", "p1"], "b": []})
    # The next run finds what an interrupted one has brought: that was not there before.
    again = RolloutJournal(path)
    again.add({"b": ["p1"], "c": []})
    assert RolloutJournal(path).before == again.before == {"a": ["p1", "p2"], "b": [], "c": []}
    # Where a part of the hosts has come to the end, the others have not.
    again.forget(["a", "c", "elsewhere"])
    assert RolloutJournal(path).before == {"b": []}
    again.forget(["a", "b"])
    assert RolloutJournal(path).before == {}
    RolloutJournal(path).forget(["a"])
    assert [each.name for each in (tmp_path / "new").iterdir()] == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 2, "hosts": {}}', '{"schema": 1, "hosts": {"a": "p"}}']
)
def test_a_damaged_journal_is_not_believed(tmp_path, text):
    path = tmp_path / "journal.json"
    path.write_text(text)
    with pytest.raises(AnsibleError, match=r"journal\.json") as caught:
        _before = RolloutJournal(str(path)).before
    assert str(caught.value).partition(":")[0] == "rollout_journal_invalid"
