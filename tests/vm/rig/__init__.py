# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual machines with Debian's kernels, under QEMU's software emulation."""
