"""What ``--check --probe`` finds of Redis."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.task import deferLater

from twisted_vllm.config.redis_places import RedisPlace
from twisted_vllm.ratelimit.redis.client import RedisUnavailable
from twisted_vllm.ratelimit.redis.connection import RedisConnection


@inlineCallbacks
def look_at_redis(reactor: Any, place: RedisPlace, patience: float) -> Any:
    """Return a Deferred of what counts: the address of the server or master, its program, version and role.

    It fails with `RedisUnavailable`; the message says why, and names no password.
    """
    told: Deferred[str] = Deferred()

    def tell(fault: str) -> None:
        if not told.called:
            told.callback(fault)

    connection = RedisConnection(reactor, place, patience, lambda: tell(""), tell)
    connection.start()
    try:
        fault = yield told.addTimeout(patience, reactor)
        # in a turn of its own: what has just told is not to be stopped from within
        yield deferLater(reactor, 0)
        if not fault:
            return (yield connection.describe())
    except (TimeoutError, ConnectTimeoutError):
        fault = f"it gave no answer within {patience:g} s"
    finally:
        yield connection.stop()
    raise RedisUnavailable(fault, answered=True)
