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

from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from zope.interface import Interface

from twisted_vllm.errors import ERROR_HEADER, BodyTooLarge, GatewayError
from twisted_vllm.wire.headers import BODILESS, HeaderList, write_response_head

if TYPE_CHECKING:
    from twisted_vllm.wire.channel import GatewayChannel

#: bytes of a body that are read and thrown away to keep a connection whose request was answered early
DISCARD_LIMIT = 262_144


class IStreamingResource(Interface):
    """A resource that is rendered when the head of the request is there, whether or not its body is."""


class Work(Protocol):
    """What a streaming resource does for a request, as far as the request must be able to stop it."""

    def cancel(self) -> None:
        """The client has gone, or its request turned out to be unreadable: stop, and answer nothing."""


class GatewayRequest(server.Request):  # type: ignore[misc]  # Twisted's class is untyped
    """One request and its response.

    Attributes:
        raw_headers: the headers as they came, in order.
        head: the first value of each header, by lower-case name.
        head_complete: whether the head was read.
        fault: what is wrong with the request itself, if anything.
        body_length: the body's size in bytes as declared; ``None`` for a chunked body.
        body_received: bytes of the body that came.
        body_complete: whether the whole body came.
        persistent: whether the connection goes on after this request, as far as it is known.
        started: when the request began, in the reactor's seconds.
        first_byte: when the response began, likewise; ``None`` before.
        status: the status that was sent; 0 before.
        request_id: what ``x-request-id`` says, towards both sides.
        principal: who the request acts as, once that is known.
        error_code: the code of the gateway's own error that was answered, or empty.
        note: what the resource wants to be known of the request when it is over.
    """

    uri = b""
    head: dict[bytes, bytes]
    head_complete = False
    upgrade = False
    fault: GatewayError | None = None
    failed = False
    continued = False
    dispatched = False
    body_length: int | None = 0
    body_received = 0
    body_complete = False
    persistent = True
    first_byte: float | None = None
    status = 0
    request_id = b""
    principal: Any = None
    error_code = ""
    note: Any = None
    work: Work | None = None

    def __init__(self, channel: GatewayChannel) -> None:
        # the base classes are initialised when an ordinary resource is found: see _render_whole
        self.channel = channel
        self.raw_headers: HeaderList = []
        self.head = {}
        self.body_pieces: list[bytes] = []
        self.notifications: list[Any] = []
        self.started = channel.site.seconds()
        self._body_sink: Callable[[bytes, bool], None] | None = None
        self._collect: tuple[int, Callable[[bytes], None]] | None = None
        self._body_ended = False
        self._corked = b""
        self._chunked_out = False

    # towards the resource

    def dispatch(self) -> None:
        """Find the resource and let it answer."""
        self.dispatched = True
        self.site = site = self.channel.site
        self.request_id = site.take_request_id(self.head.get(b"x-request-id"))
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
        for name, value in self.raw_headers:
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
        self.postpath = [http.unquote(segment) for segment in self.path[1:].split(b"/")]
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
        if self.awaits_continue():
            self.continued = True
            self.channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.body_arrived()

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
                done(b"".join(self.body_pieces))

    def fail(self, error: GatewayError) -> None:
        """The request turned out to be unreadable: answer `error`, or cut what was begun."""
        self.failed = True
        if not self.request_id:
            self.request_id = self.channel.site.take_request_id(None)
        if self.work is not None:
            self.work.cancel()
        if self.first_byte is None and not self.startedWriting:
            self.answer(error)
        else:
            self.channel.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone before its request was answered."""
        if self.finished or self._disconnected:
            return
        site = self.channel.site
        self._disconnected = True
        if self.work is not None:
            self.work.cancel()
        if self.dispatched or self.failed:
            site.finished(self)
        super().connectionLost(reason)

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
        self.error_code = error.code
        body = error.body()
        headers = error.headers()
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"date", self.channel.site.date()))
        self.relay_head(error.status, http.RESPONSES.get(error.status, b"Error"), headers)
        self.relay_body(body, True)

    def relay_head(self, status: int, reason: bytes, headers: HeaderList) -> None:
        """Begin the response; it is written with the first piece of the body, or by `flush`.

        Args:
            status: the status code.
            reason: the reason phrase, as it came.
            headers: without hop-by-hop headers; the framing is added where there is no ``content-length``.
        """
        headers = list(headers)
        has_length = self._add_request_id(headers)
        self._chunked_out = False
        keep = self.keeps_connection()
        if not has_length and self.method != b"HEAD" and status not in BODILESS:
            if self.clientproto == b"HTTP/1.1":
                self._chunked_out = True
                headers.append((b"Transfer-Encoding", b"chunked"))
            else:
                keep = False
        if not keep:
            self.persistent = False
            headers.append((b"Connection", b"close"))
        self.status = self.code = status
        self._corked = write_response_head(status, reason, headers)

    def _add_request_id(self, headers: HeaderList) -> bool:
        """Add ``x-request-id`` where the server did not return it; return whether the headers have a content-length."""
        has_length = has_id = False
        for name, _ in headers:
            size = len(name)
            if size == 14:
                has_length = has_length or name.lower() == b"content-length"
            elif size == 12:
                has_id = has_id or name.lower() == b"x-request-id"
        if not has_id:
            headers.append((b"x-request-id", self.request_id))
        return has_length

    def relay_body(self, data: bytes, last: bool) -> None:
        """Write a piece of the response's body, in one write with whatever frames it; end the response with the last."""
        if self._disconnected or self.finished:
            return
        if self.first_byte is None:
            self.first_byte = self.channel.site.seconds()
        out = self._corked
        self._corked = b""
        if self.method == b"HEAD":
            data = b""
        self.sentLength += len(data)
        if not self._chunked_out:
            out = out + data if out else data
        elif data:
            out = b"%b%x\r\n%b\r\n%b" % (out, len(data), data, b"0\r\n\r\n" if last else b"")
        elif last:
            out += b"0\r\n\r\n"
        if out:
            self.channel.write(out)
        if last:
            self.finish()

    def flush(self) -> None:
        """Write the head, if no piece of the body has carried it."""
        if self._corked:
            self.relay_body(b"", False)

    def informational(self, status: int, reason: bytes, headers: HeaderList) -> None:
        """Pass on an interim response (RFC 9110 §15.2); HTTP/1.0 knows none."""
        self.continued = self.continued or status == 100
        if self.clientproto == b"HTTP/1.1" and not self._disconnected:
            self.channel.write(write_response_head(status, reason, headers))

    def abort(self) -> None:
        """Cut the connection, so that what was sent does not look complete."""
        if self.channel is not None:
            self.channel.transport.abortConnection()

    def write(self, data: bytes) -> None:
        """Write a piece of an ordinary resource's response."""
        if self.first_byte is None and not self._disconnected:
            self.first_byte = self.channel.site.seconds()
            self.status = self.code
            if not self.error_code:
                self.error_code = (self.responseHeaders.getRawHeaders(ERROR_HEADER) or [b""])[0].decode("latin-1")
        super().write(data)

    def finish(self) -> None:
        """End the response."""
        if self._disconnected or self.finished:
            return
        if self.first_byte is None:
            self.write(b"")
        if self.chunked:
            self.channel.write(b"0\r\n\r\n")
        if self.producer:
            self.unregisterProducer()
        self.finished = 1
        channel = self.channel
        channel.site.finished(self)
        channel.requestDone(self)
        self.channel = None
        notifications, self.notifications = self.notifications, []
        for waiting in notifications:
            waiting.callback(None)

    def processingFailed(self, reason: Failure) -> Failure:
        """Log what went wrong in a resource, and answer 500 without a word of it."""
        self._log.failure("A request could not be processed", failure=reason)
        if self.channel is not None:
            self.fail(GatewayError("The gateway failed to process this request; its log says why."))
        return reason
