"""A process that asks Redis for many admissions at once, and says how many it got.

Its arguments are Redis' port, how often to ask, and an allowance. The password comes on standard input's first line; a
second line starts the burst. What it got is held until standard input ends.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec
from twisted.internet import reactor  # noqa: TID251 - a program of its own
from twisted.internet.defer import DeferredList
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver

from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import RedisServer
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.redis.limiter import RedisLimiter


class Burst(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(self, port: int, count: int, allowance: Allowance) -> None:
        self._port = port
        self._count = count
        self._limited = (Limited("key", "k1", allowance),)
        self._limiter: RedisLimiter | None = None

    def lineReceived(self, line: bytes) -> None:
        if self._limiter is None:
            server = RedisServer("127.0.0.1", self._port, 2, password=Secret(line.decode()))
            self._limiter = RedisLimiter(reactor, server, timeout=30, on_loss="refuse", local=LocalLimiter())
            self._limiter.start()
            self._say_when_ready()
            return
        limiter, now = self._limiter, time.time()
        asked = [limiter.admit(self._limited, "m", 10, 100, now) for _ in range(self._count)]
        DeferredList(asked, consumeErrors=True).addCallback(self._answered)

    def _say_when_ready(self) -> None:
        assert self._limiter is not None
        if self._limiter.is_ready:
            self._say("ready")
        else:
            reactor.callLater(0.01, self._say_when_ready)

    def _answered(self, results: list[Any]) -> None:
        codes = [result.value.code for succeeded, result in results if not succeeded]
        self._say(f"{len(results) - len(codes)} {' '.join(sorted(set(codes)))}")

    def _say(self, text: str) -> None:
        assert self.transport is not None
        self.transport.write(text.encode() + b"\n")

    def connectionLost(self, reason: Any = None) -> None:
        reactor.stop()


if __name__ == "__main__":
    burst = Burst(int(sys.argv[1]), int(sys.argv[2]), msgspec.json.decode(sys.argv[3], type=Allowance))
    StandardIO(burst)
    reactor.run()
