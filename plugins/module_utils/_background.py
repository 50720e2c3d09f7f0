# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run the applier in the background, and fetch what it tells meanwhile and says at the end.

For hosts to which there is no channel but Ansible's own, over which a module says nothing until it
has ended. What lies in between is in files that root alone can read, beside the applier's events.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time

from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import (
    ApplierFailure,
    answer_of,
    command_line,
)

EVENTS = "/run/wfpatch/events"
NAME = re.compile(r"[0-9a-f]{16,64}\Z")
#: Seconds that one look waits for something to be told.
PATIENCE = 2.0
LOOK = 0.05
MAX_BYTES = 1 << 20
#: $0 is the files' common path. The code comes last, and whole: it says that the others are.
RUN = '"$@" >"$0.out" 2>"$0.err"; echo $? >"$0.code.new"; mv "$0.code.new" "$0.code"'
PARTS = ("", ".out", ".err", ".code")


def _path(name):
    if not NAME.match(name):
        raise ApplierFailure("usage", f"{name!r} is no name for events")
    return os.path.join(EVENTS, name)


def begin(module, name, *arguments):
    """Start the applier and return at once; it goes on whatever becomes of the connection."""
    path = _path(name)
    os.makedirs(EVENTS, 0o700, exist_ok=True)
    os.chmod(EVENTS, 0o700)
    environment = dict(os.environ, LC_ALL="C.UTF-8")
    with open(os.devnull, "r+b") as nothing:
        subprocess.Popen(  # pylint: disable=consider-using-with
            ["/bin/sh", "-c", RUN, path, *command_line(module, *arguments)],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            env=environment,
            start_new_session=True,
            close_fds=True,
        )


def _told(path, offset):
    """Whole lines from there on, and where the next ones begin."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(MAX_BYTES)
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace").splitlines(), offset + len(whole)


def look(name, offset):
    """What was told since, and the applier's exit code, None while it works: (lines, offset, code).

    Waits a while for something to be told.
    """
    path = _path(name)
    until = time.monotonic() + PATIENCE
    while True:
        ended = os.path.exists(path + ".code")
        lines, offset = _told(path, offset)
        if ended or lines or time.monotonic() > until:
            break
        time.sleep(LOOK)
    if not ended or len(lines) and os.path.getsize(path) > offset:
        return lines, offset, None
    with open(path + ".code", encoding="ascii") as file:
        return lines, offset, int(file.read())


def end(name, code):
    """The Answer of an applier that ended; its files are removed."""
    path = _path(name)
    with open(path + ".out", encoding="utf-8", errors="replace") as out:
        with open(path + ".err", encoding="utf-8", errors="replace") as err:
            stdout, stderr = out.read(), err.read()
    forget(name)
    return answer_of(["wfpatch"], code, stdout, stderr)


def forget(name):
    """Remove the files of that name."""
    path = _path(name)
    for part in PARTS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + part)
