"""One request to a server and the response to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.interfaces import NO_PROTOCOLS, Again, Informational, IRepeatableBody, Sent
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import ResponseHead, listed


class Carrier(Protocol):
    """Carries an exchange: a connection, or an attempt to connect."""

    def give_up(self, exchange: UpstreamExchange) -> None:
        """Stop working on `exchange`."""


class UpstreamExchange:
    """One request and the response to it.

    Attributes:
        server: its server.
        method: the request's method.
        data: the bytes to send: the head, and the body if it is not streamed; empty once the response has begun.
        body: the producer that streams the body, or None; None once the response has begun.
        protocols: the protocols that the server may switch to, in lower case.
        informational: receives interim responses, or None.
        result: fires with the response once its head arrived, or with a failure; None after it fired or was cancelled.
        carrier: its connection, or the agent while that connects.
        response: the response, from its head to its end.
        connect_by: until when it waits for a descriptor to connect with, in the reactor's seconds; None if it need not.
        retried: whether it was already sent again.
        again: makes the headers of another attempt; None if it must not be sent again.
        on_ended: called once when it is over, however it ends; None after that, or if nobody listens.
        on_sent: called when it was first written to a connection, or None.
    """

    __slots__ = (
        "again",
        "body",
        "carrier",
        "connect_by",
        "data",
        "informational",
        "method",
        "on_ended",
        "on_sent",
        "protocols",
        "response",
        "result",
        "retried",
        "server",
    )

    def __init__(
        self,
        server: Server,
        method: bytes,
        data: bytes,
        body: IBodyProducer | None,
        protocols: frozenset[bytes] = NO_PROTOCOLS,
        informational: Informational | None = None,
        on_ended: Callable[[], None] | None = None,
        on_sent: Sent | None = None,
        again: Again | None = None,
    ) -> None:
        self.server = server
        self.method = method
        self.data = data
        self.body = body
        self.protocols = protocols
        self.informational = informational
        self.result: Deferred[UpstreamResponse] | None = Deferred(self._cancelled)
        self.carrier: Carrier | None = None
        self.response: UpstreamResponse | None = None
        self.connect_by: float | None = None
        self.retried = False
        self.on_ended = on_ended
        self.on_sent = on_sent
        self.again = again

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be sent again, the whole request is still in memory, and it was not sent again before."""
        if self.again is None or self.retried:
            return False
        return self.body is None or IRepeatableBody.providedBy(self.body)

    def repeat(self) -> None:
        """Prepare to be sent again: with headers of its own for this attempt."""
        assert self.again is not None
        self.retried = True
        data = self.data
        line, end = data.index(b"\r\n") + 2, data.index(b"\r\n\r\n") + 2
        self.data = b"".join((data[:line], self.again().lines, data[end:]))

    def allows_switch(self, head: ResponseHead) -> bool:
        """Return whether the client requested every protocol of a server's 101 (RFC 9110 §7.8)."""
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
        """Call `on_ended`. Idempotent."""
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
