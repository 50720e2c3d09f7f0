# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m wfpatch_build`: the command line."""

from __future__ import annotations

import sys

from wfpatch_build.cli import main

sys.exit(main())
