# SPDX-License-Identifier: GPL-3.0-or-later
"""One checked load for each service on each host, all through the demonstration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import load_client
from load_client import LoadClient, LoadError
from sshfleet.fleet import Fleet

from .checkout import Plan
from .narration import Failure


class Loads:
    """The running loads by (host, service); a context that ends them all."""

    def __init__(self, fleet: Fleet, plan: Plan) -> None:
        self.fleet = fleet
        self.plan = plan
        self.clients: dict[tuple[str, str], LoadClient] = {}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Loads:
        with self.stack:
            for record in self.fleet.hosts:
                for service in self.plan.services:
                    self.clients[record.name, service] = self.stack.enter_context(
                        load_client.running(
                            service,
                            f"--rate={self.plan.rate}",
                            f"--connections={self.plan.connections}",
                            prefix=self.fleet.in_network(record.name),
                            seconds=7200,
                        )
                    )
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def phase(self, name: str) -> None:
        """Counts from now on under that name."""
        for (host, service), client in self.clients.items():
            with _answering(host, service, client):
                client.phase(name)

    @contextlib.contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """A phase for the length of a `with`; "between" follows."""
        self.phase(name)
        try:
            yield
        finally:
            self.phase("between")

    def check(self) -> None:
        """Failure as soon as one client has a complaint."""
        for (host, service), client in self.clients.items():
            with _answering(host, service, client):
                verdict = client.verdict_so_far()
            if verdict["verdict"] != "pass":
                raise Failure(f"the load on {service} of {host}: {complaint(verdict)}")

    def stop(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Ends them; the verdicts."""
        return {place: client.stop() for place, client in self.clients.items()}


@contextlib.contextmanager
def _answering(host: str, service: str, client: LoadClient) -> Iterator[None]:
    """A client that gave up, since nobody serves it any more, says why in its verdict."""
    try:
        yield
    except LoadError as error:
        ended = client.process.poll() is not None
        why = complaint(client.stop()) if ended else str(error)
        raise Failure(f"the load on {service} of {host}: {why}") from error


def complaint(verdict: dict[str, Any]) -> str:
    """What a client found wrong, on one line."""
    counts = ", ".join(
        f"{verdict[kind]} {kind}"
        for kind in ("answered", "wrong", "lost", "timeouts", "interrupted")
    )
    return f"{counts}; first: {verdict['faults'][:1]}"
