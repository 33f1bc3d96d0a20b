"""A server that is reached by its name: which of its addresses is connected to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.connect_errors import explain
from twisted_vllm.http.client.connect_queue import shortage_in
from twisted_vllm.http.client.connection import UpstreamConnection
from twisted_vllm.http.client.names import ResolvedName

#: seconds after which the next address is tried as well (RFC 8305 §5: 250 ms)
ATTEMPT_DELAY = 0.25

Connecting = Deferred[UpstreamConnection]


class ServerAddress:
    """One address of a server that is reached by its name. The pool knows idle connections by it.

    Attributes:
        opened: the open connections, idle ones included.
        connecting: the attempts to connect.
    """

    __slots__ = ("connecting", "opened")

    def __init__(self) -> None:
        """Begin without any."""
        self.opened = self.connecting = 0


class NamedServer:
    """A server that is reached by its name.

    Attributes:
        name: resolves it.
        opened: its open connections, by any address.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        server: Server,
        name: ResolvedName,
        endpoint: Callable[[str], IStreamClientEndpoint],
        idle: Callable[[Hashable], int],
    ) -> None:
        """Create it.

        Args:
            reactor: a provider of IReactorTime.
            server: the server.
            name: resolves its name.
            endpoint: makes the endpoint of an address.
            idle: returns how many connections are idle, by what the pool knows them by.
        """
        self.name = name
        self.opened = 0
        self._idle = idle
        self._places: dict[str, ServerAddress] = {}
        self._reactor = reactor
        self._server = server
        self._endpoint = endpoint

    def key_of(self, address: str) -> Hashable | None:
        """Return what the pool knows connections to an address by; None if the address is gone."""
        known = self.name.addresses.known
        if address not in known:
            return None
        return self._place(address) if len(known) > 1 else self._server

    def best(self, now: float) -> Hashable:
        """Return what the pool knows connections to the best address by, of several."""
        return self._place(self.name.addresses.best(self._load, now))

    def count(self, address: str, change: int) -> None:
        """A connection to an address was opened (1) or has ended (-1)."""
        self._place(address).opened += change
        self.opened += change
        self._forget_unused(address)
        self.name.use(self.opened > 0)

    def _place(self, address: str) -> ServerAddress:
        found = self._places.get(address)
        if found is None:
            found = self._places[address] = ServerAddress()
        return found

    def _load(self, address: str) -> int:
        """Return how many connections to an address are in use, or being made."""
        place = self._places.get(address)
        return 0 if place is None else place.opened + place.connecting - self._idle(place)

    def _forget_unused(self, address: str) -> None:
        place = self._places.get(address)
        if place is not None and not place.opened and not place.connecting and address not in self.name.addresses.known:
            # a name may have ever new addresses
            del self._places[address]

    def failed(self, address: str, reason: str) -> None:
        """Pass over an address for a while."""
        is_news = self.name.addresses.failed(address, self._reactor.seconds())
        if is_news and len(self.name.addresses.known) > 1:
            self._log.warn(
                "{server} is passed over at {address}: {reason}",
                server=self._server.name,
                address=address,
                reason=reason,
                once_a_second=f"{self._server.name} {address}",
            )

    def connect(self, factory: Any) -> Connecting:
        """Connect to the best address; if it does not accept, to the next."""
        connecting = self.name.ready().addCallback(lambda _: self._race(factory))
        # each attempt is limited, but neither the resolution of the name nor all of them together
        return connecting.addTimeout(self._server.timeouts.connect, self._reactor, lambda *_: Failure(TimeoutError()))

    def _race(self, factory: Any) -> Connecting:
        addresses = self.name.addresses.order(self._load, self._reactor.seconds())
        return _Race(self._reactor, addresses, lambda each: self._attempt(each, factory), self._not_accepted).result

    def _attempt(self, address: str, factory: Any) -> Connecting:
        def connected(connection: Any) -> UpstreamConnection:
            connection.address = address
            if self.name.addresses.accepted(address):
                self._log.info(
                    "{server} accepts connections at {address} again", server=self._server.name, address=address
                )
            made: UpstreamConnection = connection
            return made

        def ended(result: Any) -> Any:
            place.connecting -= 1
            self._forget_unused(address)
            return result

        place = self._place(address)
        place.connecting += 1
        return self._endpoint(address).connect(factory).addBoth(ended).addCallback(connected)

    def _not_accepted(self, address: str, failure: Failure) -> None:
        reason = failure.value
        self.failed(address, "it failed" if reason is None else explain(reason, self._server))


class _Race:
    """Connects to the first of some addresses that accepts: the next is tried if one fails, or hesitates.

    Attributes:
        result: fires with the connection, or fails with the first reason.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[str],
        connect: Callable[[str], Connecting],
        failed: Callable[[str, Failure], None],
    ) -> None:
        self._reactor = reactor
        self._left = list(addresses)
        self._connect = connect
        self._failed = failed
        self._running: dict[str, Connecting] = {}
        self._hesitating: set[str] = set()
        self._first: Failure | None = None
        self._timer: IDelayedCall | None = None
        self._over = False
        self.result: Connecting = Deferred(lambda _: self._end())
        self._next()

    def _next(self) -> None:
        self._timer = None
        self._hesitating.update(self._running)
        address = self._left.pop(0)
        connecting = self._running[address] = self._connect(address)
        if self._left:
            self._timer = self._reactor.callLater(ATTEMPT_DELAY, self._next)
        connecting.addCallbacks(self._won, self._lost, callbackArgs=(address,), errbackArgs=(address,))

    def _won(self, connection: UpstreamConnection, address: str) -> None:
        del self._running[address]
        if self._over:
            # it was cancelled too late
            connection.transport.abortConnection()
            return
        for other in self._hesitating & self._running.keys():
            self._failed(other, Failure(TimeoutError()))
        self._end()
        self.result.callback(connection)

    def _lost(self, failure: Failure, address: str) -> None:
        self._running.pop(address, None)
        if self._over or failure.check(CancelledError, ConnectingCancelledError):
            return
        if failure.value is not None and shortage_in(failure.value) is not None:
            # it is not the address' fault, and the next one would fail as well
            self._end()
            self.result.errback(failure)
            return
        self._failed(address, failure)
        self._first = self._first or failure
        if self._left:
            if self._timer is not None:
                self._timer.cancel()
            self._next()
        elif not self._running:
            self._end()
            self.result.errback(self._first)

    def _end(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connecting in list(self._running.values()):
            connecting.cancel()
