"""A client's request and the response to it.

A resource is rendered as soon as the head has arrived: who asks, and for what, is decided before a body is held.
One that provides `IStreamingResource` takes the body with `GatewayRequest.collect_body` or
`GatewayRequest.stream_body`, and responds with `GatewayRequest.relay_head` and `GatewayRequest.relay_body`, or with
`GatewayRequest.answer`. Any other resource gets an ordinary Twisted request without ``content``, and takes the body
with `GatewayRequest.read_body`.

A body that is held whole first asks for room (`twisted_vllm.http.server.held_bodies`). It is not read until it has it.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource

from twisted_vllm.config.settings import Limits
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.errors import ERROR_HEADER, BodyTooLarge, BudgetExceeded, GatewayError
from twisted_vllm.http.headers import (
    BODILESS,
    FRAMING,
    OWN_WORDS,
    HeaderList,
    RequestHead,
    ResponseHead,
    write_last_chunk,
    write_response_head,
)
from twisted_vllm.http.server.body_room import BodyRoom
from twisted_vllm.http.server.held_bodies import SMALL_BODY, UNCOUNTED, HeldBodies
from twisted_vllm.http.web_pages import WebPages
from twisted_vllm.lifecycle import Lifecycle

#: after an early response, up to this many bytes of the body are read and dropped to keep the connection
DISCARD_LIMIT = 262_144

#: the ends of paths whose errors have Anthropic's shape, as vLLM's have there
ANTHROPIC_PATHS = (b"/messages", b"/messages/count_tokens")

#: longer names of headers, in bytes, do not reach the gateway's own endpoints, which read none of them
MAX_HEADER_NAME = 64
#: the reason phrases; twisted.web's own table ends before 428
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
#: why a body has a lower limit than others
_WHOLE = "The gateway must read it whole."

#: more pieces of a collected body are joined: many tiny chunks would take a multiple of their size
LOOSE_PIECES = 256


class IStreamingResource(IResource):
    """A resource that is rendered when the head of the request has arrived, before its body."""


class Work(Protocol):
    """The cancellable work of a streaming resource for a request."""

    def cancel(self) -> None:
        """Stop without a response: the client has disconnected, or its request is unreadable."""


class RequestSite(Protocol):
    """The part of the site that a request uses."""

    limits: Limits
    held_bodies: HeldBodies
    lifecycle: Lifecycle
    web_pages: WebPages
    draining: bool
    budget_exceeded_status: int
    added_lines: Callable[[RequestContext], bytes] | None
    seconds: Callable[[], float]

    def date(self) -> bytes:
        """Return the value of a ``Date`` header."""

    def take_request_id(self, given: bytes | None, started: float) -> bytes:
        """Return the request's id: `given` if it is safe and unique, else a new one."""

    def leaf_for(self, path: bytes) -> IResource:
        """Return the resource for `path`."""

    def finished(self, request: GatewayRequest) -> None:
        """End a request that was answered or given up, and notify the observers."""


class RequestConnection(Protocol):
    """The part of the client's connection that a request uses."""

    peer: Peer
    transport: Any
    write: Any
    send_now: Any

    @property
    def site(self) -> RequestSite:
        """The factory that built it."""

    def pause_reading(self, why: str) -> None:
        """Stop reading from the client until `resume_reading` is called with the same reason."""

    def resume_reading(self, why: str) -> None:
        """Resume reading, unless there is another reason to pause."""

    def requestDone(self, request: GatewayRequest) -> None:
        """Continue with the next request, or close the connection."""


class GatewayRequest(server.Request):
    """One request and its response.

    Attributes:
        context: its context.
        channel: the client's connection; None once the response has ended.
        persistent: whether the connection may stay open after this request.
        is_awaited: whether it is served although the gateway shuts down: its connection was accepted before.
        trailers: the trailers as received; complete once the body is.
        head_complete: whether the head was read.
        fault: the error of a request that must be refused, or None.
        body_received: bytes of the body that arrived.
        body_complete: whether the whole body arrived.
        body_pieces: the received pieces of the body that were not taken yet.
        continued: whether a ``100 Continue`` was sent.
        dispatched: whether it was passed to a resource.
        failed: whether it ended with an error response or was cut off.
        work: the resource's work for it, while there is any.
        room: the room that its body has in memory, or waits for; None if it needs none.
        added: header lines that the gateway adds to the response.
    """

    channel: Any
    site: Any
    persistent = True
    is_awaited = False
    head_complete = False
    fault: GatewayError | None = None
    failed = False
    dispatched = False
    body_received = 0
    body_complete = False
    continued = False
    work: Work | None = None
    room: BodyRoom | None = None
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
        self._collect: tuple[int, Callable[[bytes], None], str, Callable[[GatewayError], None]] | None = None
        self._gathered = bytearray()
        self._body_ended = False

    def __repr__(self) -> str:
        # Twisted's shows the path, which may hold a key
        return f"<GatewayRequest at {id(self):#x}>"

    def begin(self, head: RequestHead) -> None:
        """Set the head, once it was read."""
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
        """Find the resource and render it."""
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
                # unread until `read_body`
                self.pause_body()
                self._render_ordinary(query)
        except Exception:
            self.processingFailed(Failure())

    def _render_ordinary(self, query: bytes) -> None:
        """Become an ordinary Twisted request, and go through the resource tree."""
        http.Request.__init__(self, self.channel, parsePOSTFormSubmission=False)
        Componentized.__init__(self)
        for name, value in self.head.complete_headers():
            # Twisted remembers 10,000 names of any length for ever
            if len(name) <= MAX_HEADER_NAME:
                self.requestHeaders.addRawHeader(name, value)
        self.responseHeaders = Headers()
        self.parseCookies()
        self.args = http.parse_qs(query, True) if query else {}
        self.setHeader(b"server", b"twisted-vllm")
        self.setHeader(b"date", self.channel.site.date())
        self.setHeader(b"x-request-id", self.context.request_id)
        self.prepath = []
        self.postpath = [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        self.render(self.site.getResourceFor(self))

    # the body

    def collect_body(
        self,
        limit: int,
        done: Callable[[bytes], None],
        *,
        setting: str = "max_held_body_bytes",
        refuse: Callable[[GatewayError], None] | None = None,
    ) -> None:
        """Call `done` with the whole body once it has arrived.

        Args:
            limit: the most bytes that it may have; else it is refused with 413.
            done: called with the body.
            setting: the name of the limit in ``passthrough.limits``.
            refuse: called with the error of a body that is refused; None answers with it.
        """
        refuse = refuse or self.answer
        length = self.body_length
        if length is not None and length > limit:
            refuse(self.too_large(limit, setting))
            return

        def collect() -> None:
            self._collect = (limit, done, setting, refuse)
            self.ask_for_body()
            self.body_arrived()

        self.await_room(limit, collect, refuse)

    def await_room(
        self, most: int, proceed: Callable[[], None], refuse: Callable[[GatewayError], None] | None = None
    ) -> None:
        """Call `proceed` once there is room in memory for the whole body; until then it is not read.

        A small body that is complete needs none. For a chunked body with more than it got room for, what arrives is
        not passed on until there is more room. The room is given back with the first byte of the response, or at the
        end of the request.

        Args:
            most: the most bytes that the body may have.
            proceed: called once.
            refuse: called with the error if there is no room in time; None answers with it.
        """
        if self.body_complete:
            size = self.body_received
        else:
            size = min(most, SMALL_BODY) if self.body_length is None else self.body_length
        if self.body_complete and size <= UNCOUNTED:
            proceed()
        else:
            self._ask_for_room(size, proceed, refuse or self.answer, most)

    def await_part_room(self, size: int, proceed: Callable[[], None]) -> None:
        """As `await_room`, for `size` bytes in memory of a body that is not held whole."""
        self._ask_for_room(size, proceed, self.answer, None)

    def _ask_for_room(
        self, size: int, proceed: Callable[[], None], refuse: Callable[[GatewayError], None], most: int | None
    ) -> None:
        self.room = BodyRoom(self, refuse, most)
        self.room.ask(self.channel.site.held_bodies, size, proceed)

    def give_room_back(self) -> None:
        """Give back the room of the body: it is not in memory any more. Idempotent."""
        room, self.room = self.room, None
        if room is not None:
            room.give_back()

    def read_body(self) -> Deferred[bytes]:
        """Return the whole body of a request of an ordinary resource.

        The Deferred fails with `BodyTooLarge` (``limits.max_admin_body_bytes``), or as `HeldBodies` says.
        """
        read: Deferred[bytes] = Deferred()
        self.resume_body()
        limit, setting = self.channel.site.limits.max_admin_body_bytes, "max_admin_body_bytes"
        self.collect_body(limit, read.callback, setting=setting, refuse=read.errback)
        return read

    def ask_for_body(self) -> None:
        """Send ``100 Continue`` if the client waits for it."""
        if self.awaits_continue():
            self.continued = True
            self.channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def take_body(self) -> bytes:
        """Return the whole body, once; it must be complete."""
        self._body_ended = True
        pieces, self.body_pieces = self.body_pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def awaits_continue(self) -> bool:
        """Return whether the client waits for an interim response before its body (RFC 9110 §10.1.1)."""
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
        """Call `sink` with each piece of the body and whether it is the last; the last may be empty."""
        self._body_sink = sink
        self.body_arrived()

    def forget_body(self) -> None:
        """Drop the body, its receivers and its room: the request is over."""
        self._body_sink = self._collect = None
        if self.room is not None:
            self.give_room_back()
        if not self.body_complete:
            self.body_pieces.clear()
            self._gathered.clear()

    def pause_body(self, why: str = "body") -> None:
        """Stop reading the body from the client, until `resume_body` is called with the same reason."""
        if not self.body_complete and self.channel is not None:
            self.channel.pause_reading(why)
        if len(self.body_pieces) > LOOSE_PIECES:
            self.body_pieces = [b"".join(self.body_pieces)]

    def resume_body(self, why: str = "body") -> None:
        """Resume reading, unless there is another reason to pause."""
        if self.channel is not None:
            self.channel.resume_reading(why)

    def too_large(self, limit: int, setting: str = "max_held_body_bytes") -> BodyTooLarge:
        """Return the error for a body that is over `limit` bytes and must be read whole.

        Args:
            limit: the limit, in bytes.
            setting: its name in ``passthrough.limits``.
        """
        return BodyTooLarge.over(setting, limit, self.body_length, _WHOLE)

    # from the connection

    def body_arrived(self) -> None:
        """Pass on the received pieces of the body."""
        if self._body_ended or self.finished or (self.room is not None and not self.room.has_body()):
            return
        if self._body_sink is not None:
            pieces, self.body_pieces = self.body_pieces, []
            self._body_ended = self.body_complete
            if pieces or self._body_ended:
                self._body_sink(pieces[0] if len(pieces) == 1 else b"".join(pieces), self._body_ended)
        elif self._collect is not None:
            limit, done, setting, refuse = self._collect
            if self.body_received > limit:
                self.forget_body()
                refuse(self.too_large(limit, setting))
            elif self.body_complete:
                self._body_ended = True
                body = b"".join([self._gathered, *self.body_pieces]) if self._gathered else b"".join(self.body_pieces)
                self.body_pieces, self._gathered = [], bytearray()
                done(body)
            elif len(self.body_pieces) > LOOSE_PIECES:
                self._gathered += b"".join(self.body_pieces)
                self.body_pieces.clear()

    def fail(self, error: GatewayError) -> None:
        """Answer with `error`, or abort a response that has begun."""
        self.failed = True
        context = self.context
        if not context.request_id:
            context.request_id = self.channel.site.take_request_id(None, context.started)
        self._stop_work()
        if context.first_byte is None and not self.startedWriting:
            self.answer(error)
        else:
            self.abort()

    def end_early(self, error: GatewayError, outcome: str) -> None:
        """End a request before its time: answer with `error`, or abort a response that has begun.

        Args:
            error: why; its code is the request's.
            outcome: as `RequestContext.ended_as`.
        """
        self.context.ended_as = outcome
        self.context.error_code = error.code
        self.fail(error)

    def _stop_work(self) -> None:
        work, self.work = self.work, None
        if work is not None:
            work.cancel()

    def connectionLost(self, reason: Failure) -> None:
        """The client has disconnected before the response was complete."""
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
        """Log a resource's exception, and answer 500 without its details."""
        self._log.failure("A request could not be processed", failure=reason, log_secrets=self.context.secrets)
        if self.channel is not None:
            self.fail(GatewayError("The gateway failed to process this request; its log says why."))
        return reason

    # the response

    def keeps_connection(self) -> bool:
        """Return whether the connection can serve another request after this one."""
        if not self.persistent or self.channel is None or self.channel.site.draining:
            return False
        if self.body_complete:
            return True
        if self.awaits_continue():
            # the client may send the body or omit it, so what follows is ambiguous
            return False
        return self.body_length is not None and self.body_length - self.body_received <= DISCARD_LIMIT

    def offers_connection(self) -> bool:
        """Return whether the response that begins may leave its connection to another request.

        A client that was told nothing may send at any time, so only what has not begun can end a connection safely.
        """
        return self.keeps_connection() and self.channel is not None and not self.channel.site.leaving

    def answer(self, error: GatewayError) -> None:
        """Send a complete error response of the gateway."""
        if self._disconnected or self.finished:
            return
        self.context.error_code = error.code
        pages = self.channel.site.web_pages.error_headers(self.context.head.first)
        anthropic = self.uri.partition(b"?")[0].rstrip(b"/").endswith(ANTHROPIC_PATHS) if self.head_complete else False
        status = error.status
        if isinstance(error, BudgetExceeded):
            status = self.channel.site.budget_exceeded_status
        self._respond(status, error.headers() + pages, error.body(self.context.without_secrets, anthropic=anthropic))

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a complete response of the gateway.

        Args:
            status: the status.
            headers: the headers, without framing and date.
            body: the body.
        """
        if self._disconnected or self.finished:
            return
        self._respond(status, headers + self.channel.site.web_pages.response_headers(self.context.head.first), body)

    def _respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"date", self.channel.site.date()))
        self.relay_head(ResponseHead.own(status, _PHRASES.get(status, b""), headers))
        self.relay_body(body, True)

    def relay_head(self, head: ResponseHead) -> None:
        """Start the response; its head is written with the first piece of the body, or by `flush`.

        It relays ``head.relayed``, and adds ``x-request-id`` and the framing if they are missing.
        """
        status = head.status
        added = self.added
        if self.channel is not None and (more := self.channel.site.added_lines) is not None:
            added += more(self.context)
        if not head.has_request_id:
            added = b"%bx-request-id: %b\r\n" % (added, self.context.request_id)
        self._chunked_out = False
        keep = self.offers_connection()
        if head.length is None:
            if self.method != b"HEAD" and status not in BODILESS:
                if self.clientproto == b"HTTP/1.1":
                    self._chunked_out = True
                    added += b"Transfer-Encoding: chunked\r\n"
                else:
                    keep = False
        elif status == 204:
            # RFC 9110 §8.6 forbids a length, and a client that trusts it would wait for a body
            kept = [pair for pair in head.relayed if pair[0].lower() != b"content-length"]
            head = ResponseHead(status, head.reason, kept)
        if not keep:
            self.persistent = False
            added += b"Connection: close\r\n"
        self.context.status = self.code = status
        self._corked = head.write(added)

    def relay_switch(self, head: ResponseHead) -> None:
        """Start a 101. What follows has no framing and ends with the connection (RFC 9110 §15.2.2)."""
        names = [name.lower() for name, _ in head.headers]
        headers = [
            pair
            for name, pair in zip(names, head.headers, strict=True)
            if name not in FRAMING and not name.startswith(OWN_WORDS)
        ]
        added = b"" if head.has_request_id else b"x-request-id: " + self.context.request_id + b"\r\n"
        self.persistent = self._chunked_out = False
        self.context.status = self.code = head.status
        self._corked = write_response_head(head.status, head.reason, headers, added)

    def relay_body(self, data: bytes, last: bool, trailers: HeaderList | None = None) -> None:
        """Write a piece of the response's body and its framing in one write; the last piece ends the response.

        Args:
            data: the piece.
            last: whether it is the last.
            trailers: the trailers after the last piece, or None; only a chunked HTTP/1.1 response can carry them.
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
        if self.room is not None:
            # the server has the body, and nobody sends it again
            self.give_room_back()
        self.context.first_byte = site.seconds()
        for observe in site.lifecycle.first_byte:
            observe(self.context)

    def flush(self) -> None:
        """Write the head, if it was not written with a piece of the body."""
        if self._corked:
            self.relay_body(b"", False)

    def informational(self, status: int, reason: bytes, headers: HeaderList) -> None:
        """Relay an interim response (RFC 9110 §15.2) without hop-by-hop and framing headers.

        HTTP/1.0 knows no interim responses.
        """
        self.continued = self.continued or status == 100
        if self.clientproto == b"HTTP/1.1" and not self._disconnected:
            relayed = [pair for pair in ResponseHead(status, reason, headers).relayed if pair[0].lower() not in FRAMING]
            self.channel.write(write_response_head(status, reason, relayed))

    def abort(self) -> None:
        """Abort the connection after sending what was written, so that the response does not look complete."""
        if self.channel is not None:
            self.channel.send_now()
            self.channel.transport.abortConnection()

    def write(self, data: bytes) -> None:
        """Write a piece of an ordinary resource's response."""
        context = self.context
        if context.first_byte is None and not self._disconnected:
            if not self.offers_connection():
                self.persistent = False
                self.setHeader(b"connection", b"close")
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
        """Write the last bytes after notifying the observers: a client with the whole response may query the ledger."""
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
