# SPDX-License-Identifier: GPL-3.0-or-later
"""A service that is a build of its own, a patch for it, and a watch: for ``wfpatch watch``."""
