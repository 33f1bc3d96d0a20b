"""A client's request: lean for what is relayed, whole for what Klein answers.

A resource that provides `IStreamingResource` is rendered as soon as the head is there; it takes the body with
`GatewayRequest.collect_body` or `GatewayRequest.stream_body` and answers with `GatewayRequest.relay_head` and
`GatewayRequest.relay_body`, or with `GatewayRequest.answer`. Any other resource gets an ordinary Twisted request, whose
body was read into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from twisted_vllm.errors import BodyTooLarge, GatewayError
from twisted_vllm.http.headers import HeaderList
from twisted_vllm.http.server.response import ResponseWriter

if TYPE_CHECKING:
    from twisted_vllm.http.header_cache import CachedRequestHead
    from twisted_vllm.http.server.connection import ServerConnection

#: bytes of a body that are read and thrown away to keep a connection whose request was answered early
DISCARD_LIMIT = 262_144

#: pieces of a body that is collected from which on they are put together
LOOSE_PIECES = 256


#: headers of which each value counts
JOINED = frozenset((b"connection", b"sec-websocket-protocol"))


class IStreamingResource(IResource):
    """A resource that is rendered when the head of the request is there, whether or not its body is."""


class Work(Protocol):
    """What a streaming resource does for a request, as far as the request must be able to stop it."""

    def cancel(self) -> None:
        """The client has gone, or its request turned out to be unreadable: stop, and answer nothing."""


class GatewayRequest(ResponseWriter):
    """One request and its response; see `ResponseWriter` for the latter.

    Attributes:
        raw_headers: the headers as they came, in order. The value of ``Content-Length`` is empty where the head is
            known; see `all_headers`.
        header_names: their names in lower case, in the same order.
        head: the first value of each header, by lower-case name; all of them where it is one of `JOINED`.
        trailers: the trailers as they came; all of them once the body is complete.
        head_complete: whether the head was read.
        fault: what is wrong with the request itself, if anything.
        body_length: the body's size in bytes as declared; ``None`` for a chunked body.
        body_received: bytes of the body that came.
        body_complete: whether the whole body came.
        dispatched: whether a resource was asked to answer it.
        failed: whether its fault was answered, or cut it.
        revoked: whether it was ended because its key is not valid any more.
        protocols: the protocols, in lower case, one of which the connection may switch to if a server agrees.
        known: its head, where that was read before.
        started: when the request began, in the reactor's seconds.
        principal: who the request acts as, once that is known.
        note: what the resource wants to be known of the request when it is over.
    """

    uri = b""
    head: dict[bytes, bytes]
    head_complete = False
    upgrade = False
    protocols: frozenset[bytes] = frozenset()
    fault: GatewayError | None = None
    failed = False
    revoked = False
    dispatched = False
    body_length: int | None = 0
    body_received = 0
    body_complete = False
    principal: Any = None
    known: CachedRequestHead | None = None
    note: Any = None
    work: Work | None = None

    def __init__(self, channel: ServerConnection) -> None:
        # the base classes are initialised when an ordinary resource is found: see _render_whole
        self.channel = channel
        self.raw_headers: HeaderList = []
        self.header_names: list[bytes] = []
        self.trailers: HeaderList = []
        self.head = {}
        self.body_pieces: list[bytes] = []
        self.notifications: list[Any] = []
        self.started = channel.site.seconds()
        self._body_sink: Callable[[bytes, bool], None] | None = None
        self._collect: tuple[int, Callable[[bytes], None]] | None = None
        self._gathered = bytearray()
        self._body_ended = False

    def read_headers(self) -> None:
        """Index the headers, which are all there."""
        head = self.head
        self.header_names = names = [pair[0].lower() for pair in self.raw_headers]
        for name, (_, value) in zip(names, self.raw_headers, strict=True):
            if name not in head:
                head[name] = value
            elif name in JOINED:
                # each of them nominates, and may say "close"; each of them may be a key
                head[name] += b", " + value

    def all_headers(self) -> HeaderList:
        """Return the headers as they came, with ``Content-Length``."""
        if self.known is None:
            return self.raw_headers
        length = b"%d" % (self.body_length or 0)
        return [
            (pair[0], length) if name == b"content-length" else pair
            for name, pair in zip(self.header_names, self.raw_headers, strict=True)
        ]

    # towards the resource

    def dispatch(self) -> None:
        """Find the resource and let it answer."""
        self.dispatched = True
        self.site = site = self.channel.site
        self.request_id = site.take_request_id(self.head.get(b"x-request-id"), self.started)
        self.path, _, query = self.uri.partition(b"?")
        try:
            resource = site.leaf_for(self.path)
            if IStreamingResource.providedBy(resource):
                resource.render(self)
            else:
                self.collect_body(site.limits.max_admin_body_bytes, lambda body: self._render_whole(body, query))
        except Exception:
            self.processingFailed(Failure())

    def _render_whole(self, body: bytes, query: bytes) -> None:
        """Become an ordinary Twisted request, with its body in ``content``, and go through the resource tree."""
        http.Request.__init__(self, self.channel, parsePOSTFormSubmission=False)
        Componentized.__init__(self)
        for name, value in self.all_headers():
            self.requestHeaders.addRawHeader(name, value)
        self.responseHeaders = Headers()
        self.parseCookies()
        self.content = BytesIO(body)
        self.args = http.parse_qs(query, True) if query else {}
        self.setHeader(b"server", b"twisted-vllm")
        self.setHeader(b"date", self.channel.site.date())
        self.setHeader(b"x-request-id", self.request_id)
        if not self.keeps_connection():
            self.setHeader(b"connection", b"close")
        self.prepath = []
        self.postpath = [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        try:
            self.render(self.site.getResourceFor(self))
        except Exception:
            self.processingFailed(Failure())

    def collect_body(self, limit: int, done: Callable[[bytes], None]) -> None:
        """Call `done` with the whole body once it is there; answer 413 when it is over `limit` bytes."""
        if self.body_length is not None and self.body_length > limit:
            self.answer(self._too_large(limit))
            return
        self._collect = (limit, done)
        self.ask_for_body()
        self.body_arrived()

    def ask_for_body(self) -> None:
        """Tell a client that waits for it to send its body."""
        if self.awaits_continue():
            self.continued = True
            self.channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def take_body(self) -> bytes:
        """Return the whole body, which must be complete; it is taken once."""
        self._body_ended = True
        pieces, self.body_pieces = self.body_pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def awaits_continue(self) -> bool:
        """Tell whether the client sends its body only after an interim response (RFC 9110 §10.1.1)."""
        return (
            b"expect" in self.head
            and not self.body_complete
            and not self.body_received
            and not self.continued
            and self.clientproto == b"HTTP/1.1"
            and self.head[b"expect"].lower() == b"100-continue"
        )

    def stream_body(self, sink: Callable[[bytes, bool], None]) -> None:
        """Call `sink` with each piece of the body as it comes, and whether it is the last; the last may be empty."""
        self._body_sink = sink
        self.body_arrived()

    def forget_body(self) -> None:
        """Pass nothing on any more: the request is over."""
        self._body_sink = self._collect = None

    def pause_body(self) -> None:
        """Read no more of the body from the client for now."""
        if not self.body_complete and self.channel is not None:
            self.channel.pause_reading("body")

    def resume_body(self) -> None:
        """Read on."""
        if self.channel is not None:
            self.channel.resume_reading("body")

    @staticmethod
    def _too_large(limit: int) -> BodyTooLarge:
        return BodyTooLarge(f"This request's body must be read whole, and is over {limit} bytes.")

    def keeps_connection(self) -> bool:
        """Tell whether the connection can take another request after this one."""
        if not self.persistent or self.channel is None or self.channel.site.draining:
            return False
        if self.body_complete:
            return True
        if self.awaits_continue():
            # it may send the body or leave it out: what follows could be read in two ways
            return False
        return self.body_length is not None and self.body_length - self.body_received <= DISCARD_LIMIT

    # from the channel

    def body_arrived(self) -> None:
        """Pass on what came of the body."""
        if self._body_ended or self.finished:
            return
        if self._body_sink is not None:
            pieces, self.body_pieces = self.body_pieces, []
            self._body_ended = self.body_complete
            if pieces or self._body_ended:
                self._body_sink(pieces[0] if len(pieces) == 1 else b"".join(pieces), self._body_ended)
        elif self._collect is not None:
            limit, done = self._collect
            if self.body_received > limit:
                self._collect = None
                self.answer(self._too_large(limit))
            elif self.body_complete:
                self._body_ended = True
                done(b"".join([self._gathered, *self.body_pieces]) if self._gathered else b"".join(self.body_pieces))
            elif len(self.body_pieces) > LOOSE_PIECES:
                # an object for each of many tiny chunks would take many times their size
                self._gathered += b"".join(self.body_pieces)
                self.body_pieces.clear()

    def fail(self, error: GatewayError) -> None:
        """The request turned out to be unreadable: answer `error`, or cut what was begun."""
        self.failed = True
        if not self.request_id:
            self.request_id = self.channel.site.take_request_id(None, self.started)
        self._stop_work()
        if self.first_byte is None and not self.startedWriting:
            self.answer(error)
        else:
            self.abort()

    def revoke(self, error: GatewayError) -> None:
        """The request may not go on: answer `error`, or cut what was begun."""
        self.revoked = True
        self.error_code = error.code
        self.fail(error)

    def _stop_work(self) -> None:
        work, self.work = self.work, None
        if work is not None:
            work.cancel()

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone before its request was answered."""
        if self.finished or self._disconnected:
            return
        site = self.channel.site
        self._disconnected = True
        try:
            self._stop_work()
        finally:
            if self.dispatched or self.failed:
                site.finished(self)
            super().connectionLost(reason)

    def processingFailed(self, reason: Failure) -> Failure:
        """Log what went wrong in a resource, and answer 500 without a word of it."""
        self._log.failure("A request could not be processed", failure=reason)
        if self.channel is not None:
            self.fail(GatewayError("The gateway failed to process this request; its log says why."))
        return reason
