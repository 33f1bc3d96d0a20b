"""An HTTP server that keeps what is posted to it, and answers as it is told."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

#: an answer that never comes, and a connection that is cut
HANG, CUT = 0, -1


@attrs.frozen
class Posted:
    """One request: its path with the query, headers in lower case, and body, decompressed."""

    path: str
    headers: dict[str, str]
    body: bytes
    raw: bytes


@attrs.frozen
class Reply:
    """What to answer."""

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    after: float = 0.0


class Receiver(Resource):
    """Answers 200, or what stands next in `replies`."""

    isLeaf = True

    def __init__(self, reactor: Any, context: str = "") -> None:
        """Set up; `context` is the rest of a TLS endpoint, such as ``:privateKey=FILE``."""
        super().__init__()
        self.posted: list[Posted] = []
        self.replies: list[Reply] = []
        self._reactor = reactor
        self._context = context
        self._port: Any = None
        self._number = 0
        self._site = Site(self)
        self._channels: set[Any] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self._number}/in?token=sk-secret-token"

    async def start(self, number: int = 0) -> None:
        kind = "ssl" if self._context else "tcp"
        # so that the gateway finds it again at the same port
        endpoint = serverFromString(
            self._reactor, f"{kind}:{number or self._number}:interface=127.0.0.1{self._context}"
        )
        self._port = await endpoint.listen(self._site)
        self._number = self._port.getHost().port

    async def stop(self) -> None:
        if self._port is not None:
            port, self._port = self._port, None
            await maybeDeferred(port.stopListening)
        for channel in list(self._channels):
            if channel.transport is not None and channel.transport.connected:
                channel.transport.abortConnection()
        self._channels.clear()
        await deferLater(self._reactor, 0.01)

    def render_POST(self, request: Request) -> Any:
        self._channels.add(request.channel)
        done: Deferred[None] = request.notifyFinish()
        done.addErrback(lambda _: None)
        assert request.content is not None
        raw = request.content.read()
        headers = {
            name.decode().lower(): b", ".join(values).decode()
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        body = gzip.decompress(raw) if headers.get("content-encoding") == "gzip" else raw
        reply = self.replies.pop(0) if self.replies else Reply(200)
        if reply.status == HANG:
            return NOT_DONE_YET
        if reply.status == CUT:
            transport: Any = request.channel.transport
            transport.abortConnection()
            return NOT_DONE_YET
        if 200 <= reply.status < 300:
            self.posted.append(Posted(request.uri.decode(), headers, body, raw))
        request.setResponseCode(reply.status)
        for name, value in reply.headers.items():
            request.setHeader(name, value)
        if not reply.after:
            return reply.body
        late = deferLater(self._reactor, reply.after, lambda: (request.write(reply.body), request.finish()))
        done.addErrback(lambda _: late.cancel())
        late.addErrback(lambda _: None)
        return NOT_DONE_YET

    async def wait_for(self, count: int, seconds: float = 10.0) -> None:
        """Wait until so many requests were taken."""
        end = self._reactor.seconds() + seconds
        while len(self.posted) < count:
            assert self._reactor.seconds() < end, f"{len(self.posted)} of {count} came"
            await deferLater(self._reactor, 0.01)
