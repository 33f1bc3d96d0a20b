"""One request to a server and the response to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.interfaces import NO_PROTOCOLS, Informational
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import ResponseHead, listed


class Carrier(Protocol):
    """What carries an exchange: a connection, or the attempt to make one."""

    def give_up(self, exchange: UpstreamExchange) -> None:
        """Stop working on `exchange`."""


class UpstreamExchange:
    """One request and the response to it.

    Attributes:
        server: where it goes.
        method: the request's method.
        data: the request as far as it is in hand: the head, and the body if it is not streamed.
        body: the producer that streams the body, or None.
        total_timeout: seconds that the exchange may take once it is on a connection, or None.
        protocols: the protocols, in lower case, to one of which the server may switch.
        informational: receives interim responses, or None.
        result: fires with the response, once its head arrived, or with a failure; None once it has fired or was
            cancelled.
        carrier: the connection that it is on, or the agent while that connects.
        response: the response, from its head to its end.
        retried: whether it was sent before, on a connection that turned out to be dead.
        on_ended: called once, when it is over, however it ends; None after that, or where it need not be known.
    """

    __slots__ = (
        "body",
        "carrier",
        "data",
        "informational",
        "method",
        "on_ended",
        "protocols",
        "response",
        "result",
        "retried",
        "server",
        "total_timeout",
    )

    def __init__(
        self,
        server: Server,
        method: bytes,
        data: bytes,
        body: IBodyProducer | None,
        total_timeout: float | None = None,
        protocols: frozenset[bytes] = NO_PROTOCOLS,
        informational: Informational | None = None,
        on_ended: Callable[[], None] | None = None,
    ) -> None:
        self.server = server
        self.method = method
        self.data = data
        self.body = body
        self.total_timeout = total_timeout
        self.protocols = protocols
        self.informational = informational
        self.result: Deferred[UpstreamResponse] | None = Deferred(self._cancelled)
        self.carrier: Carrier | None = None
        self.response: UpstreamResponse | None = None
        self.retried = False
        self.on_ended = on_ended

    @property
    def can_be_resent(self) -> bool:
        """Whether all of the request is still in hand, and it was not sent again before."""
        return not self.retried and self.body is None

    def allows_switch(self, head: ResponseHead) -> bool:
        """Tell whether all that a server's 101 switches to was asked for (RFC 9110 §7.8)."""
        agreed = listed(head.headers, b"upgrade")
        return bool(agreed) and self.protocols.issuperset(agreed)

    def respond(self, response: UpstreamResponse) -> None:
        """Fire `result` with the response."""
        result, self.result = self.result, None
        if result is not None:
            result.callback(response)

    def fail(self, error: BaseException) -> None:
        """Fire `result` with a failure, if it has not fired; the exchange is over."""
        result, self.result = self.result, None
        try:
            if result is not None:
                result.errback(Failure(error))
        finally:
            self.end()

    def end(self) -> None:
        """The exchange is over. Idempotent."""
        on_ended, self.on_ended = self.on_ended, None
        if on_ended is not None:
            on_ended()

    def give_up(self) -> None:
        """Stop working on the exchange; nothing happens if it has ended."""
        try:
            if self.carrier is not None:
                self.carrier.give_up(self)
        finally:
            self.end()

    def _cancelled(self, _: object) -> None:
        self.result = None
        self.give_up()
