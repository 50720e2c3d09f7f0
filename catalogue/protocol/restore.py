# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a redis server that is asked to RESTORE a value which it should refuse."""

from __future__ import annotations

import time

from .redis_client import ConnectionLost, ErrorReply, RedisClient, Reply
from .verdict import Behaviour, Observation, Target

REFUSAL = "ERR Bad data format"


def alive(target: Target) -> bool:
    """Whether the server answers a new connection, now and a moment later."""
    for _ in range(2):
        try:
            with RedisClient(target.host, target.port, timeout=5) as client:
                if client.call("PING") != b"PONG":
                    return False
        except (ConnectionLost, OSError):
            return False
        time.sleep(0.05)
    return True


def restore(target: Target, key: str, value: bytes) -> Reply:
    """RESTOREs the value under that key (which must not exist) and returns the server's reply.

    Raises ConnectionLost when the server is gone or ends over it.
    """
    with RedisClient(target.host, target.port) as client:
        name = target.prefix + key
        client.call("DEL", name)
        return client.call("RESTORE", name, "0", value)


def refused(target: Target, key: str, value: bytes, accepted: str) -> Observation:
    """Fixed when the value is refused and the server lives on.

    `accepted` says in words what it means when the server takes the value.
    """
    if not alive(target):
        return Observation(Behaviour.UNKNOWN, f"no redis at {target.host}:{target.port}")
    try:
        reply = restore(target, key, value)
    except ConnectionLost as error:
        if alive(target):
            return Observation(Behaviour.UNKNOWN, f"connection lost, yet the server lives: {error}")
        return Observation(Behaviour.VULNERABLE, "the server ended")
    if reply == b"OK":
        return Observation(Behaviour.VULNERABLE, accepted)
    if isinstance(reply, ErrorReply) and str(reply) == REFUSAL:
        if alive(target):
            return Observation(Behaviour.FIXED, f"refused: {reply}")
        return Observation(Behaviour.VULNERABLE, "refused, but the server ended")
    return Observation(Behaviour.UNKNOWN, f"unexpected reply: {reply!r}")
