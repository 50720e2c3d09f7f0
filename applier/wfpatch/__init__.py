# SPDX-License-Identifier: GPL-3.0-or-later
"""wfpatch: live-patch running, stock, multi-threaded Linux services, thread by thread."""

from __future__ import annotations

__version__ = "0.1.0"
