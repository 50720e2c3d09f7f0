# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions armed by one byte or by page swap cost one thread at a time a moment, and each is told.

Counted at the ptrace requests themselves: who is asked to stop, and who is let go.
"""

from __future__ import annotations

import pytest
import sample_patch
from proof.patching import Patching, only_way
from wfpatch.backend import ptrace_requests
from wfpatch.backend.hold import Stop
from wfpatch.backend.stops import OVERDUE

NEW = """
static void *runner(void *argument);
static void *runner(void *argument) { return argument; }
void *keep(void) { return (void *)runner; }
"""


class Requests:
    """Which tasks are asked to stop and not yet let go; the most there were at once."""

    def __init__(self, monkeypatch):
        self.asked: set[int] = set()
        self.most = self.stops = 0
        interrupt, detach = ptrace_requests.interrupt, ptrace_requests.detach

        def asking(tid):
            if tid not in self.asked:
                self.stops += 1
            self.asked.add(tid)
            # One that was given up, on a busy machine, is let go at the moment it stops.
            self.most = max(self.most, sum(other not in OVERDUE for other in self.asked))
            interrupt(tid)

        def letting_go(tid):
            detach(tid)
            self.asked.discard(tid)

        monkeypatch.setattr(ptrace_requests, "interrupt", asking)
        monkeypatch.setattr(ptrace_requests, "detach", letting_go)

    def take(self):
        """(most at once, stops) since the last time."""
        assert self.asked <= {tracee.tid for tracee in OVERDUE}
        found = (self.most, self.stops)
        self.most = self.stops = 0
        return found


@pytest.mark.parametrize("threads", [8, 64, 512])
@pytest.mark.parametrize("way", ["byte", "swap"])
def test_one_at_a_time(program, start, tmp_path, monkeypatch, threads, way):
    path = program("threads")
    running = start(path, threads, 1)
    patching = Patching(tmp_path, running.pid)
    patching.add("fix", sample_patch.build(path, NEW, ["runner"]))
    only_way(monkeypatch, way)
    requests = Requests(monkeypatch)
    # The runner never leaves the old function, so the transition stays open: its stops count too.
    report = patching.apply("fix", timeout=1)
    assert report.state == "partial"
    most, stops = requests.take()
    assert most == 1
    assert report.stops_count == stops
    assert {stop.purpose for stop in report.stops} <= {
        *("gs_check", "inject", "watch", "observe", "held_row", "migrate", "stack_bounds")
    }
    report = patching.reverted("fix", timeout=30)
    most, stops = requests.take()
    assert most == 1 or not stops
    assert report.stops_count == stops


def test_who_does_not_stop_at_once_is_asked_again(program, start, tmp_path, monkeypatch):
    """As on a machine so busy that a thread is kept from running for a while."""
    path = program("threads")
    running = start(path, 3, 0)
    patching = Patching(tmp_path, running.pid)
    patching.add("fix", sample_patch.build(path, NEW, ["runner"]))
    enter, refused = Stop.__enter__, []

    def late(stop):
        if len(refused) < 3:
            refused.append(stop._tracee.tid)
            raise stop._tracee.unstoppable(0.25)
        return enter(stop)

    monkeypatch.setattr(Stop, "__enter__", late)
    patching.patched("fix")
    assert len(refused) == 3


def test_all_at_once_under_the_global_policy(program, start, tmp_path, monkeypatch):
    """The counting sees it, and the report tells each of those stops."""
    path = program("threads")
    running = start(path, 8, 0)
    patching = Patching(tmp_path, running.pid)
    patching.add("fix", sample_patch.build(path, NEW, ["runner"]), policy="global")
    requests = Requests(monkeypatch)
    report = patching.patched("fix")
    most, stops = requests.take()
    assert most == 9
    assert report.stops_count == stops >= 18
    assert [stop.purpose for stop in report.stops].count("global") == 9
