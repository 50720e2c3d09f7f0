# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs, patches and drivers that try to break the mechanism by construction."""
