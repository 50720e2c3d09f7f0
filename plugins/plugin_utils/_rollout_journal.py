# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was in force on each host before a rollout began, kept on the controller until it ends.

Only that tells what a rollout that was interrupted and begun again has brought, and may take back.
"""

from __future__ import annotations

import json
import os
import typing as t

from ansible.errors import AnsibleError

MAX_SIZE = 64 << 20


class RolloutJournal:
    """The file at ``path``. It is there from a rollout's first wave to its end."""

    def __init__(self, path: str) -> None:
        self.path = os.path.expanduser(path)
        self._before: dict[str, list[str]] | None = None

    def _damaged(self, why: str) -> AnsibleError:
        return AnsibleError(
            f"rollout_journal_invalid: {self.path} {why}. It says what an interrupted rollout "
            "found; look at the hosts, then remove it"
        )

    @property
    def before(self) -> dict[str, list[str]]:
        """Ids of the patches that were in force on a host before the rollout, by host.

        Raises AnsibleError with rollout_journal_invalid.
        """
        if self._before is None:
            try:
                with open(self.path, "rb") as file:
                    read = json.loads(file.read(MAX_SIZE))
            except FileNotFoundError:
                self._before = {}
                return self._before
            except (OSError, ValueError) as exc:
                raise self._damaged(f"cannot be read: {exc}") from exc
            hosts = read.get("hosts") if isinstance(read, dict) else None
            if (
                not isinstance(hosts, dict)
                or read.get("schema") != 1
                or not all(
                    isinstance(ids, list) and all(isinstance(each, str) for each in ids)
                    for ids in hosts.values()
                )
            ):
                raise self._damaged("is not a journal of schema 1")
            self._before = hosts
        return self._before

    def add(self, found: t.Mapping[str, t.Iterable[str]]) -> None:
        """Remember these hosts, unless an earlier run of the rollout did, before they change."""
        new = {host: sorted(set(ids)) for host, ids in found.items() if host not in self.before}
        if new:
            self.before.update(new)
            self._write()

    def forget(self, hosts: t.Iterable[str]) -> None:
        """The rollout has ended for these hosts; without hosts there is no file."""
        gone = [host for host in hosts if self.before.pop(host, None) is not None]
        if gone and self.before:
            self._write()
        elif gone:
            try:
                os.unlink(self.path)
            except OSError as exc:
                raise AnsibleError(
                    f"the rollout's journal {self.path} cannot be removed: {exc.strerror}"
                ) from exc

    def _write(self) -> None:
        scratch = f"{self.path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            with open(scratch, "w", encoding="utf-8") as file:
                json.dump({"schema": 1, "hosts": self.before}, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.path)
        except OSError as exc:
            raise AnsibleError(
                f"the rollout's journal {self.path} cannot be written: {exc.strerror}"
            ) from exc
