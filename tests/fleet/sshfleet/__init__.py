# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH hosts in namespaces of this machine: own network, pids, mounts, name, sshd and root.

The standard library only, so that the fleet also runs where nothing has been set up yet.
"""
