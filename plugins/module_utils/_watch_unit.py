# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The unit of the watch on a host: its text, and whether systemd has it enabled and running."""

from __future__ import annotations

import os

from ansible_collections.wfpatch.fleet.plugins.module_utils._applier_command import ApplierFailure

NAME = "wfpatch-watch.service"
DEFAULT_FOLDER = "/etc/systemd/system"
#: What sd_booted(3) asks for.
BOOTED = "/run/systemd/system"

TEXT = """\
# Installed by wfpatch.fleet.applier.
[Unit]
Description=Live patches for processes that start later
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
Restart=always
RestartSec=1
WatchdogSec=120
TimeoutStopSec=30
# For memory and files of other processes, the process connector, fanotify, the audit log.
CapabilityBoundingSet=CAP_SYS_PTRACE CAP_SYS_ADMIN CAP_NET_ADMIN CAP_KILL
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_LINUX_IMMUTABLE
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_NETLINK
RestrictRealtime=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def _word(text):
    """A word of a command line in a unit file (systemd.service(5), systemd.unit(5))."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"'


def unit_text(words):
    """The unit that runs the words of a command line."""
    return TEXT.format(command=" ".join(_word(word) for word in words))


class WatchUnit:
    """The unit in ``folder``; ``services`` lists what was (or would be) changed in systemd."""

    def __init__(self, module, folder):
        self.module = module
        self.path = os.path.join(folder, NAME)
        self.services = []

    def require_systemd(self):
        """Raise ApplierFailure where systemd does not run."""
        if not os.path.isdir(BOOTED):
            raise ApplierFailure(
                "watch_unsupported",
                "the host does not run systemd, which keeps the watch running; run "
                "'wfpatch watch' by other means, and leave the variable out",
            )

    def _systemctl(self, *words):
        return self.module.run_command(["systemctl", *words])

    def _is(self, question):
        return self._systemctl(question, "--quiet", NAME)[0] == 0

    def _change(self, text, *words):
        self.services.append(f"{NAME}: {text}")
        if self.module.check_mode:
            return
        code, stdout, stderr = self._systemctl(*words)
        if code != 0:
            raise ApplierFailure(
                "watch_failed",
                f"systemctl {' '.join(words)} ended with exit code {code}: "
                f"{(stderr or stdout).strip()[-500:]}",
            )

    def present(self, written, anew):
        """Enabled and running; ``written`` tells that the unit file is (or would be) another,
        ``anew`` that what it runs is.
        """
        if written and not self.module.check_mode:
            self._systemctl("daemon-reload")
        if not self._is("is-enabled"):
            self._change("enabled", "enable", NAME)
        if not self._is("is-active"):
            self._change("started", "restart", NAME)
        elif written or anew:
            self._change("restarted", "restart", NAME)

    def absent(self):
        """Stopped and not enabled, if it is there at all."""
        if not os.path.isdir(BOOTED) or not os.path.lexists(self.path):
            return
        if self._is("is-active"):
            self._change("stopped", "stop", NAME)
        if self._is("is-enabled"):
            self._change("disabled", "disable", NAME)

    def removed(self):
        """After the file is gone."""
        if os.path.isdir(BOOTED) and not self.module.check_mode:
            self._systemctl("daemon-reload")
            self._systemctl("reset-failed", NAME)
