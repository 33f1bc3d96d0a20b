"""Limits client connections, in all and of one address, and closes idle ones to make room."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from enum import IntEnum
from heapq import nsmallest
from operator import itemgetter
from typing import Protocol

from twisted.logger import Logger

from twisted_vllm.client_address import client_of
from twisted_vllm.context import Peer
from twisted_vllm.errors import TooManyConnections
from twisted_vllm.http.headers import write_response_head
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.open_files import MAX_REFUSED
from twisted_vllm.http.server.refused_connection import RefusedConnection

#: below this share of the limit, the log reports the end of the overload
RESET_SHARE = 0.9

#: idle connections are closed in batches of one in so many: looking for them takes milliseconds
BATCH_SHARE = 100


class Idle(IntEnum):
    """Why a connection may be closed to make room for another; the lowest is closed first."""

    #: nothing came since it was made, or only blank lines
    SILENT = 0
    #: its requests are answered
    KEPT_ALIVE = 1
    #: it was closed, and its client does not close its side of TLS
    CLOSING = 2
    #: the head of a request does not come to its end
    SLOW_HEAD = 3


#: seconds that a connection must have been idle before it is closed for another
GRACE = {Idle.SILENT: 1.0, Idle.KEPT_ALIVE: 1.0, Idle.CLOSING: 5.0, Idle.SLOW_HEAD: 5.0}


class ServedConnection(Protocol):
    """The part of a client's connection that the limit uses.

    Attributes:
        peer: the client's address.
    """

    peer: Peer

    def idle_for(self, now: float) -> tuple[Idle, float] | None:
        """Return how it is idle and for how many seconds; None while it works on a request or has bytes to send."""

    def drop(self) -> None:
        """Close it at once, without a response."""


class Shares(Protocol):
    """How many connections a process may serve that is one of several.

    Attributes:
        total: in all.
        most_of_one: of one address, by all processes together.
    """

    @property
    def total(self) -> int:
        """See above."""

    @property
    def most_of_one(self) -> int:
        """See above."""

    def use(self, limit: ConnectionLimit) -> None:
        """These are the connections of this process."""

    def of(self, name: str | bytes) -> int:
        """Return how many of an address; `name` is from `client_of`."""

    def ended(self, name: str | bytes, left: int) -> None:
        """A connection of an address has ended, and so many of it are left."""


class _Client:
    """The connections of one address.

    Attributes:
        connections: those that are not being closed.
        exempt: whether the share of one address does not apply.
        fruitless: when none could be closed for it; in the reactor's seconds.
    """

    __slots__ = ("connections", "exempt", "fruitless")

    def __init__(self, exempt: bool) -> None:
        self.connections: set[ServedConnection] = set()
        self.exempt = exempt
        self.fruitless = -1.0

    def __len__(self) -> int:
        return len(self.connections)


class ConnectionLimit:
    """Decides which connections are served.

    Attributes:
        refused: how many were refused, by limit: ``total`` or ``address``.
        dropped: how many idle ones were closed to make room, by kind.
    """

    _log = Logger()

    def __init__(
        self,
        max_connections: int | None,
        deadlines: DeadlineSweeper,
        date: Callable[[], bytes],
        make_id: Callable[[], bytes],
        *,
        share: float = 1.0,
        is_exempt: Callable[[str], bool] = lambda host: True,
        max_refused: int = MAX_REFUSED,
        shares: Shares | None = None,
    ) -> None:
        """Create the limit.

        Args:
            max_connections: the maximum number of connections to serve at a time; None means no limit.
            deadlines: checks the deadlines of all connections.
            date: returns the value of a ``Date`` header.
            make_id: returns a new request id.
            share: the part of them that one client may have, above 0 and at most 1.
            is_exempt: returns whether an address may have more than that. A peer without an address always may.
            max_refused: connections over the limit to answer at a time; half as many may be closing to make room.
            shares: what other processes leave to this one; None if it is the only one.
        """
        self._shares = shares
        if shares is not None:
            shares.use(self)
        self._deadlines = deadlines
        self._date = date
        self._make_id = make_id
        self._is_exempt = is_exempt
        self._clients: dict[str | bytes, _Client] = {}
        self._total = 0
        self._refused: set[RefusedConnection] = set()
        self._dropping: set[ServedConnection] = set()
        self._fruitless = -1.0
        # refused since the limit was reached
        self._burst = 0
        self.refused: Counter[str] = Counter()
        self.dropped: Counter[Idle] = Counter()
        self.reconfigure(max_connections, share, max_refused)

    def reconfigure(self, max_connections: int | None, share: float, max_refused: int) -> None:
        """Use other limits from now on, and ask again who is exempt; connections that are served stay.

        The arguments are the constructor's.
        """
        self._most = sys.maxsize if max_connections is None else max_connections
        self._most_of_one = self._most if share == 1 else max(1, int(self._most * share))
        self._max_refused = max_refused
        for client in self._clients.values():
            host = next(iter(client.connections)).peer.host
            client.exempt = not host or self._is_exempt(host)

    @property
    def most(self) -> int | None:
        """The most connections that are served at a time; None without a limit."""
        return None if self._most == sys.maxsize else self._most

    @property
    def most_of_one(self) -> int:
        """The most connections of one address."""
        return self._most_of_one if self._shares is None else self._shares.most_of_one

    @property
    def being_refused(self) -> int:
        """How many connections are being answered that they are refused."""
        return len(self._refused)

    @property
    def being_closed(self) -> int:
        """How many idle connections are being closed to make room."""
        return len(self._dropping)

    def __len__(self) -> int:
        return self._total

    # served connections

    def admits(self, host: str) -> bool:
        """Return whether a connection from `host` may be served; if not, `refuse` it. Idle ones may be closed for it.

        Args:
            host: the address it comes from, empty if it has none.
        """
        client = self._clients.get(client_of(host))
        if (
            client is not None
            and len(client.connections) >= self._most_here(host)
            and not client.exempt
            and not self._drop_of(client)
        ):
            self.refused["address"] += 1
            self._log.warn(
                "Over {most} client connections from {address}: more from there are refused until some have ended. If "
                "it is a proxy, name it in passthrough.trusted_proxies; see passthrough.limits.max_connections_share",
                most=self.most_of_one,
                address=host,
                once_a_second=True,
            )
            return False
        most = self._most if self._shares is None else min(self._most, self._shares.total)
        if self._total < most or self._drop_for(client):
            return True
        self.refused["total"] += 1
        if not self._burst:
            self._log.warn(
                "Over {limit} client connections: more are refused until some have ended; see "
                "passthrough.limits.max_connections",
                limit=self._most,
                once_a_second=True,
            )
        self._burst += 1
        return False

    def _most_here(self, host: str) -> int:
        return self._most_of_one if self._shares is None else self._shares.of(client_of(host))

    def lacking(self, host: str) -> tuple[str | bytes | None, ...]:
        """Return what this process needs a share of to serve a connection from `host`: the address, or None for all."""
        shares = self._shares
        if shares is None:
            return ()
        name = client_of(host)
        client = self._clients.get(name)
        count, exempt = (0, not host or self._is_exempt(host)) if client is None else (len(client), client.exempt)
        if not exempt and count >= shares.of(name):
            return (name,)
        return (None,) if shares.total <= self._total < self._most else ()

    def connections_of(self, name: str | bytes) -> int:
        """Return how many connections an address has; `name` is from `client_of`."""
        client = self._clients.get(name)
        return 0 if client is None else len(client)

    def joined(self, connection: ServedConnection) -> None:
        """Count a served connection in."""
        host = connection.peer.host
        name = client_of(host)
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(not host or self._is_exempt(host))
        client.connections.add(connection)
        self._total += 1

    def left(self, connection: ServedConnection) -> None:
        """Count a served connection out: it has ended."""
        self._dropping.discard(connection)
        self._forget(connection)
        if self._burst and self._total < self._most * RESET_SHARE:
            self._log.info(
                "{count} client connections over the limit were refused", count=self._burst, once_a_second=True
            )
            self._burst = 0

    def _forget(self, connection: ServedConnection) -> None:
        name = client_of(connection.peer.host)
        client = self._clients.get(name)
        if client is not None and connection in client.connections:
            client.connections.discard(connection)
            self._total -= 1
            if not client.connections:
                del self._clients[name]
            if self._shares is not None:
                self._shares.ended(name, len(client))

    # making room

    def make_room(self) -> int:
        """Close some idle connections; return how many."""
        return self._drop(self._candidates(None), self._batch(self._total))

    def make_room_elsewhere(self, name: str | bytes | None, wanted: int) -> bool:
        """Close some idle connections of an address, or of anybody, for those of another process.

        Args:
            name: the address, from `client_of`; None for anybody.
            wanted: how many are needed.

        Returns:
            Whether any was closed.
        """
        if name is None:
            if self._fruitless == self._deadlines.now:
                return False
            if self._drop(self._candidates(None), self._batch(self._most, wanted)):
                return True
            self._fruitless = self._deadlines.now
            return False
        client = self._clients.get(name)
        return client is not None and self._drop_of(client, wanted)

    def _drop_of(self, client: _Client, wanted: int = 1) -> bool:
        """Close idle connections of one client for another of its own; return whether any was."""
        if client.fruitless == self._deadlines.now:
            return False
        found = self._idle_of(client, hurry=False)
        if self._drop(found, self._batch(self.most_of_one, wanted)):
            return True
        client.fruitless = self._deadlines.now
        return False

    def _drop_for(self, client: _Client | None) -> bool:
        """Close idle connections of anybody for one of `client`, or of an unknown one; return whether any was."""
        now = self._deadlines.now
        if now in (self._fruitless, -1.0 if client is None else client.fruitless):
            return False
        if self._drop(self._candidates(client), self._batch(self._most)):
            return True
        if client is not None and len(client.connections) > self.most_of_one:
            # others may close its connections sooner than itself
            client.fruitless = now
        else:
            self._fruitless = now
        return False

    def _batch(self, limit: int, wanted: int = 1) -> int:
        # apart from the refused: these must not keep idle connections from making room
        return min(max(wanted, limit // BATCH_SHARE), max(1, self._max_refused // 2) - len(self._dropping))

    def _candidates(self, newcomer: _Client | None) -> Iterable[tuple[Idle, int, float, ServedConnection]]:
        for client in self._clients.values():
            hurry = client is not newcomer and len(client.connections) > self.most_of_one
            yield from self._idle_of(client, hurry=hurry)

    def _idle_of(self, client: _Client, *, hurry: bool) -> Iterable[tuple[Idle, int, float, ServedConnection]]:
        """Give the connections of a client that may be closed, with their order: by kind, its client's number, time.

        Args:
            client: the client.
            hurry: whether its silent connections have no grace: it has more than its share.
        """
        now = self._deadlines.now
        held = -len(client.connections)
        for connection in client.connections:
            idle = connection.idle_for(now)
            if idle is not None and (idle[1] >= GRACE[idle[0]] or (hurry and idle[0] is Idle.SILENT)):
                yield idle[0], held, -idle[1], connection

    def _drop(self, found: Iterable[tuple[Idle, int, float, ServedConnection]], most: int) -> int:
        if most < 1:
            return 0
        victims = nsmallest(most, found, key=itemgetter(0, 1, 2))
        for kind, _, _, connection in victims:
            self._forget(connection)
            self._dropping.add(connection)
            self.dropped[kind] += 1
            connection.drop()
        if victims:
            self._log.warn(
                "{count} idle client connections were closed to make room for others",
                count=len(victims),
                once_a_second=True,
            )
        return len(victims)

    # refused connections

    def refuse(self, host: str) -> RefusedConnection | None:
        """Return a protocol that refuses one connection from `host`; None to close it without an answer."""
        if len(self._refused) >= self._max_refused:
            return None
        client = self._clients.get(client_of(host))
        whose = client is not None and not client.exempt and len(client.connections) >= self._most_here(host)
        refused = RefusedConnection(self._deadlines, lambda: self._answer(whose), self._refused.discard)
        self._refused.add(refused)
        return refused

    def close(self) -> None:
        """Abort the connections that are being refused."""
        for refused in self._refused:
            refused.transport.abortConnection()

    def _answer(self, of_one: bool) -> bytes:
        if of_one:
            text = (
                "Too many connections come from your address; close some and send the request again. The operator sets "
                "its share in passthrough.limits.max_connections_share."
            )
        else:
            text = (
                "The gateway has too many connections; send the request again. The operator sets how many in "
                "passthrough.limits.max_connections."
            )
        error = TooManyConnections(text, retry_after=1)
        body = error.body()
        headers = error.headers()
        headers += [
            (b"content-length", b"%d" % len(body)),
            (b"date", self._date()),
            (b"x-request-id", self._make_id()),
            (b"Connection", b"close"),
        ]
        return write_response_head(error.status, b"Service Unavailable", headers) + body
