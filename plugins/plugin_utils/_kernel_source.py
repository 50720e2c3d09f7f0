# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""The kernel service's source on the controller, as one archive for a host."""

from __future__ import annotations

import io
import tarfile

from ansible.errors import AnsibleError
from ansible_collections.wfpatch.fleet.plugins.module_utils._kernel_service_source import (
    NEEDED,
    digest,
    dkms_settings,
    read_tree,
)


class KernelSource:
    """What DKMS needs of a folder; ``digest`` is that of the tree which comes of it."""

    def __init__(self, folder: str) -> None:
        try:
            self.files = read_tree(folder, NEEDED)
        except OSError as exc:
            raise AnsibleError(f"the source {folder} cannot be read: {exc}") from exc
        conf, _executable = self.files.get("dkms.conf", (b"", False))
        version = dkms_settings(conf.decode("utf-8", "replace")).get("PACKAGE_VERSION")
        if not version:
            raise AnsibleError(
                f"{folder} is not the source of the kernel service: it has no dkms.conf that names "
                "a version"
            )
        self.version = version
        self.digest = digest(self.files)

    def archive(self, path: str) -> None:
        """Write the archive, without owners and times."""
        with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as archive:
            for name, (data, executable) in sorted(self.files.items()):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                member.mode = 0o755 if executable else 0o644
                archive.addfile(member, io.BytesIO(data))
