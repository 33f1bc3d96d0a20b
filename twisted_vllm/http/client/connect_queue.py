"""Exchanges that wait for a descriptor or a port to connect with."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.error import ConnectError, DNSLookupError

from twisted_vllm.errors import GatewayError, OutOfSockets
from twisted_vllm.http.client.exchange import UpstreamExchange
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.open_files import SHORTAGES, is_exhausted

#: what Retry-After says to a request that found none
RETRY_AFTER = 1

#: exchanges to connect at each check of the deadlines: if there is still no descriptor, each attempt is in vain
MOST_AT_ONCE = 16


class ConnectQueue:
    """Connects exchanges later, first come, first served, or fails them with `OutOfSockets`.

    An exchange waits at most as long as a connection to its server may take (``timeouts.connect``). ``len()`` is the
    number that waits.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds: at each check while any exchange waits.
    """

    def __init__(
        self, deadlines: DeadlineSweeper, has_room: Callable[[], bool], connect: Callable[[UpstreamExchange], None]
    ) -> None:
        """Make an empty queue.

        Args:
            deadlines: checks the deadlines of all connections.
            has_room: returns whether one more connection is allowed.
            connect: connects an exchange; if that fails for want of a descriptor, it may add the exchange again.
        """
        self.deadline: float | None = None
        self._deadlines = deadlines
        self._has_room = has_room
        self._connect = connect
        self._waiting: OrderedDict[UpstreamExchange, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, exchange: UpstreamExchange) -> None:
        """Add an exchange at the end; one that has waited before stands in front, or fails if its time is over."""
        now = self._deadlines.now
        if exchange.connect_by is None:
            exchange.connect_by = now + exchange.server.timeouts.connect
            self._waiting[exchange] = None
        elif exchange.connect_by > now:
            self._waiting[exchange] = None
            self._waiting.move_to_end(exchange, last=False)
        else:
            self._fail(exchange)
            return
        if self.deadline is None:
            self.deadline = now
            self._deadlines.add(self)

    def discard(self, exchange: UpstreamExchange) -> None:
        """Remove an exchange that was given up."""
        self._waiting.pop(exchange, None)
        self._rest_if_empty()

    def go_on(self, most: int = MOST_AT_ONCE) -> None:
        """Connect the next exchanges, at most `most`, as far as there is room."""
        for _ in range(min(most, len(self._waiting))):
            if not self._waiting or not self._has_room():
                break
            exchange, _ = self._waiting.popitem(last=False)
            self._connect(exchange)
        self._rest_if_empty()

    def expired(self) -> None:
        """Fail the exchanges whose time is over, and try the next ones."""
        now = self._deadlines.now
        over = [exchange for exchange in self._waiting if exchange.connect_by is None or exchange.connect_by <= now]
        for exchange in over:
            if exchange in self._waiting:
                del self._waiting[exchange]
                self._fail(exchange)
        self.go_on()

    def close(self, error: GatewayError) -> None:
        """Fail every exchange with `error`."""
        while self._waiting:
            exchange, _ = self._waiting.popitem(last=False)
            exchange.fail(error)
        self._rest_if_empty()

    def _fail(self, exchange: UpstreamExchange) -> None:
        exchange.fail(
            OutOfSockets(
                "The gateway has no open file or port left for a connection to the model's server; send the request "
                "again.",
                retry_after=RETRY_AFTER,
            )
        )

    def _rest_if_empty(self) -> None:
        if not self._waiting and self.deadline is not None:
            self.deadline = None
            self._deadlines.discard(self)


def shortage_in(error: BaseException) -> int | None:
    """Return the error number if connecting failed for want of a descriptor, a port or memory; else None."""
    if isinstance(error, DNSLookupError):
        # the resolver does not tell why
        return errno.EMFILE if is_exhausted() else None
    number = error.osError if isinstance(error, ConnectError) else error.errno if isinstance(error, OSError) else None
    return number if number in SHORTAGES else None
