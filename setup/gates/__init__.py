# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates that every change passes: one module each, run by ``setup/lint``."""
