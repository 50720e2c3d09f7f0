# SPDX-License-Identifier: GPL-3.0-or-later
"""A server to load, and a liar in front of it."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from lying_server import LyingServer
from small_redis import SmallRedis


@pytest.fixture
def server() -> Iterator[SmallRedis]:
    """An honest server."""
    server = SmallRedis()
    yield server
    server.close()


@pytest.fixture
def liar(server: SmallRedis) -> Iterator[LyingServer]:
    """The honest server's answers, through a proxy that can spoil one of them."""
    liar = LyingServer("127.0.0.1", server.port)
    yield liar
    liar.close()
