# SPDX-License-Identifier: GPL-3.0-or-later
"""wfpatch_build: makes patch ELFs and bundles from two source trees and a stock binary."""

__version__ = "1.0.0"
