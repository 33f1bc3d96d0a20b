"""What the client asks of an agent, and an agent of a body."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import Attribute

from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import HeaderList

#: receives an interim response: its status, its reason phrase and its headers
Informational = Callable[[int, bytes, HeaderList], None]

#: is told that a request left its server's queue: the seconds that it waited there, or None if it was refused at once,
#: and whether it goes on to the server
LeftQueue = Callable[[float | None, bool], None]

NO_PROTOCOLS: frozenset[bytes] = frozenset()


class IRelayedBody(IBodyProducer):
    """A body that comes from a client while it goes to the server."""

    trailers = Attribute("The trailers that follow it, as a header list; all of them once it has ended.")

    def hold() -> None:
        """Read no more from the client until `startProducing`: there is no connection yet to write to."""


class IUpstreamAgent(IAgent):
    """An agent with options for what HTTP has and IAgent has not."""

    def request(  # type: ignore[override]  # to mypy no Deferred[IResponse]
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: bytes | IBodyProducer | None = None,
        *,
        total_timeout: float | None = None,
        protocols: frozenset[bytes] = NO_PROTOCOLS,
        informational: Informational | None = None,
        left_queue: LeftQueue | None = None,
    ) -> Deferred[UpstreamResponse]:
        """Send a request.

        Args:
            method: the method.
            uri: the URL.
            headers: `RawHeaders` are sent as they are; to others ``Host`` and the body's framing are added.
            bodyProducer: the body: bytes, which are sent in one write with the head, or a producer that streams it. An
                `IRelayedBody` is held while the request waits for a connection.
            total_timeout: seconds that the exchange may take once it is on a connection, or None.
            protocols: the protocols, in lower case, to one of which the server may switch with a `SwitchedResponse`.
            informational: called with each interim response.
            left_queue: called once if the request was queued, or refused because a queue is full.

        Returns:
            The response, once its head arrived. Cancelling gives up the request and aborts its connection; after that,
            stopping the response does. It fails with:

            UpstreamUnreachable: no connection could be made, or it closed before the answer began.
            UpstreamTimeout: connecting, or waiting for the head of the response, took too long.
            UpstreamProtocolError: the answer is not HTTP.
            ServerBusy: the request could not be queued, or waited too long.
        """
