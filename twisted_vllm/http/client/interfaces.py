"""The interfaces of the agent and of the bodies that it sends."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import Attribute

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import HeaderList

#: receives an interim response: its status, its reason phrase and its headers
Informational = Callable[[int, bytes, HeaderList], None]

#: returns the headers with which a request is sent again, with an id of their own
Again = Callable[[], RawHeaders]

#: called when the whole request, or a piece of its body, was written to a connection: the time in the reactor's seconds
Sent = Callable[[float], None]

#: called once when an exchange is over: its response is complete, failed or was given up, or its tunnel is closed
Ended = Callable[[], None]

NO_PROTOCOLS: frozenset[bytes] = frozenset()


class IRelayedBody(IBodyProducer):
    """A body that is relayed from a client to the server."""

    trailers = Attribute("The trailers, as a header list; complete once the body has ended.")

    def hold() -> None:
        """Stop reading from the client until `startProducing`: there is no connection to write to yet."""


class IRepeatableBody(IBodyProducer):
    """A body in memory: after `stopProducing` it can be sent again from its beginning."""


class IUpstreamAgent(IAgent):
    """An agent with options for parts of HTTP that IAgent lacks."""

    def request(  # type: ignore[override]  # to mypy no Deferred[IResponse]
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: bytes | IBodyProducer | None = None,
        *,
        server: Server | None = None,
        protocols: frozenset[bytes] = NO_PROTOCOLS,
        informational: Informational | None = None,
        on_sent: Sent | None = None,
        again: Again | None = None,
        on_ended: Ended | None = None,
    ) -> Deferred[UpstreamResponse]:
        """Send a request.

        Args:
            method: the method.
            uri: the URL.
            headers: `RawHeaders` are sent unchanged; to others ``Host`` and the body's framing are added.
            bodyProducer: the body: bytes, which are sent in one write with the head, or a producer that streams it. An
                `IRelayedBody` is held while the request waits for a connection; an `IRepeatableBody` may be sent again,
                as bytes may.
            server: the configured server that the URL belongs to: its address, TLS and timeouts. None connects to the
                host of the URL, with default timeouts.
            protocols: the protocols, in lower case, that the server may switch to with a `SwitchedResponse`.
            informational: called with each interim response.
            on_sent: called when it was written to a connection, and again for each piece of a body that streams; not
                called again if it is sent again.
            again: makes the headers of another attempt; None if the request must not be sent again once a byte of it
                was sent. A request of which nothing was sent goes to another connection in any case.
            on_ended: called once when the exchange is over.

        Returns:
            The response, once its head arrived. Cancelling gives up the request and aborts its connection; after that,
            stopping the response does. It fails with:

            UpstreamUnreachable: no connection could be made, or it closed before the response began.
            UpstreamTimeout: connecting, or waiting for the head of the response, took too long.
            UpstreamProtocolError: the response is not HTTP.
            OutOfSockets: the gateway had no descriptor or port for a connection.
        """
