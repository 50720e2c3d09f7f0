# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration's parts; demo/run puts them in order."""
