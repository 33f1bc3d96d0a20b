"""Which server counts at present: the one of the URL, or the master that Sentinels or a Cluster's nodes name."""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from twisted_vllm.config.redis_places import RedisCluster, RedisPlace, RedisSentinels
from twisted_vllm.config.urls import RedisServer
from twisted_vllm.ratelimit.redis.client import RedisUnavailable, ask
from twisted_vllm.ratelimit.redis.protocol import CLUSTER_TAG

#: the slot of all keys in a Cluster (CRC-16/XMODEM of the tag; Redis Cluster specification, "Key distribution model")
SLOT = crc_hqx(CLUSTER_TAG.encode(), 0) % 16_384

_HOST = re.compile(r"[A-Za-z0-9_.:-]{1,253}")
_MAX_PORT = 65_535
_REASON_LENGTH = 100


class Finder(Protocol):
    """Finds the server that counts.

    Attributes:
        moves: whether another server may become it.
        login: how to log in to it; the host means nothing if it moves.
    """

    moves: bool
    login: RedisServer

    def find(self) -> Deferred[RedisServer]:
        """Return it; the Deferred fails with `RedisUnavailable`."""


class OneServer:
    """The server of the URL, whatever it is."""

    moves = False

    def __init__(self, server: RedisServer) -> None:
        self.login = server

    def find(self) -> Deferred[RedisServer]:
        """Return it at once."""
        return succeed(self.login)


class Vote:
    """Asks several nodes at once which server is the master, and believes the most.

    One that was cut off from the others names the old master for a while.

    Args:
        reactor: Twisted's.
        nodes: whom to ask.
        question: the command.
        read: returns the host and port that a node's reply names; it is told which node replied, and raises
            `ValueError` with what is wrong with the reply.
        login: the server with how to log in to the master.
        timeout: how long a node may take, in seconds.
        failed: what to say before the nodes' reasons if no node names a master.
    """

    moves = True

    def __init__(
        self,
        reactor: Any,
        nodes: Sequence[RedisServer],
        question: Sequence[str],
        read: Callable[[Any, RedisServer], tuple[str, int]],
        login: RedisServer,
        timeout: float,
        failed: str,
    ) -> None:
        self._reactor = reactor
        self._nodes = nodes
        self._question = question
        self._read = read
        self.login = login
        self._timeout = timeout
        self._failed = failed

    def find(self) -> Deferred[RedisServer]:
        """Return the master that more than half of the nodes name, or the most of those that answer."""
        asked = [ask(self._reactor, node, self._timeout, *self._question) for node in self._nodes]
        votes: list[tuple[str, int]] = []
        reasons: list[str] = []

        def cancel(_: object = None) -> None:
            for each in asked:
                each.cancel()

        result: Deferred[RedisServer] = Deferred(cancel)

        def count(outcome: Any, node: RedisServer) -> None:
            if isinstance(outcome, Failure):
                if not outcome.check(CancelledError):
                    reasons.append(f"{node.address}: {outcome.getErrorMessage()[:_REASON_LENGTH]}")
            else:
                try:
                    votes.append(self._read(outcome, node))
                except ValueError as error:
                    reasons.append(f"{node.address}: {error}")
            if result.called:
                return
            [(place, most)] = Counter(votes).most_common(1) or [(("", 0), 0)]
            if most * 2 > len(self._nodes) or (most and len(votes) + len(reasons) == len(self._nodes)):
                result.callback(attrs.evolve(self.login, host=place[0], port=place[1]))
                cancel()
            elif len(reasons) == len(self._nodes):
                result.errback(RedisUnavailable(f"{self._failed} ({'; '.join(reasons)})", answered=False))

        for each, node in zip(asked, self._nodes, strict=True):
            each.addBoth(count, node)
        return result


def finder_of(reactor: Any, place: RedisPlace, timeout: float) -> Finder:
    """Return what finds the server that counts."""
    if isinstance(place, RedisSentinels):
        return Vote(
            reactor,
            place.sentinels,
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.service),
            lambda reply, _: _master(reply, place.service),
            place.master,
            timeout,
            "no Sentinel names the master",
        )
    if isinstance(place, RedisCluster):
        return Vote(
            reactor,
            place.nodes,
            ("CLUSTER", "SLOTS"),
            _owner,
            place.nodes[0],
            timeout,
            "no node of the Cluster says where the limits' keys are",
        )
    return OneServer(place)


def _master(reply: Any, service: str) -> tuple[str, int]:
    if reply is None:
        raise ValueError(f"it knows no master that is called {service}")
    if not isinstance(reply, list) or len(reply) != 2:
        raise ValueError("its answer is not one of a Sentinel")
    return _place(reply[0], reply[1])


def _owner(reply: Any, node: RedisServer) -> tuple[str, int]:
    """Return who has the slot of the limits (Redis, CLUSTER SLOTS: first, last, master, replicas)."""
    for each in reply if isinstance(reply, list) else ():
        match each:
            case [int(first), int(last), [host, port, *_], *_] if first <= SLOT <= last:
                # A node that does not know its own name sends none: it is the one that was asked.
                return _place(host or node.host, port)
    raise ValueError(f"it knows no node with the slot {SLOT}")


def _place(host: Any, port: Any) -> tuple[str, int]:
    number = str(port)
    if not isinstance(host, str) or not _HOST.fullmatch(host) or not re.fullmatch("[0-9]{1,5}", number):
        raise ValueError("it names a host and port that cannot be one")
    if not 0 < int(number) <= _MAX_PORT:
        raise ValueError("it names a port that cannot be one")
    return host, int(number)
