# SPDX-License-Identifier: GPL-3.0-or-later
"""The watch: keeps what the store wants in force in processes that start later.

starts.py chooses how starts of programs are learnt of (connector.py, exec_notification.py, or by
looking again and again), lookout.py knows which processes map what is to be patched, budget.py
bounds the work, watcher.py does it, by the same planner and engine as ``wfpatch apply``.
"""
