"""The client's side of a response: written as it comes, with the framing that the client understands."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.web import server

from twisted_vllm.errors import ERROR_HEADER, GatewayError
from twisted_vllm.http.headers import BODILESS, FRAMING, HeaderList, ResponseHead, write_last_chunk, write_response_head


class ResponseWriter(server.Request):
    """A request as far as its response goes.

    Attributes:
        channel: the client's connection, or None once the response has ended.
        persistent: whether the connection goes on after this request, as far as it is known.
        continued: whether the client was told to send its body.
        first_byte: when the response began, in the reactor's seconds; ``None`` before.
        status: the status that was sent; 0 before.
        request_id: what ``x-request-id`` says, towards both sides.
        added: whole header lines that the gateway adds to the response.
        error_code: the code of the gateway's own error that was answered, or empty.
    """

    channel: Any
    site: Any
    persistent = True
    continued = False
    first_byte: float | None = None
    status = 0
    request_id = b""
    added = b""
    error_code = ""
    _corked = b""
    _chunked_out = False

    def keeps_connection(self) -> bool:
        """Tell whether the connection can take another request after this one."""
        raise NotImplementedError

    def answer(self, error: GatewayError) -> None:
        """Answer an error of the gateway's own, whole."""
        if self._disconnected or self.finished:
            return
        self.error_code = error.code
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
        added = self.added if head.has_request_id else b"%bx-request-id: %b\r\n" % (self.added, self.request_id)
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
        self.status = self.code = status
        self._corked = head.write(added)

    def relay_switch(self, head: ResponseHead) -> None:
        """Begin a 101 and what follows it, which nothing frames and only the connection ends (RFC 9110 §15.2.2)."""
        headers = [pair for pair in head.headers if pair[0].lower() not in FRAMING]
        added = b"" if head.has_request_id else b"x-request-id: " + self.request_id + b"\r\n"
        self.persistent = self._chunked_out = False
        self.status = self.code = head.status
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
            out = b"%b%x\r\n%b\r\n%b" % (out, len(data), data, write_last_chunk(trailers) if last else b"")
        elif last:
            out += write_last_chunk(trailers)
        if last:
            self._end(out)
        elif out:
            self.channel.write(out)

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
        """Cut the connection, so that what was sent does not look complete."""
        if self.channel is not None:
            # what came before the cut is the client's
            self.channel.send_now()
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
        self._end(b"0\r\n\r\n" if self.chunked else b"")

    def _end(self, out: bytes) -> None:
        """Write the last bytes, after what is known of the request was handed on: who has them may ask for it."""
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
