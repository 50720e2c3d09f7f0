# SPDX-License-Identifier: GPL-3.0-or-later
"""The little of the services' protocols that the provoke scripts speak. Standard library only."""
