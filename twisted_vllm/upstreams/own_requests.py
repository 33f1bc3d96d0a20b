"""Requests that the gateway itself sends to a server."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.headers import HeaderList


def get_json(client: PassThroughClient, server: Server, path: bytes) -> Deferred[UpstreamResponse]:
    """As `get`, for JSON."""
    return get(client, server, path, b"application/json")


def get(client: PassThroughClient, server: Server, path: bytes, accept: bytes) -> Deferred[UpstreamResponse]:
    """Ask a server, with its own key.

    Args:
        client: sends the request.
        server: the server.
        path: the path below its base path.
        accept: the media types that the answer may have.

    Returns:
        The response, as from `PassThroughClient.request`.
    """
    headers = RawHeaders.from_pairs(own_headers(server, accept))
    return client.request(b"GET", server.url + path, headers=headers, server=server, again=lambda: headers)


def own_headers(server: Server, accept: bytes) -> HeaderList:
    """Return the headers of a request to a server, with its own key.

    Args:
        server: the server.
        accept: the value of ``Accept``.
    """
    pairs = [(b"Host", server.host_header), (b"Accept", accept)]
    if server.api_key is not None:
        pairs.append((b"Authorization", b"Bearer " + server.api_key.reveal().encode()))
    return pairs


def read_at_most(response: UpstreamResponse, limit: int) -> Deferred[bytes]:
    """Read the body of a response; cancelling the Deferred closes the connection.

    Args:
        response: the response.
        limit: the maximum size of its body in bytes.

    Returns:
        The body. It fails with `UpstreamProtocolError` as soon as more came, and with the reason if the body was cut.
    """
    body = _Body(limit)
    response.deliverBody(body)
    return body.done


class _Body(Protocol):
    """Collects a body up to a size."""

    transport: Any = None

    def __init__(self, limit: int) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._cut())
        self._limit = limit
        self._received = bytearray()

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:
            return
        self._received += data
        if len(self._received) > self._limit:
            self._received.clear()
            self.done.errback(UpstreamProtocolError(f"The server's answer is over {self._limit} bytes."))
            self._cut()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone):
            self.done.callback(bytes(self._received))
        else:
            self.done.errback(reason)

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.stopProducing()
