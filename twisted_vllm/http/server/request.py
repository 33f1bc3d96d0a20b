"""A client's request and the response to it.

A resource that provides `IStreamingResource` is rendered as soon as the head is there. It takes the body with
`GatewayRequest.collect_body` or `GatewayRequest.stream_body`, and answers with `GatewayRequest.relay_head` and
`GatewayRequest.relay_body`, or with `GatewayRequest.answer`. Any other resource gets an ordinary Twisted request, whose
body was read into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from io import BytesIO
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from twisted_vllm.config.settings import Limits
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.errors import ERROR_HEADER, BodyTooLarge, GatewayError
from twisted_vllm.http.headers import (
    BODILESS,
    FRAMING,
    HeaderList,
    RequestHead,
    ResponseHead,
    write_last_chunk,
    write_response_head,
)
from twisted_vllm.lifecycle import Lifecycle

#: bytes of a body that are read and dropped to keep a connection whose request was answered early
DISCARD_LIMIT = 262_144

#: pieces of a collected body that are joined into one, as many tiny chunks would take many times their size
LOOSE_PIECES = 256


class IStreamingResource(IResource):
    """A resource that is rendered when the head of the request is there, whether or not its body is."""


class Work(Protocol):
    """What a streaming resource does for a request, as far as the request must be able to stop it."""

    def cancel(self) -> None:
        """The client has gone, or its request turned out to be unreadable: stop, and answer nothing."""


class RequestSite(Protocol):
    """What a request asks of its site."""

    limits: Limits
    lifecycle: Lifecycle
    draining: bool
    seconds: Callable[[], float]

    def date(self) -> bytes:
        """Return the value of a ``Date`` header."""

    def take_request_id(self, given: bytes | None, started: float) -> bytes:
        """Return the request's id: `given` where it is safe and unique, else a new one."""

    def leaf_for(self, path: bytes) -> IResource:
        """Return the resource that answers `path`."""

    def finished(self, request: GatewayRequest) -> None:
        """Forget a request that was answered or given up, and tell the observers."""


class RequestConnection(Protocol):
    """What a request asks of its client's connection."""

    peer: Peer
    transport: Any
    write: Any
    send_now: Any

    @property
    def site(self) -> RequestSite:
        """The factory that built it."""

    def pause_reading(self, why: str) -> None:
        """Read no more from the client until `resume_reading` is called with the same reason."""

    def resume_reading(self, why: str) -> None:
        """Read again, unless another reason forbids it."""

    def requestDone(self, request: GatewayRequest) -> None:
        """Go on to the next request, or close the connection."""


class GatewayRequest(server.Request):
    """One request and its response.

    Attributes:
        context: what is known of it.
        channel: the client's connection; None once the response has ended.
        persistent: whether the connection goes on after this request, as far as that is known.
        trailers: the trailers as they came; all of them once the body is complete.
        head_complete: whether the head was read.
        fault: what is wrong with the request itself, if anything.
        body_received: bytes of the body that arrived.
        body_complete: whether the whole body arrived.
        body_pieces: what arrived of the body and was not taken yet.
        continued: whether the client was told to send its body.
        dispatched: whether a resource was asked to answer it.
        failed: whether its fault was answered, or cut it.
        work: what a resource does for it, until that is done.
        added: whole header lines that the gateway adds to the response.
    """

    channel: Any
    site: Any
    persistent = True
    head_complete = False
    fault: GatewayError | None = None
    failed = False
    dispatched = False
    body_received = 0
    body_complete = False
    continued = False
    work: Work | None = None
    added = b""
    _corked = b""
    _chunked_out = False

    def __init__(self, channel: RequestConnection) -> None:
        # the base classes are initialised when an ordinary resource is found: see _render_whole
        self.channel = channel
        self.context = RequestContext(channel.peer, channel.site.seconds())
        self.trailers: HeaderList = []
        self.body_pieces: list[bytes] = []
        self.notifications: list[Any] = []
        self._body_sink: Callable[[bytes, bool], None] | None = None
        self._collect: tuple[int, Callable[[bytes], None]] | None = None
        self._gathered = bytearray()
        self._body_ended = False

    def begin(self, head: RequestHead) -> None:
        """Take the head, which is there."""
        self.context.head = head
        self.method = head.method
        self.uri = head.target
        self.clientproto = head.version
        self.persistent = head.keep_alive
        self.head_complete = True

    @property
    def head(self) -> RequestHead:
        """The head."""
        return self.context.head

    @property
    def body_length(self) -> int | None:
        """The body's declared size in bytes, or None for a chunked body."""
        return self.context.head.length

    # towards the resource

    def dispatch(self) -> None:
        """Find the resource and let it answer."""
        self.dispatched = True
        self.site = site = self.channel.site
        context = self.context
        context.request_id = site.take_request_id(context.head.first.get(b"x-request-id"), context.started)
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
        for name, value in self.head.complete_headers():
            self.requestHeaders.addRawHeader(name, value)
        self.responseHeaders = Headers()
        self.parseCookies()
        self.content = BytesIO(body)
        self.args = http.parse_qs(query, True) if query else {}
        self.setHeader(b"server", b"twisted-vllm")
        self.setHeader(b"date", self.channel.site.date())
        self.setHeader(b"x-request-id", self.context.request_id)
        if not self.keeps_connection():
            self.setHeader(b"connection", b"close")
        self.prepath = []
        self.postpath = [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        try:
            self.render(self.site.getResourceFor(self))
        except Exception:
            self.processingFailed(Failure())

    # the body

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
        first = self.context.head.first
        return (
            b"expect" in first
            and not self.body_complete
            and not self.body_received
            and not self.continued
            and self.clientproto == b"HTTP/1.1"
            and first[b"expect"].lower() == b"100-continue"
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

    # from the connection

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
                self._gathered += b"".join(self.body_pieces)
                self.body_pieces.clear()

    def fail(self, error: GatewayError) -> None:
        """The request turned out to be unreadable: answer `error`, or cut what was begun."""
        self.failed = True
        context = self.context
        if not context.request_id:
            context.request_id = self.channel.site.take_request_id(None, context.started)
        self._stop_work()
        if context.first_byte is None and not self.startedWriting:
            self.answer(error)
        else:
            self.abort()

    def revoke(self, error: GatewayError) -> None:
        """The request may not go on: answer `error`, or cut what was begun."""
        self.context.revoked = True
        self.context.error_code = error.code
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

    # the response

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

    def answer(self, error: GatewayError) -> None:
        """Answer an error of the gateway's own, whole."""
        if self._disconnected or self.finished:
            return
        self.context.error_code = error.code
        body = error.body()
        headers = error.headers()
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"date", self.channel.site.date()))
        # twisted.web's own table ends before 428
        reason = HTTPStatus(error.status).phrase.encode("ascii")
        self.relay_head(ResponseHead(error.status, reason, headers))
        self.relay_body(body, True)

    def relay_head(self, head: ResponseHead) -> None:
        """Begin the response; it is written with the first piece of the body, or by `flush`.

        What goes on is ``head.relayed``; ``x-request-id`` and the framing are added where they are not there.
        """
        status = head.status
        added = self.added
        if not head.has_request_id:
            added = b"%bx-request-id: %b\r\n" % (added, self.context.request_id)
        self._chunked_out = False
        keep = self.keeps_connection()
        if head.length is None:
            if self.method != b"HEAD" and status not in BODILESS:
                if self.clientproto == b"HTTP/1.1":
                    self._chunked_out = True
                    added += b"Transfer-Encoding: chunked\r\n"
                else:
                    keep = False
        elif status == 204:
            # RFC 9110 §8.6 forbids a length, and a client that believes it would wait for a body
            kept = [pair for pair in head.relayed if pair[0].lower() != b"content-length"]
            head = ResponseHead(status, head.reason, kept)
        if not keep:
            self.persistent = False
            added += b"Connection: close\r\n"
        self.context.status = self.code = status
        self._corked = head.write(added)

    def relay_switch(self, head: ResponseHead) -> None:
        """Begin a 101 and what follows it, which nothing frames and only the connection ends (RFC 9110 §15.2.2)."""
        headers = [pair for pair in head.headers if pair[0].lower() not in FRAMING]
        added = b"" if head.has_request_id else b"x-request-id: " + self.context.request_id + b"\r\n"
        self.persistent = self._chunked_out = False
        self.context.status = self.code = head.status
        self._corked = write_response_head(head.status, head.reason, headers, added)

    def relay_body(self, data: bytes, last: bool, trailers: HeaderList | None = None) -> None:
        """Write a piece of the response's body, in one write with what frames it; end the response with the last.

        Args:
            data: the piece.
            last: whether it is the last.
            trailers: what follows the last piece, if anything; only a chunked response to HTTP/1.1 can carry it.
        """
        if self._disconnected or self.finished:
            return
        if self.context.first_byte is None:
            self._note_first_byte()
        out = self._corked
        self._corked = b""
        if self.method == b"HEAD":
            data = b""
        self.sentLength += len(data)
        if not self._chunked_out:
            out = out + data if out else data
        elif data:
            out = b"%b%x\r\n%b\r\n%b" % (out, len(data), data, write_last_chunk(trailers) if last else b"")
        elif last:
            out += write_last_chunk(trailers)
        if last:
            self._end(out)
        elif out:
            self.channel.write(out)

    def _note_first_byte(self) -> None:
        site = self.channel.site
        self.context.first_byte = site.seconds()
        for observe in site.lifecycle.first_byte:
            observe(self.context)

    def flush(self) -> None:
        """Write the head, if no piece of the body has carried it."""
        if self._corked:
            self.relay_body(b"", False)

    def informational(self, status: int, reason: bytes, headers: HeaderList) -> None:
        """Pass on an interim response (RFC 9110 §15.2), less what speaks of the server's connection or of a body.

        HTTP/1.0 knows no interim responses.
        """
        self.continued = self.continued or status == 100
        if self.clientproto == b"HTTP/1.1" and not self._disconnected:
            relayed = [pair for pair in ResponseHead(status, reason, headers).relayed if pair[0].lower() not in FRAMING]
            self.channel.write(write_response_head(status, reason, relayed))

    def abort(self) -> None:
        """Cut the connection after what was written, so that it does not look complete."""
        if self.channel is not None:
            self.channel.send_now()
            self.channel.transport.abortConnection()

    def write(self, data: bytes) -> None:
        """Write a piece of an ordinary resource's response."""
        context = self.context
        if context.first_byte is None and not self._disconnected:
            context.status = self.code
            if not context.error_code:
                code = (self.responseHeaders.getRawHeaders(ERROR_HEADER) or [b""])[0]
                context.error_code = code.decode("latin-1")
            self._note_first_byte()
        super().write(data)

    def finish(self) -> None:
        """End the response of an ordinary resource."""
        if self._disconnected or self.finished:
            return
        if self.context.first_byte is None:
            self.write(b"")
        self._end(b"0\r\n\r\n" if self.chunked else b"")

    def _end(self, out: bytes) -> None:
        """Write the last bytes, after the observers were told: who has the bytes may ask for what these keep."""
        self.finished = 1
        channel = self.channel
        channel.site.finished(self)
        if out:
            channel.write(out)
        if self.producer:
            self.unregisterProducer()
        channel.requestDone(self)
        self.channel = None
        notifications, self.notifications = self.notifications, []
        for waiting in notifications:
            waiting.callback(None)
