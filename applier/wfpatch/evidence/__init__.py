# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence for a compliance report: what live memory says of every CVE that a manifest names.

Nothing here changes anything, and no thread is stopped.
"""
